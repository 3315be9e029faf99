"""Predictions of kinds that come true often enough are asked about, soonest first. Each prediction's tokens are
accounted for once."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from core.words import Activation
from tiers.foresight import Foresight, Offer
from tiers.game_time import GameTime
from tiers.prediction import PredictionSettings

MS, S = 1_000_000, 1_000_000_000
SURE, UNLIKELY = 0.9, 0.1


def play(foresight: Foresight, seconds: int, chances: dict[str, float], seed: int = 1) -> None:
    """Every 100 ms an NPC is offered a state of each kind. It comes true after a second with the kind's chance."""
    rng = random.Random(seed)
    coming: list[tuple[int, int, str]] = []
    for step in range(seconds * 10):
        now_ns = step * 100 * MS
        for kind, chance in chances.items():
            who, state = step % 50, f"{kind}{step}"
            if foresight.offer(who, state, kind, 0.6, 1000, now_ns):
                foresight.asked(who, state, kind, 10, now_ns)
            if rng.random() < chance:
                coming.append((now_ns + S, who, state))
        while coming and coming[0][0] <= now_ns:
            _, who, state = coming.pop(0)
            foresight.came_true(who, state, 50 * MS, now_ns)
        foresight.expire(now_ns)
    foresight.expire(seconds * S + 100 * S)


def test_a_hit_is_accounted() -> None:
    """A hit counts its tokens as spent and as saved. The same state within its time to live saves them again, without a
    second hit."""
    foresight = Foresight(PredictionSettings(on=True))
    assert foresight.offer("ann", "s", "calm", SURE, 500, 0)
    foresight.asked("ann", "s", "calm", 30, 0)
    assert not foresight.offer("ann", "s", "calm", SURE, 500, 0)
    assert not foresight.came_true("ann", "another", 40 * MS, S)
    assert not foresight.came_true("bob", "s", 40 * MS, S)
    assert foresight.came_true("ann", "s", 40 * MS, S)
    assert foresight.came_true("ann", "s", 2 * MS, 2 * S)
    assert foresight.expire(8 * S) == []
    assert foresight.expire(9 * S) == [("ann", "s")]
    assert not foresight.came_true("ann", "s", 40 * MS, 9 * S)
    counts = foresight.counts
    assert (counts.predictions, counts.hits, counts.tokens, counts.wasted_tokens) == (1, 1, 30, 0)
    assert counts.saved_ns == 42 * MS


def test_a_state_that_does_not_come_in_its_time_is_wasted() -> None:
    """When the time to live is over, or the NPC is removed, the tokens count as wasted, once."""
    foresight = Foresight(PredictionSettings(on=True, ttl_s=2.0))
    foresight.asked("ann", "s", "calm", 30, 0)
    foresight.asked("bob", "s", "calm", 7, 0)
    foresight.remove("bob")
    foresight.remove("bob")
    assert foresight.counts.wasted_tokens == 7
    assert foresight.expire(2 * S) == [("bob", "s")]
    assert not foresight.came_true("ann", "s", 1, 2 * S + 1)
    assert foresight.expire(2 * S + 1) == [("ann", "s")]
    assert foresight.counts.wasted_tokens == 37
    assert foresight.expire(90 * S) == []


def test_kinds_that_come_true_are_asked_about_and_others_are_not() -> None:
    """A good kind is asked about, a bad one is not, and a middling one is as long as the good kinds make up for it."""
    good = Foresight(PredictionSettings(on=True))
    play(good, 300, {"good": 0.9})
    assert good.counts.predictions > 2500 and good.counts.hits > 0.85 * good.counts.predictions
    bad = Foresight(PredictionSettings(on=True))
    play(bad, 300, {"bad": 0.1})
    assert bad.counts.predictions < 150
    mixed = Foresight(PredictionSettings(on=True))
    play(mixed, 300, {"good": 0.9, "fair": 0.35})
    assert mixed.counts.predictions > 5000
    assert mixed.counts.wasted_tokens <= 0.5 * mixed.counts.tokens


def test_a_kind_that_becomes_better_is_asked_about_again() -> None:
    """A kind that is not asked about is still watched."""
    foresight = Foresight(PredictionSettings(on=True))
    play(foresight, 100, {"kind": 0.1})
    before = foresight.counts.predictions
    assert foresight.share("kind", 1000) < 0.3
    play(foresight, 200, {"kind": 0.9})
    assert foresight.counts.predictions > before + 1000


def test_before_anything_is_known_little_is_risked() -> None:
    """Of a new kind that never comes true at most 32 states are asked about before it is known to be bad."""
    foresight = Foresight(PredictionSettings(on=True))
    for n in range(1000):
        if foresight.offer(n, "s", "kind", 0.9, 100, n * MS):
            foresight.asked(n, "s", "kind", 10, n * MS)
    assert foresight.counts.predictions == 32
    foresight.expire(10 * S)
    assert not foresight.offer(1, "s", "kind", 0.9, 100, 10 * S)
    assert foresight.counts.wasted_tokens == foresight.counts.tokens == 320


def test_a_state_that_came_before_it_was_asked_about_is_no_hit() -> None:
    """A state that is only watched and comes true is no hit, and asking about it is not worth it any more."""
    foresight = Foresight(PredictionSettings(on=True))
    assert foresight.offer(1, "s", "calm", SURE, 100, 0)
    assert not foresight.came_true(1, "s", 1, MS)
    assert not foresight.offer(1, "s", "calm", SURE, 100, 2 * MS)
    foresight.asked(1, "s", "calm", 5, 3 * MS)
    foresight.expire(20 * S)
    assert (foresight.counts.hits, foresight.counts.wasted_tokens) == (0, 5)


def test_near_and_far_are_judged_apart() -> None:
    """One kind may be good within half a second and bad three seconds ahead."""
    foresight = Foresight(PredictionSettings(on=True))
    for n in range(400):
        now_ns = n * S
        foresight.offer(1, ("near", n), "kind", 0.5, 100, now_ns)
        foresight.offer(1, ("far", n), "kind", 0.5, 3000, now_ns)
        foresight.came_true(1, ("near", n), 0, now_ns + 100 * MS)
        foresight.expire(now_ns)
    assert foresight.share("kind", 200) > 0.9 and foresight.share("kind", 2500) < 0.1
    assert foresight.share("unknown", 200, 0.3) == 0.3


def test_the_order_in_which_npcs_are_asked() -> None:
    """Active NPCs come before warm ones, soon states before later ones, likely states before unlikely ones, up to the
    budget."""
    offers = [
        Offer("warm", "a", "day", SURE, 100, 10, Activation.WARM),
        Offer("later", "a", "day", SURE, 1900, 10),
        Offer("large", "a", "day", SURE, 300, 50),
        Offer("soon", "a", "day", SURE, 200, 10),
        Offer("likelier", "a", "calm", SURE + 0.05, 300, 10),
        Offer("unlikely", "a", "nearer", UNLIKELY, 0, 10),
    ]
    foresight = Foresight(PredictionSettings(on=True))
    assert [o.who for o in foresight.choose(offers, 1000, 0)] == ["likelier", "soon", "large", "later", "warm"]
    assert [o.who for o in foresight.choose(offers, 30, 0)] == ["likelier", "soon", "later"]
    assert foresight.choose(offers, 0, 0) == []


def test_off_is_off() -> None:
    """When foresight is off, no state is worth asking about, and none is watched."""
    foresight = Foresight(PredictionSettings(on=False))
    assert not foresight.offer(1, "s", "calm", 1.0, 0, 0)
    assert not foresight.came_true(1, "s", 1, 1)


def test_watched_states_have_a_bound_too() -> None:
    """Of a kind that is not asked about at most per_npc_max states are watched; overdue ones make room."""
    foresight = Foresight(PredictionSettings(on=True, per_npc_max=2))
    for n in range(9):
        assert not foresight.offer(1, n, "nearer", UNLIKELY, 1000, n * 700 * MS)
    assert len(foresight._books[1]) == 2
    assert foresight.share("nearer", 1000) < UNLIKELY


def test_an_npc_keeps_so_many() -> None:
    """A full NPC refuses the next state until a state that is long overdue makes room, and is reported as over."""
    foresight = Foresight(PredictionSettings(on=True, per_npc_max=2))
    for n in range(2):
        assert foresight.offer(1, n, "calm", SURE, 1000, 0)
        foresight.asked(1, n, "calm", 5, 0)
    assert not foresight.offer(1, 2, "calm", SURE, 1000, 500 * MS)
    assert foresight.offer(1, 3, "calm", SURE, 1000, 1500 * MS)
    assert foresight.expire(1500 * MS) == []
    foresight.asked(1, 3, "calm", 5, 1500 * MS)
    assert foresight.expire(1500 * MS) == [(1, 0)]
    assert foresight.counts.wasted_tokens == 5
    # More states may be offered before the first of them is asked about.
    foresight.asked(1, 4, "calm", 5, 1500 * MS)
    foresight.asked(1, 5, "calm", 5, 1500 * MS)
    assert foresight.expire(1500 * MS) == [(1, 1), (1, 4)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 12), st.integers(0, 900)), max_size=200))
def test_every_token_is_accounted_once(acts: list[tuple[int, int, int, int]]) -> None:
    """For random inputs each prediction ends as a hit or as waste, and no account is left."""
    settings = PredictionSettings(on=True, per_npc_max=3, ttl_s=2.0)
    foresight = Foresight(settings)
    now_ns, hit, spent = 0, set(), {}
    for act, who, state, passed_ms in acts:
        now_ns += passed_ms * MS
        if act <= 1 and foresight.offer(who, state, "calm", SURE, passed_ms, now_ns):
            foresight.asked(who, state, "calm", state + 1, now_ns)
            spent[foresight.counts.predictions] = state + 1
        elif act == 2:
            if foresight.came_true(who, state, 1, now_ns):
                hit.add((who, state))
        elif act == 3:
            foresight.expire(now_ns)
        elif act == 4:
            foresight.remove(who)
        counts = foresight.counts
        assert counts.predictions == len(spent) and counts.tokens == sum(spent.values())
        assert counts.hits <= counts.predictions and counts.wasted_tokens <= counts.tokens
        for book in foresight._books.values():
            asked = sum(noted.tokens >= 0 for noted in book.values())
            assert asked <= settings.per_npc_max and len(book) - asked <= settings.per_npc_max
    foresight.expire(now_ns + 100 * S)
    assert foresight._books == {} and not foresight._ends
    assert (foresight.counts.wasted_tokens == foresight.counts.tokens) == (foresight.counts.hits == 0 or not spent)


def test_a_predicted_state_lives_in_game_time() -> None:
    """A predicted state lives for ttl_s of its own NPC's game time: through a pause, longer in a slow game, shorter in
    a fast one.
    """
    games = {"slow": GameTime(0), "fast": GameTime(0), "paused": GameTime(0)}
    games["slow"].tell(0.1, False, 0)
    games["fast"].tell(10.0, False, 0)
    for at_s, comes in ((0.15, {"slow", "fast", "paused"}), (15, {"slow", "paused"}), (25, {"paused"})):
        foresight = Foresight(PredictionSettings(on=True, ttl_s=2.0), lambda who, now_ns: games[str(who)].at(now_ns))
        games["paused"] = GameTime(0)
        for who in games:
            foresight.asked(who, "state", "nearer", 10, 0)
        games["paused"].tell(1.0, True, S)
        for now_s in range(round(at_s)):
            foresight.expire(now_s * S)
        now_ns = round(at_s * S)
        assert {who for who in games if foresight.came_true(who, "state", 0, now_ns)} == comes
    games["paused"].tell(1.0, False, 25 * S)
    for now_s in range(25, 60):
        foresight.expire(now_s * S)
    assert not foresight._books and foresight._open == 0 and len(foresight._ends) == 0

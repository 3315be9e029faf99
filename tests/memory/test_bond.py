"""Bonds are a fold over records. Cards report the field that is too large. Noting keeps only facts that were said."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CallerError
from core.steps import at_once
from core.words import NpcKey
from memory import cards
from memory.bond import (
    DAY_MS,
    EXCHANGES_KEPT,
    FACTS_KEPT,
    RECENT_MS,
    SUMMARIES_KEPT,
    Bond,
    Mood,
    apply,
    from_json,
    mood,
    moved,
    salient,
    to_json,
    within,
)
from memory.bonds import Bonds
from memory.cards import Quest, Relationship
from memory.noting import believed, covered, facts_of, name_of, summary_by_rule, with_name
from memory.records import Body, Kind, Position, Record, from_bytes, make_id, to_bytes
from models.corpus import memories
from tests.memory.tales import NPC, record_of, turn

NOW = 1_800_000_000_000


def test_a_record_survives_its_bytes() -> None:
    """Every record is decoded as it was encoded, with any content. Its id is a UUID that sorts by time."""
    record = Record(
        Kind.TURN,
        NOW,
        "t",
        "w",
        "n\u00e9",
        "p:%",
        "first",
        {"line": "\u0000 \U0001f600 \ud83d", "n": [1, 2.5]},
        make_id(NOW),
    )
    assert from_bytes(to_bytes(record)) == record
    ids = [make_id(NOW + n) for n in range(100)]
    assert ids == sorted(ids) and len(set(make_id(NOW) for _ in range(1000))) == 1000
    for broken in (b"", b"\x01", b"\xff[]", b"\x04{}", to_bytes(record)[:-1]):
        with pytest.raises(ValueError):
            from_bytes(broken)


@given(st.integers(0, 10_000))
def test_a_bond_survives_its_json(seed: int) -> None:
    """Every bond is decoded as it was encoded, and the bounds of all its parts hold."""
    rng = Random(seed)
    bond = Bond()
    for n in range(rng.randrange(60)):
        apply(bond, record_of(rng, NOW + n * 1000))
    assert from_json(to_json(bond)) == bond
    assert len(bond.facts) <= FACTS_KEPT and len(bond.summaries) <= SUMMARIES_KEPT
    assert bond.session is None or len(bond.session.exchanges) <= EXCHANGES_KEPT
    assert moved(moved(bond, 5_000), -5_000) == bond


def test_bytes_that_are_no_bond_are_refused() -> None:
    """Bytes of a store that are no bond are refused."""
    broken: list[Body] = [{"facts": [[1]]}, {"session": 3}, {"relationship": {}}, {"summaries": 5}]
    for said in broken:
        with pytest.raises(ValueError):
            from_json(said)


def test_a_month_is_remembered_and_no_longer() -> None:
    """Facts and summary are there after seven days. After 31 days only the cards are, which the game gave."""
    bond = Bond()
    apply(bond, turn(NOW, "I lost my ring.", "Oh.", facts=[["{player} lost the ring.", 0.7]], name="Ann"))
    apply(bond, Record(Kind.SUMMARY, NOW, *NPC, "p", "", {"session": "s", "text": "They met."}))
    apply(bond, Record(Kind.CARD, NOW, *NPC, "p", "", {"relationship": cards.to_body(Relationship(trust=0.9))}))
    later = within(bond, NOW + 7 * DAY_MS)
    assert [f.text for f in later.facts] == ["{player} lost the ring."] and later.summaries and later.name == "Ann"
    assert within(bond, NOW + 31 * DAY_MS) == Bond(relationship=Relationship(trust=0.9))
    apply(bond, turn(NOW + RECENT_MS, "Hello.", "Ah."))
    again = within(bond, NOW + 31 * DAY_MS)
    assert not again.facts and not again.summaries and again.relationship == Relationship(trust=0.9)


def test_important_facts_come_first_and_fade() -> None:
    """A fact's importance halves with every week, and a repeated fact is young again."""
    bond = Bond()
    for n in range(FACTS_KEPT + 10):
        apply(bond, turn(NOW + n, "x", "y", facts=[[f"fact {n}", 0.9 if n < 3 else 0.4]]))
    assert {f.text for f in salient(bond.facts, NOW + 100, 3)} == {"fact 0", "fact 1", "fact 2"}
    three_weeks = NOW + 21 * DAY_MS
    apply(bond, turn(three_weeks, "x", "y", facts=[["news", 0.5], ["FACT 0", 0.1]]))
    told_now = salient(bond.facts, three_weeks, 2)
    assert {f.text for f in told_now} == {"news", "FACT 0"} and max(f.importance for f in told_now) == 0.9


def test_the_newest_mood_weighs_most() -> None:
    """Two fresh joys outweigh one old great fear."""
    hour = 3_600_000
    assert mood([Mood("afraid", NOW - 8 * hour), Mood("afraid", NOW - 8 * hour), Mood("happy", NOW)], NOW) == "happy"
    assert mood([], NOW) == ""


def test_a_session_is_over_when_its_own_end_comes() -> None:
    """The end of another session changes nothing."""
    bond = Bond()
    apply(bond, turn(NOW, "a", "b", session="one"))
    apply(bond, Record(Kind.ENDED, NOW, *NPC, "p", "", {"session": "two"}))
    assert bond.session is not None and bond.session.count == 1
    apply(bond, Record(Kind.ENDED, NOW, *NPC, "p", "", {"session": "one"}))
    assert bond.session is None


def test_cards_say_which_field_to_shorten() -> None:
    """The error names the number, text or list that is too large, or the whole card."""
    for field, card in (
        ("relationship.trust", Relationship(trust=float("nan"))),
        ("relationship.affinity", Relationship(affinity=1.5)),
        ("relationship.promises", Relationship(promises=("x",) * 17)),
        ("relationship.betrayals[1]", Relationship(betrayals=("x", "y" * 201))),
        ("relationship.betrayals[0]", Relationship(betrayals=(" ",))),
        ("quest.active", Quest(active=("x" * 190,) * 12, milestones=("m",))),
    ):
        with pytest.raises(CallerError) as failed:
            cards.check(field.partition(".")[0], card)
        assert failed.value.field == field
    cards.check("quest", Quest(active=("Find the ring",), milestones=("Met Mira",)))


def test_cards_are_told_in_words() -> None:
    """The full form has everything; the digest is one line."""
    friend = Relationship(0.8, 0.0, ("Ann promised the ring",), ("Ann lied to Mira.",))
    quest = Quest(("Find the lantern", "Quest: bring the mask."), ("Ann found the key",))
    assert cards.full("Ann", friend, quest) == [
        "Ann is a trusted friend.", "Ann lied to Mira.", "Ann promised the ring.", "Find the lantern.",
        "Quest: bring the mask.", "Ann found the key.",
    ]  # fmt: skip
    assert cards.digest("Ann", friend, quest) == "Ann, a trusted friend. Quest: bring the mask."
    assert cards.digest("Ann", Relationship(), None) == "" and cards.full("Ann", None, None) == []
    assert [cards.relation(Relationship(trust=t)) for t in (1, 0.3, 0, -0.5, -1)] == [
        "a trusted friend", "a friend", "", "not trusted", "an enemy",
    ]  # fmt: skip
    for card in (friend, quest):
        kept = cards.relationship_of if isinstance(card, Relationship) else cards.quest_of
        assert kept(cards.to_body(card)) == card


@pytest.mark.parametrize("kind", memories.SAID)
def test_every_kind_of_fact_that_the_model_was_trained_on_is_noted(kind: str) -> None:
    """For each kind of fact that players tell, with held-out names, the note has the words that the model knows."""
    rng = Random(7)
    for _ in range(40):
        slots = memories.make_memory(rng, kind, unseen=True)
        line = memories.said(rng, kind, slots)
        noted = facts_of(line, "Gedine")
        assert noted, line
        assert all(value in noted[0][0] for slot, value in slots.items() if slot != "tkin"), (line, noted)


def test_noting_leaves_questions_and_small_talk() -> None:
    """Only facts about the player are noted, in the third person."""
    for line in ("Do you know where I lost my ring?", "Nice weather.", "How are you?", "", "I", "I am."):
        assert facts_of(line, "Mira") == []
    assert [t for t, _ in facts_of("I am a smith and I hate my brother. I love you!", "Mira")] == [
        "{player} is a smith and they hate their brother.", "{player} loves Mira.",
    ]  # fmt: skip
    assert name_of("Good evening, my name is Corvessa Vale.") == "Corvessa Vale" and name_of("I am tired") == ""
    assert facts_of("I owe you seven coins", "{0} {player}") == [("{player} owes {0} {player} seven coins.", 0.9)]
    assert with_name("{player} lost it.", "") == "The player lost it."


@given(st.text(max_size=300))
def test_noting_takes_any_text(line: str) -> None:
    """No text makes it fail, and every note is short."""
    assert all(len(text) <= 160 for text, _ in facts_of(line, "Mira"))
    name_of(line)


def test_a_summary_is_believed_as_far_as_it_was_said() -> None:
    """Names, things and deeds that nobody mentioned are left out, and so are repeated sentences."""
    said = [turn(NOW, "I lost my green lantern at the old ferry.", "We all have our troubles.").body]
    bond = Bond()
    apply(bond, turn(NOW, said[0]["line"], said[0]["reply"]))
    assert bond.session is not None
    heard = bond.session.exchanges
    names = ("Mira", "Corvessa")
    good = "Corvessa lost a green lantern at the old ferry."
    assert believed(f"{good} Corvessa promised Mira the green ring. {good}", heard, names) == good
    assert believed("Corvessa lost a green lantern at Hartmoor.", heard, names) == ""
    assert believed("Corvessa was robbed at the old ferry.", heard, names) == ""
    assert believed("word salad without an end", heard, names) == ""
    assert covered("Corvessa lost a lantern.", [good]) and not covered("Corvessa owes Mira coins.", [good])
    assert summary_by_rule("Mira", [("b.", 0.1), ("a.", 0.9)]) == "{player} talked with Mira. a. b."


def test_bonds_that_the_store_does_not_have_are_not_put_away() -> None:
    """Other bonds are evicted, the longest unused first."""
    bonds = Bonds(held_max=2)
    keys = [NpcKey("", "w", f"n{i}") for i in range(4)]
    for key in keys:
        bonds.put(key, "p", Bond(name=key.npc), complete=True)
    first = bonds.find(keys[0], "p")
    assert first is not None
    second = bonds.put(keys[1], "p", Bond(), complete=True)
    bonds.write(first)
    bonds.write(second)
    bonds.written(second, Position(1, 50))
    assert bonds.put_away(Position(1, 40)) == 2 and len(bonds) == 2
    assert bonds.find(keys[0], "p") is first and bonds.find(keys[1], "p") is not None
    bonds.written(first, Position(1, 50))
    bonds.put(keys[2], "p", Bond(), complete=True)
    assert bonds.put_away(Position(1, 50)) == 0 and len(bonds) == 2
    assert bonds.forget("", "w", "p", "n2") == 1 and bonds.forget("", "w", "p") == 1


def test_bonds_in_process_lose_what_is_too_old() -> None:
    """Bonds that are never read lose old facts, too; their cards stay."""
    bonds = Bonds(10_000)
    for n in range(1_000):
        held = bonds.fold(turn(NOW, "I lost my ring.", "Oh.", facts=[["a fact", 0.7]], player=f"p{n}"), complete=True)
        if n % 2:
            held.bond.relationship = Relationship(trust=0.5)
    for _ in range(10):
        at_once(bonds.ageing(NOW + 31 * DAY_MS))
    left = [held.bond for _, held in bonds.pairs()]
    assert [bond.empty for bond in left] == [True, False] * 500
    assert not any(bond.facts or bond.session for bond in left)


def test_bonds_with_cards_are_put_away_last_where_nobody_else_has_them() -> None:
    """Without a recent store, bonds without cards are evicted first; with one, the longest unused bond is."""
    for saved, left in ((None, {"p0", "p3"}), (Position(9, 9), {"p2", "p3"})):
        bonds = Bonds(2)
        for n in range(4):
            held = bonds.fold(turn(NOW, "Hello.", "Yes?", player=f"p{n}"), complete=True)
            if n == 0:
                held.bond.relationship = Relationship(trust=0.5)
        bonds.put_away(saved)
        assert {player for (_, player), _ in bonds.pairs()} == left


def test_a_forgotten_player_of_many_bonds_is_gone_at_once_and_freed_a_few_at_a_time() -> None:
    """The bonds cannot be found at once, and their memory is freed in several steps."""
    bonds = Bonds(10_000)
    for n in range(100):
        for player in ("p", "q"):
            bonds.put(NpcKey("", "vale", f"n{n}"), player, Bond(name=player), complete=True)
    assert bonds.forget("", "vale", "p", "n7") == 1 and bonds.forget("", "vale", "p") == 99
    assert len(bonds) == 100 and bonds.find(NpcKey("", "vale", "n3"), "p") is None
    assert bonds.find(NpcKey("", "vale", "n3"), "q") is not None
    assert sum(1 for _ in bonds.freeing()) >= 5 and not list(bonds.freeing())
    assert bonds.forget("", "vale", "q") == 100 and bonds.forget("", "vale", "q") == 0 and len(bonds) == 0

"""Each law finds the fault that it is there for. A law that cannot fail proves nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.choice import Tokens, common_len
from core.words import Finish, Tier, TrunkKey
from engines.sim import SimCost
from kvcache.homes import Trunk
from kvcache.verify import Sealed
from scheduler import composing, placing, planner, scheduler
from scheduler.filling import Candidate
from scheduler.gold_room import GoldRoom
from scheduler.place import Place
from scheduler.placing import Placer
from scheduler.planner import Composed, compose
from scheduler.running import Running
from scheduler.window import Closed, Window
from tests.sim.laws import Broken
from tests.sim.lives import HARD_TIMES, PROMISES, SCARCE
from tests.sim.world import World, WorldSettings

SHORT = WorldSettings(seconds=20.0, active=32, storm_every_s=4.0, overfill_every_s=3.0, lull_every_s=9.0)
# So little work that the engine is often idle.
QUIET = replace(SHORT, stories_waiting=0, dialogues=0, overfill_every_s=0.0, storm_every_s=0.0, wonder_every_s=0.0)
# Steps so slow that the decodes of all dialogues do not fit into one, while no work starves for a long time.
SLOW = replace(
    QUIET,
    active=0,
    dialogues=80,
    reply_len_max=300,
    end_every=0,
    cost=SimCost(token_us=3000.0),
    promises=replace(PROMISES, silver=replace(PROMISES.silver, wait_max_ms=60_000)),
)

# So many dialogues that they would hold every lane.
CROWDED = replace(
    SLOW,
    npcs=200,
    dialogues=160,
    stories_waiting=10,
    cost=SimCost(token_us=300.0),
    promises=replace(PROMISES, bronze=replace(PROMISES.bronze, wait_max_ms=1500)),
)

Fault = Callable[[World, pytest.MonkeyPatch], None]


def ends_twice(world: World, patch: pytest.MonkeyPatch) -> None:
    """Now and then an end is delivered twice."""
    scheduler = world.scheduler
    honest = scheduler._deliver_end

    def deliver_end(runner: Running, finish: Finish, reason: str) -> None:
        honest(runner, finish, reason)
        if runner.ticket_id % 100 == 0:
            scheduler._out.append(scheduler._out[-1])

    patch.setattr(scheduler, "_deliver_end", deliver_end)


def never_ends(world: World, patch: pytest.MonkeyPatch) -> None:
    """A work that failed is lost."""
    scheduler = world.scheduler
    honest = scheduler._end

    def end(runner: Running, finish: Finish, now_ns: int) -> None:
        honest(runner, finish, now_ns)
        if runner.ticket_id % 100 == 0:
            scheduler._out.pop()

    patch.setattr(scheduler, "_end", end)


def hoards(world: World, patch: pytest.MonkeyPatch) -> None:
    """RAM takes more than its bound."""
    homes = world.scheduler.placer.homes
    honest = homes.put

    def put(trunk: Trunk, blob: Sealed) -> list[tuple[Trunk, Sealed]]:
        bound, homes.ram_bytes_max = homes.ram_bytes_max, 1 << 40
        evicted = honest(trunk, blob)
        homes.ram_bytes_max = bound
        return evicted

    patch.setattr(homes, "put", put)


def keeps_stale_copies(world: World, patch: pytest.MonkeyPatch) -> None:
    """A trunk that grows keeps the copy of its shorter state."""

    def holds(trunk: Trunk, tokens: Tokens, held: int) -> None:
        trunk.tokens, trunk.held = tokens, held

    patch.setattr(world.scheduler.placer.homes, "holds", holds)


def loses_lanes(world: World, patch: pytest.MonkeyPatch) -> None:
    """A returned lane does not become free."""
    lanes = world.scheduler.placer.lanes
    patch.setattr(lanes, "give_back", lanes._leased.remove)


def loses_sequences(world: World, patch: pytest.MonkeyPatch) -> None:
    """The sequence of a forgotten trunk does not become free."""
    homes = world.scheduler.placer.homes
    honest = homes.remove

    def remove(key: TrunkKey) -> int:
        seq = honest(key)
        homes._free.discard(seq)
        return seq

    patch.setattr(homes, "remove", remove)


def leaves_branches(world: World, patch: pytest.MonkeyPatch) -> None:
    """A branch is not cut off, so the sequence is longer than the book says."""
    honest = world.engine.trim
    patch.setattr(world.engine, "trim", lambda seq, length: honest(seq, length) if not length else None)


def keeps_forks(world: World, patch: pytest.MonkeyPatch) -> None:
    """A committed fork is not removed."""
    homes = world.scheduler.placer.homes
    patch.setattr(homes, "commit", lambda fork: -1)


def keeps_too_much(world: World, patch: pytest.MonkeyPatch) -> None:
    """The book says that a fork holds its last token, which no step computed."""
    placer = world.scheduler.placer
    honest = placer.keep

    def keep(place: Place, made: Sequence[int]) -> None:
        honest(place, made)
        place.trunk.held += 1

    patch.setattr(placer, "keep", keep)


def adopts_too_much(world: World, patch: pytest.MonkeyPatch) -> None:
    """A reply that becomes the trunk counts its last token as computed, which no step took in."""
    placer = world.scheduler.placer
    honest = placer.adopt

    def adopt(place: Place, made: Sequence[int], now_ns: int) -> int:
        adopted = honest(place, made, now_ns)
        if adopted:
            tokens = np.concatenate([place.work.trunk, place.work.tail, np.asarray(made, np.int32)])
            placer.homes.holds(place.trunk, tokens, len(tokens))
        return adopted

    patch.setattr(placer, "adopt", adopt)


def adopts_another_tail(world: World, patch: pytest.MonkeyPatch) -> None:
    """The book says that the trunk goes on with other tokens than those that the lane took in."""
    placer = world.scheduler.placer
    honest = placer.adopt

    def adopt(place: Place, made: Sequence[int], now_ns: int) -> int:
        adopted = honest(place, made, now_ns)
        if adopted:
            wrong = place.trunk.tokens.copy()
            wrong[len(place.work.trunk)] += 1
            placer.homes.holds(place.trunk, wrong, place.trunk.held)
        return adopted

    patch.setattr(placer, "adopt", adopt)


def adopts_over_others(world: World, patch: pytest.MonkeyPatch) -> None:
    """A reply becomes the trunk although another work stands on that."""
    placer = world.scheduler.placer
    honest = placer.adopt

    def adopt(place: Place, made: Sequence[int], now_ns: int) -> int:
        users, place.trunk.users = place.trunk.users, 0
        adopted = honest(place, made, now_ns)
        place.trunk.users += users
        return adopted

    patch.setattr(placer, "adopt", adopt)


def mixes_adapters(world: World, patch: pytest.MonkeyPatch) -> None:
    """The step is composed as if all works had the adapter of the first."""

    def mixed(candidates: Sequence[Candidate], *more: Any) -> Composed:
        for c in candidates:
            c.adapter = candidates[0].adapter
        return compose(candidates, *more)

    patch.setattr(composing, "compose", mixed)


def shares_prefixes_of_all_adapters(world: World, patch: pytest.MonkeyPatch) -> None:
    """A shared beginning that one adapter computed is used for another adapter."""
    honest = world.scheduler.placer.prefixes.take
    patch.setattr(world.scheduler.placer.prefixes, "take", lambda tokens, now_ns, adapter: honest(tokens, now_ns))


def copies_from_any_adapter(world: World, patch: pytest.MonkeyPatch) -> None:
    """A new trunk begins as a copy of the NPC's trunk of another adapter."""

    def nearest(placer: Placer, trunk: Trunk, wanted: Tokens) -> tuple[Trunk | None, int]:
        others = [t for t in placer.homes.of_npc(trunk.key.npc) if t is not trunk and t.seq >= 0]
        lengths = [(common_len(t.tokens[: t.held], wanted), t) for t in others]
        length, best = max(lengths, key=lambda found: found[0], default=(0, None))
        return best, length

    patch.setattr(Placer, "_best_sibling", nearest)


def leaks_samplers(world: World, patch: pytest.MonkeyPatch) -> None:
    """Sampler chains are not freed."""
    patch.setattr(world.engine, "drop_sampler", lambda sampler: None)


def takes_everybody(world: World, patch: pytest.MonkeyPatch) -> None:
    """The queues have no bound."""
    for queue in world.scheduler.admission.queues.of.values():
        patch.setattr(queue, "waiting_max", 10**9)


def reuses_too_much(world: World, patch: pytest.MonkeyPatch) -> None:
    """Reuse takes one token more than two trunks share."""

    def too_much(held: Tokens, wanted: Tokens) -> int:
        return min(common_len(held, wanted) + 1, len(held), len(wanted))

    patch.setattr(placing, "common_len", too_much)


def waits_while_busy(world: World, patch: pytest.MonkeyPatch) -> None:
    """The window stays open although the engine runs."""
    honest = Window.close

    def close(
        window: Window, now_ns: int, waiting: int, oldest_ns: int, busy: bool, next_due_ns: int | None
    ) -> tuple[Closed | None, int]:
        return (None, now_ns) if busy else honest(window, now_ns, waiting, oldest_ns, busy, next_due_ns)

    patch.setattr(Window, "close", close)


def waits_too_long(world: World, patch: pytest.MonkeyPatch) -> None:
    """The window of an idle engine is twice as long as the law says, and waits for every expected work."""
    long = replace(world.scheduler.admission.window.settings, window_ms=20, gather_ms=20.0)
    patch.setattr(world.scheduler.admission.window, "settings", long)


def does_not_rotate(world: World, patch: pytest.MonkeyPatch) -> None:
    """A work that decodes on one of the lanes is in no step while others decode."""
    lane = world.settings.prefixes + 1

    def rest(candidates: Sequence[Candidate], *more: Any) -> Composed:
        others = [c for c in candidates if not c.decode or c.seq != lane]
        return compose(others if any(c.decode for c in others) else candidates, *more)

    patch.setattr(composing, "compose", rest)


def knows_no_hunger(world: World, patch: pytest.MonkeyPatch) -> None:
    """The order is strict: waiting long never puts a work first."""

    def first(candidates: Sequence[Candidate], ranked: Sequence[Sequence[Candidate]], *_: object) -> Candidate:
        return next(group[0] for group in ranked if group)

    patch.setattr(planner, "_first", first)


def lets_silver_have_all_lanes(world: World, patch: pytest.MonkeyPatch) -> None:
    """No Bronze counts as Silver, however long it waits for a lane."""
    patch.setattr(world.scheduler.admission, "risen_bronze", lambda seats, now_ns: None)


def gives_no_way(world: World, patch: pytest.MonkeyPatch) -> None:
    """Works wait for places that lower tiers hold."""
    patch.setattr(scheduler, "make_way", lambda *_: None)


def passes_over(world: World, patch: pytest.MonkeyPatch) -> None:
    """Lower tiers go first any number of times."""

    def greedy(*all_but_the_last: Any) -> Composed:
        return compose(*all_but_the_last[:-1])

    patch.setattr(composing, "compose", greedy)


def takes_one_gold_at_a_time(world: World, patch: pytest.MonkeyPatch) -> None:
    """While one Gold runs, no other one is taken."""
    patch.setattr(GoldRoom, "has", lambda room, work: not any(r.work.tier is Tier.GOLD for r in room._runners))


def takes_all_gold(world: World, patch: pytest.MonkeyPatch) -> None:
    """All Gold that waits is taken, however long it then takes."""
    patch.setattr(GoldRoom, "has", lambda room, work: True)


@pytest.mark.parametrize(
    ("fault", "law", "settings"),
    [
        (ends_twice, "once", SHORT),
        (never_ends, "once", SHORT),
        (loses_lanes, "lanes", SHORT),
        (loses_sequences, "residents", SHORT),
        (hoards, "ram", SHORT),
        (keeps_stale_copies, "copies", replace(SHORT, seconds=60.0)),
        (leaves_branches, "residents", SHORT),
        (keeps_forks, "forks", SHORT),
        (keeps_too_much, "residents", SHORT),
        (adopts_too_much, "residents", SHORT),
        (adopts_another_tail, "tokens", SHORT),
        (mixes_adapters, "adapters", SHORT),
        (shares_prefixes_of_all_adapters, "tokens", SHORT),
        (copies_from_any_adapter, "tokens", replace(SHORT, npcs=96)),
        (leaks_samplers, "samplers", SHORT),
        (takes_everybody, "queues", SHORT),
        (reuses_too_much, "tokens", replace(SHORT, seconds=60.0)),
        (waits_while_busy, "gold", SHORT),
        (waits_too_long, "gold", QUIET),
        (takes_one_gold_at_a_time, "gold", SHORT),
        (takes_all_gold, "room", replace(HARD_TIMES, cost=SimCost(token_us=300.0))),
        (does_not_rotate, "rotation", SLOW),
        (knows_no_hunger, "progress", replace(HARD_TIMES, promises=PROMISES)),
        (lets_silver_have_all_lanes, "bronze", CROWDED),
        (gives_no_way, "way", SCARCE),
        (passes_over, "turns", SCARCE),
    ],
)
def test_a_broken_scheduler_is_caught_by_its_law(
    fault: Fault, law: str, settings: WorldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken law is the one that the fault is planted against."""
    world = World(1, settings)
    fault(world, monkeypatch)
    with pytest.raises(Broken, match=rf"^{law}: "):
        world.run()


def test_a_reply_that_replaces_the_trunk_of_another_work_is_caught_by_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next step of that other work does not go on where its sequence ends."""
    world = World(1, SCARCE)
    adopts_over_others(world, monkeypatch)
    with pytest.raises(AssertionError, match=r"holds \d+ tokens|residents: "):
        world.run()


@pytest.mark.parametrize(
    "settings", [SHORT, QUIET, SLOW, CROWDED, SCARCE], ids=str.split("short quiet slow crowded scarce")
)
def test_without_a_fault_these_worlds_keep_every_law(settings: WorldSettings) -> None:
    """Without a planted fault the same worlds keep every law, so the fault is what breaks them."""
    World(1, settings).run()


def test_an_order_by_chance_is_another_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that does not follow from the seed changes the trace."""
    short = replace(SHORT, seconds=4.0)
    chance = random.Random()
    honest = World(1, short).run().trace

    def turn(c: Candidate) -> tuple[float, int]:
        return chance.random(), c.number

    monkeypatch.setattr(planner, "_turn", turn)
    assert World(1, short).run().trace != honest


def test_promises_of_the_hard_times_differ_in_the_bound_of_bronze_only() -> None:
    """Laws hold in the hard times because of the scheduler and not because of easier promises."""
    assert replace(HARD_TIMES.promises, bronze=PROMISES.bronze) == PROMISES

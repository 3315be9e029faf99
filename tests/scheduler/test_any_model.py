"""On models of any speed: players are answered in time while intents come faster than they can be answered.

The engine is simulated, with fixed costs of half a token for each step. Costs are learned as at a start. NPCs ask in
turn, 1.2 or 2 times as often as the engine alone could answer them, and one conversation goes on beside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from core.clock import MS, S
from core.words import Finish, Tier, TrunkKey
from core.work import Work
from engines.sim import SimCost
from scheduler.meter import percentile
from scheduler.warmup import sweep
from tests.scheduler.simulated import Sim, npc, words
from tiers.promises import Promises

PROMISES = Promises()
TAIL, ANSWER = 20, 3
LINE, REPLY = 20, 16
TRUNK = 60
TALKER = 900
NPC_EVERY_NS = S // 2  # each NPC asks anew so often


@dataclass
class Village:
    """The record of a run: times in nanoseconds."""

    first_ns: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    late: int = 0  # intents that came later than the rule's answer
    ends: dict[Finish, int] = field(default_factory=dict)
    gold_gap_ns: list[int] = field(default_factory=list)


def cost(token_ms: float) -> SimCost:
    """An engine with this cost of a token."""
    us = 1000.0 * token_ms
    return SimCost(step_us=us / 4, micro_us=us / 4, token_us=us, kilo_context_us=us / 50_000)


def intent(sim: Sim, n: int, at_ns: int) -> Work:
    """An intent of one NPC that was due then."""
    deadline_ns = PROMISES.deadline_ns(Tier.GOLD, at_ns)
    key = TrunkKey(npc(n), "")
    return Work(
        Tier.GOLD, key, words(n), words(*range(TAIL)), ANSWER, due_ns=at_ns, deadline_ns=deadline_ns, supersede=n
    )


def line(sim: Sim) -> Work:
    """A line to an NPC whose trunk is there."""
    now = sim.clock()
    deadline_ns = PROMISES.deadline_ns(Tier.SILVER, now)
    key = TrunkKey(npc(TALKER), "player")
    return Work(Tier.SILVER, key, words(*range(TRUNK)), words(*range(LINE)), REPLY, due_ns=now, deadline_ns=deadline_ns)


def engine(token_ms: float) -> Sim:
    """A scheduler that has learned what steps cost."""
    sim = Sim(sequences=160, context_len=1024, cost=cost(token_ms))
    sweep(sim.engine, sim.scheduler.costs, sim.clock, 60.0)
    return sim


def alone(token_ms: float) -> tuple[float, float, float]:
    """(first text, tokens a second of a reply, intents a second) of an engine that does nothing else."""
    sim = engine(token_ms)
    sim.submit(line(sim))
    sim.run()
    ticket = sim.submit(line(sim))
    sim.run()
    t = sim.ended[ticket].timings
    count, began = 24, sim.clock()
    for n in range(count):
        sim.submit(intent(sim, n, sim.clock()))
    sim.run()
    return t.first_ns - t.submitted_ns, (REPLY - 1) * S / (t.last_ns - t.first_ns), count * S / (sim.clock() - began)


def played(token_ms: float, load: float, seconds: float) -> Village:
    """A village under load."""
    _, _, carries = alone(token_ms)
    sim, seen = engine(token_ms), Village()
    sim.submit(line(sim))
    sim.run()
    began_ns = due_ns = sim.clock()
    every_ns = round(S / (load * carries))
    npcs = max(1, round(NPC_EVERY_NS / every_ns))
    asked: dict[int, tuple[int, int]] = {}
    number, talk, rest_ns = 0, 0, began_ns + S // 3
    while sim.clock() < began_ns + seconds * S:
        while due_ns <= sim.clock():
            asked[sim.submit(intent(sim, number % npcs, due_ns))] = (number % npcs, due_ns)
            number += 1
            due_ns = began_ns + number * every_ns
        if not talk and sim.clock() >= rest_ns:
            talk = sim.submit(line(sim))
        if not sim.step():
            sim.clock.advance(max(1, due_ns - sim.clock()))
        if talk in sim.ended:
            t = sim.ended[talk].timings
            seen.first_ns.append(t.first_ns - t.submitted_ns)
            seen.rates.append((REPLY - 1) * S / (t.last_ns - t.first_ns))
            talk, rest_ns = 0, sim.clock() + S
    for ticket, (n, at_ns) in asked.items():
        ended = sim.ended.get(ticket)
        if ended is None:
            continue
        seen.ends[ended.finish] = seen.ends.get(ended.finish, 0) + 1
        if ended.finish is Finish.LENGTH:
            seen.answered.add(n)
            seen.late += ended.timings.last_ns > at_ns + PROMISES.gold.wait_max_ms * MS
        if ended.finish is Finish.SUPERSEDED:
            assert ticket not in sim.taken, "an intent that ran was superseded"
    assert seen.answered == set(range(npcs)), f"{npcs - len(seen.answered)} of {npcs} NPCs were never answered"
    return seen


@pytest.mark.parametrize("load", [1.2, 2.0])
@pytest.mark.parametrize("token_ms", [0.3, 3.0, 12.0, 40.0])
def test_a_player_is_answered_in_time_while_intents_overload_the_engine(token_ms: float, load: float) -> None:
    """The first text comes within its promise where the engine alone could do that in two thirds of it, else within
    1.5 times of alone. A reply has 8 tokens a second, or 0.7 of alone. Intents that Gold cannot do are superseded.
    """
    first_ns, rate, carries = alone(token_ms)
    seen = played(token_ms, load, seconds=8.0 if token_ms < 1 else 30.0)
    p95 = percentile(seen.first_ns, 0.95)
    print(
        f"{token_ms} ms, {load}: alone {first_ns / MS:.0f} ms, {rate:.0f} tokens/s, {carries:.1f} intents/s; first p50 "
        f"{percentile(seen.first_ns, 0.5) / MS:.0f} p95 {p95 / MS:.0f} ms of {len(seen.first_ns)}, rate "
        f"{min(seen.rates):.1f}, ends {seen.ends}, late {seen.late}"
    )
    assert p95 <= max(PROMISES.silver.first_ms * MS, 1.5 * first_ns)
    assert min(seen.rates) >= min(8.0, 0.7 * rate)
    assert seen.ends.get(Finish.SUPERSEDED, 0) > 0

"""No work waits for a lower tier longer than one step, whatever the lower work holds."""

from dataclasses import replace

import pytest

from core.clock import S
from core.words import Finish, Tier, TrunkKey
from core.work import Work
from scheduler.place import Part
from scheduler.placing import KvSettings
from tests.scheduler.simulated import Sim, npc, words
from tests.scheduler.test_fairness import PROMISES, gold, other

LONG = words(*range(900))


def sim_with(sequences: int = 40, lanes: int = 6) -> Sim:
    """A scheduler with so many lanes and sequences."""
    return Sim(sequences=sequences, context_len=2048, kv=KvSettings(prefixes=1, lanes=lanes, ram_mib=1))


def on(key: TrunkKey, tier: Tier, sim: Sim, max_tokens: int = 4, keep: bool = False) -> Work:
    """A work on a long trunk, due now."""
    now = sim.clock()
    tail = words(1, 2) if max_tokens else words()
    return Work(tier, key, LONG, tail, max_tokens, due_ns=now, deadline_ns=PROMISES.deadline_ns(tier, now), keep=keep)


def check_all_said_their_own(sim: Sim) -> None:
    """Each work that was put back gets in the end the tokens that it gets alone."""
    sim.run()
    for ticket, work in sim.submitted.items():
        if sim.ended[ticket].finish is not Finish.CANCELLED:
            assert sim.chunks[ticket] == sim.alone(work)


@pytest.mark.parametrize(
    ("lower", "higher"), [(Tier.BRONZE, Tier.SILVER), (Tier.BRONZE, Tier.GOLD), (Tier.SILVER, Tier.GOLD)]
)
@pytest.mark.parametrize("max_tokens", [0, 4], ids=["trunk only", "speaks"])
def test_a_lower_tier_that_computes_a_trunk_gives_it_up(lower: Tier, higher: Tier, max_tokens: int) -> None:
    """A work that computes its trunk gives the trunk to a higher tier in the step after that tier's work arrives."""
    sim = sim_with()
    key = TrunkKey(npc(1), "p")
    first = sim.submit(on(key, lower, sim))
    for _ in range(2):
        sim.step()
    assert sim.scheduler.running[first].place.part is Part.TRUNK
    second = sim.submit(on(key, higher, sim, max_tokens))
    sim.step()
    assert second in sim.taken
    assert sim.scheduler.put_back[lower] == 1
    check_all_said_their_own(sim)


def test_the_computed_part_of_a_trunk_stays_for_the_work_that_takes_it() -> None:
    """A work that is put back leaves its computed tokens, and goes on from there."""
    sim = sim_with()
    key = TrunkKey(npc(1), "p")
    first = sim.submit(on(key, Tier.BRONZE, sim))
    for _ in range(3):
        sim.step()
    held = sim.scheduler.running[first].place.trunk.held
    second = sim.submit(on(key, Tier.SILVER, sim))
    sim.run()
    assert 0 < held == sim.ended[second].timings.cached_tokens
    total = sum(sim.ended[t].timings.prefilled_tokens for t in (first, second))
    assert total == len(LONG) + 2 * 2  # the trunk once, both tails


def test_bronze_that_keeps_its_tokens_gives_its_trunk_up() -> None:
    """A Bronze work that keeps its tokens has its trunk to itself until it ends. It is put back while it speaks."""
    sim = sim_with()
    key = TrunkKey(npc(1), "p", fork="if")
    story = sim.submit(on(key, Tier.BRONZE, sim, 300, keep=True))
    sim.run(until=lambda: len(sim.chunks[story]) > 5)
    line = sim.submit(on(key, Tier.SILVER, sim))
    sim.step()
    assert line in sim.taken
    check_all_said_their_own(sim)


def test_silver_that_speaks_is_not_put_back_and_hurries() -> None:
    """Silver has its trunk to itself while it speaks. When Gold waits for that trunk, the Silver work runs as Gold
    until it lets go."""
    sim = sim_with()
    key = TrunkKey(npc(1), "p", fork="if")
    line = sim.submit(on(key, Tier.SILVER, sim, 20, keep=True))
    sim.run(until=lambda: len(sim.chunks[line]) > 2)
    intent = sim.submit(on(key, Tier.GOLD, sim))
    sim.step()
    assert intent not in sim.taken
    assert sim.scheduler.running[line].tier is Tier.GOLD
    assert sim.scheduler.put_back[Tier.SILVER] == 0
    sim.cancel(intent)
    sim.step()
    assert sim.scheduler.running[line].tier is Tier.SILVER
    check_all_said_their_own(sim)


@pytest.mark.parametrize("higher", [Tier.SILVER, Tier.GOLD])
def test_bronze_gives_a_sequence_up(higher: Tier) -> None:
    """Bronze computes trunks in every sequence. A higher tier gets one of the sequences in the next step."""
    sim = sim_with(sequences=9, lanes=4)  # 4 sequences are for trunks
    stories = [sim.submit(on(TrunkKey(npc(n), "s"), Tier.BRONZE, sim)) for n in range(4)]
    for _ in range(2):
        sim.step()
    assert not sim.scheduler.placer.homes.free
    late = sim.submit(on(TrunkKey(npc(9), "p"), higher, sim))
    sim.step()
    assert late in sim.taken
    assert stories[3] not in sim.scheduler.running  # the story that is due last, or arrived last
    check_all_said_their_own(sim)


def test_bronze_gives_a_lane_up_to_silver_that_is_retried() -> None:
    """Silver whose step failed does not wait for a lane that Bronze has taken meanwhile."""
    sim = Sim(kv=KvSettings(prefixes=1, lanes=1, ram_mib=1), fail_at=frozenset({6}))
    line = sim.submit(other(sim, Tier.SILVER, 1, 30))
    sim.run(until=lambda: bool(sim.scheduler.retrying))
    story = other(sim, Tier.BRONZE, 2, 30)
    sim.submit(story)
    sim.step()
    assert line in sim.scheduler.running
    check_all_said_their_own(sim)


def test_no_work_is_put_back_in_vain() -> None:
    """Silver lacks its trunk, which Bronze holds, and a lane, which Silver holds. It takes the trunk only when it has a
    lane, too."""
    sim = sim_with(lanes=2)
    key = TrunkKey(npc(1), "p")
    story = sim.submit(on(key, Tier.BRONZE, sim))
    sim.step()
    lines = [sim.submit(other(sim, Tier.SILVER, 50 + n, 40)) for n in range(2)]
    sim.step()
    assert story not in sim.scheduler.running  # its lane was wanted
    again = sim.submit(on(key, Tier.SILVER, sim))
    sim.run(until=lambda: any(line in sim.ended for line in lines))
    assert sim.scheduler.put_back[Tier.BRONZE] == 1
    check_all_said_their_own(sim)
    assert sim.ended[again].timings.first_ns < sim.ended[story].timings.last_ns


def test_overdue_bronze_keeps_its_lane_from_silver_and_gives_its_trunk_to_gold() -> None:
    """Overdue Bronze counts as Silver, and Gold is higher than that."""
    sim = sim_with(lanes=1)
    key = TrunkKey(npc(1), "p")
    story = sim.submit(replace(on(key, Tier.BRONZE, sim), due_ns=-60 * S))
    sim.step()
    line = sim.submit(on(key, Tier.SILVER, sim))
    sim.step()
    assert line not in sim.taken
    assert story in sim.scheduler.running
    intent = sim.submit(on(key, Tier.GOLD, sim))
    sim.step()
    assert intent in sim.taken
    check_all_said_their_own(sim)


def test_works_that_only_bring_a_trunk_do_not_keep_a_higher_tiers_from_doing_so() -> None:
    """Bronze that only brings in a trunk does not stop Silver's preparation of it; it waits."""
    sim = sim_with()
    key = TrunkKey(npc(1), "p")
    ready = sim.submit(on(key, Tier.SILVER, sim, 0))
    sim.step()
    story = sim.submit(on(key, Tier.BRONZE, sim))
    sim.step()
    assert story not in sim.taken
    sim.run()
    assert sim.ended[ready].finish is Finish.STOP


def test_gold_leaves_some_sequences_to_others() -> None:
    """With more Gold than sequences, without end, a dialogue line is still answered."""
    sim = sim_with(sequences=21, lanes=4)  # 16 sequences are for trunks
    line = sim.submit(other(sim, Tier.SILVER, 99, 4))
    n = 0
    while line not in sim.ended:
        while len(sim.scheduler.admission.queues.of[Tier.GOLD]) < 20:
            sim.submit(gold(sim, n := n + 1))
        sim.step()
        assert sim.clock() < S
    sim.run()

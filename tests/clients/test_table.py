"""The table's laws, without a network: order, snapshots, confirmations and ages."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest

from npcd_client.perception import Activation, GameClock
from npcd_client.table import IntentTable
from npcd_client.v1 import intents_pb2, words_pb2

MS = 1_000_000


def frame(*intents: intents_pb2.Intent, epoch: int = 1, **more: Any) -> intents_pb2.IntentFrame:
    return intents_pb2.IntentFrame(daemon_epoch=epoch, intents=intents, **more)


def intent(version: int, tick: int = 0, npc_id: str = "a", age_ms: int = 0, ttl_ms: int = 0) -> intents_pb2.Intent:
    return intents_pb2.Intent(npc_id=npc_id, version=version, observed_tick=tick, age_ms=age_ms, ttl_ms=ttl_ms)


def test_the_age_counts_from_the_send_of_the_observation_it_agrees_with() -> None:
    table = IntentTable(GameClock())
    table.sent("a", 1, 100 * MS)
    table.sent("a", 2, 200 * MS)
    table.apply(frame(intent(1, tick=1, age_ms=3)), 250 * MS)
    assert table.rows["a"].agreed_ns == 100 * MS


def test_without_a_remembered_send_the_daemons_age_counts() -> None:
    table = IntentTable(GameClock())
    table.apply(frame(intent(1, tick=1, age_ms=30)), 250 * MS)
    assert table.rows["a"].agreed_ns == 220 * MS


def test_a_confirmation_resets_the_age_and_changes_nothing_else() -> None:
    table = IntentTable(GameClock())
    for tick in (1, 2, 3):
        table.sent("a", tick, tick * 100 * MS)
    table.apply(frame(intent(1, tick=1)), 150 * MS)
    before = table.rows["a"]
    confirmed = intents_pb2.IntentConfirmed(npc_id="a", version=1, observed_tick=3, game_time_ms=77)
    assert table.apply(frame(confirmed=[confirmed]), 350 * MS) == []
    after = table.rows["a"]
    assert (after.agreed_ns, after.observed_tick, after.game_time_ms) == (300 * MS, 3, 77)
    assert (before.version, before.agreed_ns) == (after.version, 100 * MS), "a row that was handed out never changes"


def test_a_confirmation_of_another_version_or_of_an_older_tick_is_left_out() -> None:
    table = IntentTable(GameClock())
    table.sent("a", 5, 500 * MS)
    table.apply(frame(intent(2, tick=5)), 600 * MS)
    for confirmed in (
        intents_pb2.IntentConfirmed(npc_id="a", version=1, observed_tick=9),
        intents_pb2.IntentConfirmed(npc_id="a", version=2, observed_tick=4),
        intents_pb2.IntentConfirmed(npc_id="b", version=1, observed_tick=9),
    ):
        table.apply(frame(confirmed=[confirmed]), 700 * MS)
    assert table.rows["a"].observed_tick == 5 and table.rows["a"].agreed_ns == 500 * MS


def test_a_snapshot_stands_even_from_a_daemon_that_lost_its_epoch() -> None:
    table = IntentTable(GameClock())
    table.apply(frame(intent(9), intent(9, npc_id="b"), epoch=5), 0)
    fresh = table.apply(frame(intent(1), epoch=1, snapshot=True), 0)
    assert set(table.rows) == {"a"} and fresh[0].version == 1 and table.rows["a"].daemon_epoch == 1


def test_a_snapshot_of_what_is_known_tells_nothing_new() -> None:
    table = IntentTable(GameClock())
    table.apply(frame(intent(9)), 0)
    assert table.apply(frame(intent(9), snapshot=True), 0) == []


def attends(**levels: words_pb2.Activation.ValueType) -> list[intents_pb2.ActivationChanged]:
    return [intents_pb2.ActivationChanged(npc_id=npc_id, activation=level) for npc_id, level in levels.items()]


def test_activations_are_those_of_the_snapshot_and_of_the_changes_since() -> None:
    """An NPC that is in neither is ambient, so a world of ten thousand NPCs costs as much as its few active ones."""
    active, warm = words_pb2.ACTIVATION_ACTIVE, words_pb2.ACTIVATION_WARM
    table = IntentTable(GameClock())
    table.apply(frame(snapshot=True, activations=attends(a=active, b=warm)), 0)
    assert table.activations == {"a": Activation.ACTIVE, "b": Activation.WARM}
    table.apply(frame(activations=attends(a=words_pb2.ACTIVATION_AMBIENT, b=active, c=warm)), 0)
    assert table.activations == {"b": Activation.ACTIVE, "c": Activation.WARM}
    before = table.activations
    table.apply(frame(snapshot=True, activations=attends(c=active)), 0)
    assert table.activations == {"c": Activation.ACTIVE}
    assert before == {"b": Activation.ACTIVE, "c": Activation.WARM}, "a snapshot replaces the table as a whole"
    table.apply(frame(activations=attends(c=words_pb2.Activation.ValueType(77))), 0)
    assert table.activations == {"c": Activation.UNSPECIFIED}, "a level of a newer contract"


def test_the_send_memory_is_bounded() -> None:
    table = IntentTable(GameClock(), sends_max=8)
    for tick in range(1000):
        table.sent("a", tick, tick)
    assert list(table._sends["a"]) == list(range(992, 1000))


def test_random_frames_keep_order() -> None:
    """As in a simple twin, the table holds per NPC the row with the greatest (epoch, version) since the last
    snapshot."""
    for seed in range(50):
        chance = random.Random(seed)
        table = IntentTable(GameClock())
        dumb: dict[str, tuple[int, int]] = {}
        for _ in range(200):
            snapshot = chance.random() < 0.05
            epoch = chance.randint(1, 3)
            given = {n: chance.randint(1, 20) for n in "abc" if chance.random() < 0.5}
            table.apply(frame(*(intent(v, npc_id=n) for n, v in given.items()), epoch=epoch, snapshot=snapshot), 0)
            if snapshot:
                dumb = {}
            for npc_id, version in given.items():
                dumb[npc_id] = (epoch, version) if snapshot else max(dumb.get(npc_id, (0, 0)), (epoch, version))
            assert {n: (i.daemon_epoch, i.version) for n, i in table.rows.items()} == dumb, f"seed {seed}"


def test_an_intent_expires_on_game_time() -> None:
    clock = GameClock()
    table = IntentTable(clock)
    clock.tell(10_000, paused=True)
    table.apply(frame(intents_pb2.Intent(npc_id="a", version=1, game_time_ms=9_000, ttl_ms=1_500)), 0)
    held = table.rows["a"]
    assert not held.expired
    clock.tell(10_501, paused=True)
    assert held.expired
    table.apply(frame(intents_pb2.Intent(npc_id="a", version=2, game_time_ms=9_000, ttl_ms=0)), 0)
    assert not table.rows["a"].expired


def test_game_time_is_extrapolated_at_its_scale() -> None:
    clock = GameClock()
    before_ns = time.monotonic_ns()
    clock.tell(1_000, time_scale=60.0)
    after_ns = time.monotonic_ns()
    assert clock.game_time_ms(before_ns) <= 1_000 <= clock.game_time_ms(after_ns)
    assert round(clock.game_time_ms(after_ns + 50 * MS) - clock.game_time_ms(after_ns)) == 3_000
    assert clock.time_scale == 60.0 and not clock.paused


def confirmed(tick: int, lease: int = 0, age_ms: int = 0, version: int = 1) -> intents_pb2.IntentConfirmed:
    return intents_pb2.IntentConfirmed(
        npc_id="a", version=version, observed_tick=tick, game_time_ms=tick, age_ms=age_ms, lease_epoch=lease
    )


@pytest.mark.parametrize("told", [True, False])
def test_a_confirmation_after_a_new_lease_keeps_the_intent_young(told: bool) -> None:
    """Ticks start anew with a lease, so the lower tick is the newer one. This holds also for a daemon that sends no
    lease."""
    table = IntentTable(GameClock())
    table.sent("a", 500, 100 * MS, 7)
    first = intents_pb2.Intent(npc_id="a", version=1, observed_tick=500, lease_epoch=7 if told else 0)
    table.apply(frame(first), 150 * MS)
    for tick in (1, 2, 3):
        table.sent("a", tick, (1000 + tick) * MS, 8)
        table.apply(frame(confirmed=[confirmed(tick, 8 if told else 0)]), 2000 * MS)
        held = table.rows["a"]
        assert (held.observed_tick, held.game_time_ms, held.agreed_ns) == (tick, tick, (1000 + tick) * MS)


def test_a_confirmation_under_an_older_lease_is_ignored() -> None:
    """A confirmation under the previous lease, or of an older tick, changes nothing."""
    table = IntentTable(GameClock())
    table.sent("a", 3, 300 * MS, 8)
    table.apply(frame(intents_pb2.Intent(npc_id="a", version=1, observed_tick=3, lease_epoch=8)), 350 * MS)
    for late in (confirmed(900, 7), confirmed(2, 8), confirmed(3, 8)):
        table.apply(frame(confirmed=[late]), 400 * MS)
    assert (table.rows["a"].observed_tick, table.rows["a"].agreed_ns) == (3, 300 * MS)


def test_an_onlookers_intent_is_as_young_as_the_daemon_says() -> None:
    """An intent for another game server's observation has the age that the daemon states, even if one of our ticks has
    the same number."""
    table = IntentTable(GameClock())
    table.sent("a", 40, 10 * MS, 7)  # ours, before the other server took the lease
    other = intents_pb2.Intent(npc_id="a", version=1, observed_tick=39, lease_epoch=8, age_ms=5)
    table.apply(frame(other), 1000 * MS)
    assert table.rows["a"].agreed_ns == 995 * MS
    table.apply(frame(confirmed=[confirmed(40, 8, age_ms=2)]), 2000 * MS)
    assert (table.rows["a"].observed_tick, table.rows["a"].agreed_ns) == (40, 1998 * MS)


def test_an_intent_of_a_time_that_a_loaded_save_undid_is_over() -> None:
    """An intent ends when game time goes back by more than the intent's time to live. It stays when game time goes back
    by less."""
    clock = GameClock()
    table = IntentTable(clock)
    clock.tell(500_000, paused=True)
    table.apply(frame(intents_pb2.Intent(npc_id="a", version=1, game_time_ms=500_000, ttl_ms=4_000)), 0)
    clock.tell(499_990, paused=True)
    assert not table.rows["a"].expired
    clock.tell(1_000, paused=True)
    assert table.rows["a"].expired


@pytest.mark.parametrize("told", [(math.nan, 1.0), (math.inf, 1.0), (0.0, -1.0), (0.0, math.nan), (0.0, 1e7)])
def test_a_time_that_is_none_is_refused_where_it_is_told(told: tuple[float, float]) -> None:
    """tell() raises for a number that the contract cannot carry, and the clock goes on as before."""
    clock = GameClock()
    clock.tell(77, paused=True)
    with pytest.raises(ValueError, match=r"game_time_ms|time_scale"):
        clock.tell(*told)
    assert clock.game_time_ms() == 77


@pytest.mark.parametrize(("told", "carried"), [(-5.0, 0), (1e300, 2**64 - 1), (2.0**64, 2**64 - 1), (7.9, 7)])
def test_any_game_time_can_be_carried(told: float, carried: int) -> None:
    """Negative and huge game times are sent as the nearest values that the contract has."""
    clock = GameClock()
    clock.tell(told, paused=True)
    assert clock.whole_ms() == carried
    assert intents_pb2.ObservationFrame(game_time_ms=clock.whole_ms()).game_time_ms == carried

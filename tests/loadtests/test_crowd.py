"""The crowd: a recording with the promised contents, in bytes that npcd reads, and a game server's books of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from daemon.words import observation
from loadtests.board import Board
from loadtests.crowd import PLAYER_SEEN_M, record_crowd
from loadtests.recorded_game import EVENT_LASTS_MS, RecordedGame
from loadtests.recording import Recording, frame_bytes, village_played
from loadtests.scene import CrowdPlan, load_scene
from loadtests.slots import Slots
from loadtests.village import Village
from npcd.v1 import intents_pb2 as daemon_pb2
from npcd_client import IntentSource
from npcd_client.v1 import intents_pb2, words_pb2
from prompts.sight import state_of

NPCS = 60
SECONDS = 12.0
RATE_HZ = 10
PLAN = CrowdPlan(players=3, spread=2.0, change_every_s=1.0, times=("day", "dusk", "night", "dawn"))
FPS, EVERY = 30, 3
MS = 1_000_000


def made(seed: int = 7) -> Recording:
    scene = load_scene()
    return record_crowd(scene, scene.residents(NPCS), PLAN, SECONDS, RATE_HZ, seed)


@pytest.fixture(scope="module")
def crowd() -> Recording:
    return made()


def read(body: bytes) -> intents_pb2.Observation:
    return intents_pb2.Observation.FromString(body)


def test_every_sight_is_an_observation_that_npcd_takes(crowd: Recording) -> None:
    """Each has a place, percepts within reach, the nearest player, and a state that changes exactly when npcd's
    does."""
    states: dict[str, str] = {}
    here: dict[str, str] = {}
    changes, reach_m = 0, load_scene().see_m
    for sights in crowd.sights:
        for resident, sight in zip(crowd.residents, sights, strict=True):
            said = read(sight.body)
            assert said.npc_id == resident.npc_id and said.has_health
            state = state_of(observation(daemon_pb2.Observation.FromString(sight.body), 0, 0), 5)
            npc_id = said.npc_id
            if npc_id in states:
                assert (state != states[npc_id]) == (sight.state != here[npc_id]), (state, states[npc_id])
                changes += state != states[npc_id]
            states[npc_id], here[npc_id] = state, sight.state
            assert all(p.distance_m <= (PLAYER_SEEN_M if p.kind == "player" else reach_m) for p in said.percepts)
            assert sum(p.kind == "player" for p in said.percepts) <= 1
            assert resident.npc_id not in {p.entity_id for p in said.percepts}
    assert changes > NPCS


def test_nobody_changes_twice_within_a_second(crowd: Recording) -> None:
    """The load promises that for its NPCs, apart from players' lines."""
    changed = {n: [0] for n in range(NPCS)}
    for round_, (before, after) in enumerate(pairwise(crowd.sights), 1):
        for n, (was, is_) in enumerate(zip(before, after, strict=True)):
            if was.state != is_.state:
                changed[n].append(round_)
    gaps = [b - a for moments in changed.values() for a, b in pairwise(moments)]
    assert gaps and min(gaps) >= RATE_HZ * PLAN.change_every_s


def test_the_same_seed_sees_the_same_and_another_does_not(crowd: Recording) -> None:
    again, other = made(), made(seed=8)
    assert again.sights == crowd.sights
    assert other.sights != crowd.sights


def test_people_and_players_walk_no_faster_than_they_can(crowd: Recording) -> None:
    """Positions of two rounds in a row are a step apart. Players come near and leave again."""
    at = np.array([[(o.x_m, o.z_m) for o in (read(s.body) for s in sights)] for sights in crowd.sights])
    steps_m = np.hypot(*np.moveaxis(np.diff(at, axis=0), 2, 0))
    assert 0 < steps_m.max() <= 1.2 / RATE_HZ + 1e-9
    assert (steps_m > 0).mean() < 0.6, "most of the time people stand"
    players = [[p.distance_m for p in read(s.body).percepts if p.kind == "player"] for s in crowd.sights[0]]
    assert sum(map(bool, players)) > NPCS / 4


def test_a_frame_of_bytes_is_the_message(crowd: Recording) -> None:
    bodies = [sight.body for sight in crowd.sights[0]] + [b"", b"\x0a\x01a"]
    frame = intents_pb2.ObservationFrame.FromString(
        frame_bytes(intents_pb2.ObservationFrame(world_id="w", frame=3, game_time_ms=9), bodies)
    )
    assert (frame.world_id, frame.frame, frame.game_time_ms) == ("w", 3, 9)
    assert [o.SerializeToString(deterministic=True) for o in frame.observations] == [
        read(body).SerializeToString(deterministic=True) for body in bodies
    ]


def game(crowd: Recording) -> RecordedGame:
    leases = {resident.npc_id: 4 + n for n, resident in enumerate(crowd.residents)}
    return RecordedGame(crowd, "w", leases, Board(NPCS, Slots(NPCS)), FPS)


def test_each_npc_is_observed_ten_times_a_second_under_its_lease(crowd: Recording) -> None:
    """Each NPC is in every third frame, with ticks that grow. A later stream goes on from the last tick."""
    g, ticks = game(crowd), {r.npc_id: [0] for r in crowd.residents}
    for number in range(2 * FPS):
        frame = intents_pb2.ObservationFrame.FromString(g.frame(number, number))
        assert len(frame.observations) == NPCS / EVERY
        for said in frame.observations:
            ticks[said.npc_id].append(said.tick)
            assert said.lease_epoch == 4 + [r.npc_id for r in crowd.residents].index(said.npc_id)
    assert all(len(seen) - 1 == 2 * RATE_HZ and seen == sorted(set(seen)) for seen in ticks.values())
    later = RecordedGame(crowd, "w", dict.fromkeys(ticks, 1), Board(NPCS, Slots(NPCS)), FPS, g.tick)
    frame = intents_pb2.ObservationFrame.FromString(later.frame(0, 0))
    assert min(said.tick for said in frame.observations) > max(map(max, ticks.values()))


def test_a_talking_player_is_seen_and_a_line_is_heard_for_a_while(crowd: Recording) -> None:
    g = game(crowd)
    npc_id = crowd.residents[0].npc_id

    def sees(number: int) -> intents_pb2.Observation:
        frame = intents_pb2.ObservationFrame.FromString(g.frame(number, 0))
        return next(said for said in frame.observations if said.npc_id == npc_id)

    before = len(sees(0).percepts)
    g.meet(npc_id, "player-9")
    g.tell(npc_id, "spoken_to", 100.0)
    seen = sees(EVERY)
    assert seen.percepts[-1].entity_id == "player-9" and seen.events[-1] == "spoken_to"
    later = sees(EVERY * (1 + int((EVENT_LASTS_MS + 100) / 1000 * RATE_HZ)))
    assert "spoken_to" not in later.events and "player-9" in {p.entity_id for p in later.percepts}
    g.part(npc_id)
    assert len(sees(EVERY).percepts) <= before + 1
    assert "player-9" not in {p.entity_id for p in sees(EVERY).percepts}


def test_only_active_npcs_have_ages_and_ambient_ones_no_slots(crowd: Recording) -> None:
    """The frame says who is active. Intents of other NPCs may have any age."""
    g, board = game(crowd), Board(NPCS, Slots(NPCS))
    g.board = board
    first, second = crowd.residents[0].npc_id, crowd.residents[1].npc_id
    g.take(
        intents_pb2.IntentFrame(
            daemon_epoch=1,
            snapshot=True,
            activations=[intents_pb2.ActivationChanged(npc_id=first, activation=words_pb2.ACTIVATION_ACTIVE)],
        ),
        0,
    )
    for number in range(EVERY):
        g.frame(number, 10 * MS)
    assert board.slots.due == 1, "the one that is active"
    g.sample(0, 20 * MS)
    assert (board.unanswered_samples, board.intent_age.count, board.active.mean) == (1, 0, 1.0)
    answers = [
        intents_pb2.Intent(npc_id=i, version=1, observed_tick=1, source=intents_pb2.INTENT_SOURCE_MODEL, latency_ms=3)
        for i in (first, second)
    ]
    g.take(intents_pb2.IntentFrame(daemon_epoch=1, intents=answers), 25 * MS)
    g.sample(1, 30 * MS)
    assert board.intent_age.count == 1 and board.intent_age.largest == pytest.approx(20)
    assert board.slots.by_source["model"] == 1 and board.versions["model"] == 2
    assert g.table.rows[second].source is IntentSource.MODEL


def test_a_village_is_recorded_as_it_is_played() -> None:
    """Its NPCs follow the world's policy and ask for full attention. The same village sees the same again."""
    scene = load_scene()
    first, second = (village_played(Village(scene, 20, 7), 3.0, RATE_HZ) for _ in range(2))
    assert first.sights == second.sights and len(first.sights) == 30
    said = [read(sight.body) for sight in first.sights[-1]]
    assert [o.npc_id for o in said] == [resident.npc_id for resident in first.residents]
    assert all(o.has_activation and o.activation == words_pb2.ACTIVATION_ACTIVE for o in said)
    assert any(o.vx_mps or o.vz_mps for o in said), "somebody does something"
    assert all(not o.tick and not o.lease_epoch for o in said)

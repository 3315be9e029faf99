"""The simulation: the same seed gives the same village, intents move bodies, percepts come from positions."""

from __future__ import annotations

import math

from loadtests.scene import load_scene
from loadtests.village import LEASH_M, PLAYER_ID, Village
from npcd_client import Observation

SCENE = load_scene()
FRAME_MS = 1000 / 300


def play(seed: int, frames: int, action: str = "wander", step: int = 1) -> list[Observation]:
    village = Village(SCENE, 12, seed)
    for number in range(12):
        village.intend(number, action, "", "calm")
    for frame in range(0, frames, step):
        village.step((frame + step) * FRAME_MS)
    return [village.observe(number, 1) for number in range(12)]


def distance_m(village: Village, a: int, b: int) -> float:
    first, second = village.bodies[a], village.bodies[b]
    return math.hypot(first.x - second.x, first.y - second.y)


def test_the_same_seed_and_intents_make_the_same_village() -> None:
    assert play(3, 900) == play(3, 900)
    assert play(3, 900) != play(4, 900)


def test_skipped_frames_change_positions_only_a_little() -> None:
    for fine, coarse in zip(play(3, 900), play(3, 900, step=3), strict=True):
        assert math.dist(fine.position_m, coarse.position_m) < 0.1


def test_approach_goes_to_the_target_and_flee_away_from_it() -> None:
    village = Village(SCENE, 12, 1)
    target = village.bodies[1].resident.npc_id
    before = distance_m(village, 0, 1)
    village.intend(0, "approach", target, "curious")
    for frame in range(300):
        village.step(frame * FRAME_MS)
    nearer = distance_m(village, 0, 1)
    assert nearer < before - 1
    village.intend(0, "flee", target, "afraid")
    for frame in range(300, 600):
        village.step(frame * FRAME_MS)
    assert distance_m(village, 0, 1) > nearer + 1


def test_nobody_leaves_its_leash() -> None:
    village = Village(SCENE, 24, 1)
    for number in range(24):
        village.intend(number, "flee", PLAYER_ID, "afraid")
    for step in range(600):
        village.step(step * 100.0)
        for body in village.bodies:
            assert math.dist((body.x, body.y), body.home_m) < LEASH_M + 1


def test_percepts_are_the_nearest_with_stances_of_their_kind() -> None:
    village = Village(SCENE, 24, 1)
    village.step(10.0)
    for number, body in enumerate(village.bodies):
        seen = village.observe(number, 1)
        distances = [percept.distance_m for percept in seen.percepts]
        assert distances == sorted(distances) and len(distances) <= SCENE.percepts_max
        assert all(d <= SCENE.see_m for d in distances)
        assert body.resident.npc_id not in {percept.entity_id for percept in seen.percepts}
        if body.resident.archetype_id == "villager":
            for percept in seen.percepts:
                assert percept.kind != "zombie" or percept.stance == "hostile"


def test_an_attack_hurts_is_noticed_and_makes_an_enemy() -> None:
    village = Village(SCENE, 12, 1)
    attacker, victim = village.bodies[0].resident.npc_id, village.bodies[1].resident.npc_id
    village.bodies[0].x, village.bodies[0].y = village.bodies[1].x + 1, village.bodies[1].y
    village.intend(0, "attack", victim, "angry")
    village.step(10.0)
    seen = village.observe(1, 1)
    assert seen.events == ("attacked",) and seen.health is not None and seen.health < 1
    assert next(p for p in seen.percepts if p.entity_id == attacker).stance == "hostile"
    village.intend(0, "idle", "", "calm")
    village.step(5_000.0)
    assert "attacked" not in village.observe(1, 2).events


def test_the_day_passes_and_bells_and_noises_come() -> None:
    village = Village(SCENE, 24, 1)
    times: set[str] = set()
    events: set[str] = set()
    for step in range(400):
        village.step(step * 100.0)
        seen = village.observe(step % 24, step)
        times.add(seen.time_of_day)
        events.update(seen.events)
    assert times == set(SCENE.times)
    assert {"bell_rang", "heard_noise"} <= events

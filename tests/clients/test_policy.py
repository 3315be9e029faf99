"""The rule policy answers every shared vector as written. The other clients and the daemon read the same file of
vectors."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from core import observation as observed
from npcd_client import Observation, Percept, Policy, PolicyRow, evaluate
from tiers import policy as daemons

VECTORS = json.loads(
    (Path(__file__).resolve().parents[2] / "clients" / "conformance" / "policy_vectors.json").read_text("utf-8")
)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    answer = evaluate(_policy(VECTORS["policies"][case["policy"]]), _seen(case), case["archetype_id"])
    expected = case["answer"]
    if expected is None:
        assert answer is None
    else:
        assert answer is not None
        assert {name: getattr(answer, name) for name in expected} == expected


def test_every_vector_has_a_name_of_its_own() -> None:
    names = [case["name"] for case in VECTORS["cases"]]
    assert len(names) == len(set(names))


CONDITIONS = ("archetype_id", "percept_kind", "percept_stance", "distance_max_m", "event", "health_max", "time_of_day")


def test_every_condition_makes_rows_hold_and_keeps_them_from_it() -> None:
    """The vectors find an evaluator that ignores one condition, and one that inverts it."""
    for name in CONDITIONS:
        answers = set()
        for case in VECTORS["cases"]:
            bare = [{k: v for k, v in row.items() if k != name} for row in VECTORS["policies"][case["policy"]]]
            given = evaluate(_policy(VECTORS["policies"][case["policy"]]), _seen(case), case["archetype_id"])
            answers.add(given == evaluate(_policy(bare), _seen(case), case["archetype_id"]))
        assert answers == {True, False}, f"no case depends on {name}"


@pytest.mark.parametrize("seed", range(20))
def test_the_daemon_says_the_same(seed: int) -> None:
    """In random tables and observations, with many ties and bounds that are met exactly, daemon and client give the
    same answer."""
    rng = random.Random(seed)
    for _ in range(200):
        rows = [_any_row(rng) for _ in range(rng.randint(0, 8))]
        percepts = [
            {
                "entity_id": rng.choice("abB9") + str(n),
                "kind": rng.choice(["player", "wolf"]),
                "stance": rng.choice(["", "hostile", "friendly"]),
                "distance_m": rng.choice([0.0, 1.0, 2.0, 2.5]),
                "in_sight": rng.random() < 0.5,
            }
            for n in range(rng.randint(0, 4))
        ]
        case = {
            "observation": {
                "percepts": percepts,
                "events": rng.sample(["attacked", "spoken_to", "heard_noise"], rng.randint(0, 2)),
                "time_of_day": rng.choice(["", "day", "night"]),
                "health": rng.choice([0.0, 0.25, 0.5, 1.0]),
            }
        }
        archetype_id = rng.choice(["villager", "zombie"])
        here = evaluate(_policy(rows), _seen(case), archetype_id)
        there = daemons.evaluate([daemons.PolicyRow(**row) for row in rows], archetype_id, _daemons_sight(case))
        if here is None or there is None:
            assert here is None and there is None
            continue
        target = there.target.entity_id if there.target else ""
        assert (here.action, here.emotion, here.bark, here.target_entity_id) == (
            there.action, there.emotion, there.bark, target,
        )  # fmt: skip


def _any_row(rng: random.Random) -> dict[str, Any]:
    said = {
        "archetype_id": rng.choice(["", "", "villager", "zombie"]),
        "percept_kind": rng.choice(["", "player", "wolf"]),
        "percept_stance": rng.choice(["", "", "hostile", "friendly"]),
        "distance_max_m": rng.choice([0.0, 0.0, 1.0, 2.0]),
        "event": rng.choice(["", "", "attacked", "spoken_to"]),
        "health_max": rng.choice([0.0, 0.0, 0.25, 0.5]),
        "time_of_day": rng.choice(["", "", "day", "night"]),
    }
    return said | {"action": f"act{rng.random()}", "emotion": "calm", "bark": rng.choice(["", "Ha."])}


def _policy(rows: list[dict[str, Any]]) -> Policy:
    return Policy(tuple(PolicyRow(**row) for row in rows))


def _seen(case: dict[str, Any]) -> Observation:
    said = case["observation"]
    return Observation(
        npc_id="npc",
        tick=1,
        health=said.get("health"),
        time_of_day=said.get("time_of_day", ""),
        percepts=tuple(Percept(**percept) for percept in said.get("percepts", [])),
        events=tuple(said.get("events", [])),
    )


def _daemons_sight(case: dict[str, Any]) -> observed.Observation:
    said = case["observation"]
    return observed.Observation(
        tick=1,
        percepts=tuple(observed.Percept(**p) for p in said["percepts"]),
        events=tuple(said["events"]),
        time_of_day=said["time_of_day"],
        health=said["health"],
    )

"""The rule policy answers every shared vector as written; the other clients and the daemon have the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npcd_client import Observation, Percept, Policy, PolicyRow, evaluate

VECTORS = json.loads(
    (Path(__file__).resolve().parents[2] / "clients" / "conformance" / "policy_vectors.json").read_text("utf-8")
)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    policy = Policy(tuple(PolicyRow(**row) for row in VECTORS["policies"][case["policy"]]))
    seen = case["observation"]
    observation = Observation(
        npc_id="npc",
        tick=1,
        health=seen.get("health"),
        time_of_day=seen.get("time_of_day", ""),
        percepts=tuple(Percept(**percept) for percept in seen.get("percepts", [])),
        events=tuple(seen.get("events", [])),
    )
    answer = evaluate(policy, observation, case["archetype_id"])
    expected = case["answer"]
    if expected is None:
        assert answer is None
    else:
        assert answer is not None
        assert {name: getattr(answer, name) for name in expected} == expected


def test_every_vector_has_a_name_of_its_own() -> None:
    names = [case["name"] for case in VECTORS["cases"]]
    assert len(names) == len(set(names))

"""The rule policy answers as the contract says, and equally in the daemon and in clients."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.observation import Observation, Percept
from tiers.policy import PolicyRow, evaluate

VECTORS = json.loads((Path(__file__).parents[2] / "clients/conformance/policy_vectors.json").read_text("utf-8"))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    """Every shared vector gives the stated answer."""
    rows = [PolicyRow(**row) for row in VECTORS["policies"][case["policy"]]]
    said = case["observation"]
    seen = Observation(
        tick=1,
        percepts=tuple(Percept(**p) for p in said.get("percepts", ())),
        events=tuple(said.get("events", ())),
        time_of_day=said.get("time_of_day", ""),
        health=said.get("health", 1.0),
    )
    answer = evaluate(rows, case["archetype_id"], seen)
    wanted = case["answer"]
    if wanted is None:
        assert answer is None
        return
    assert answer is not None
    given = {
        "action": answer.action,
        "emotion": answer.emotion,
        "bark": answer.bark,
        "target_entity_id": answer.target.entity_id if answer.target else "",
    }
    assert given == {name: wanted.get(name, "") for name in given}
    # This row gave the answer: no row before it holds.
    assert evaluate(rows[: wanted["row"]], case["archetype_id"], seen) is None
    assert evaluate(rows[wanted["row"] :][:1], case["archetype_id"], seen) == answer

"""The books on answers in time: slots that are due, their answers, and those that count as the policy's."""

from __future__ import annotations

import random
from dataclasses import replace

from loadtests.slots import ANSWER_MAX_MS, Slots, state_of
from npcd_client import GameClock, Intent, IntentSource, Observation, Percept

MODEL, POLICY, PREDICTED = IntentSource.MODEL, IntentSource.POLICY, IntentSource.PREDICTED


def intent(tick: int, source: IntentSource = MODEL, ttl_ms: int = 3000) -> Intent:
    return Intent("a", 1, 1, "idle", "", "calm", "", source, tick, 0, ttl_ms, "", 0, 0, 0.0, 0, GameClock())


def test_a_slot_is_due_once_and_only_when_something_changed() -> None:
    slots = Slots(1)
    for tick, state in enumerate(["x", "x", "y", "z", "x"], 1):
        slots.observed(0, tick, state, tick * 10)
    assert slots.due == 1, "the first observation of all, and no second one in the same slot"
    slots.observed(0, 6, "x", 500)
    assert slots.due == 1, "says the same as the slot before ended with"
    slots.observed(0, 7, "y", 600)
    slots.observed(0, 8, "z", 700)
    assert slots.due == 2


def test_the_answer_counts_under_its_source() -> None:
    slots = Slots(3)
    for number in range(3):
        slots.observed(number, 5, "x", 0)
    slots.answered(0, intent(5), 40)
    slots.answered(1, intent(5, PREDICTED), 40)
    slots.answered(2, intent(5, POLICY), 40)
    slots.close()
    assert slots.by_source == {"model": 1, "policy": 1, "predicted": 1} and slots.unanswered == 0
    assert round(slots.model_share, 3) == 0.667


def test_an_intent_for_an_older_observation_answers_nothing() -> None:
    slots = Slots(1)
    slots.observed(0, 5, "x", 0)
    slots.answered(0, intent(4), 40)
    slots.close()
    assert slots.by_source["policy"] == 1 and slots.unanswered == 1 and slots.model_share == 0


def test_a_later_model_answer_takes_the_place_of_the_policys() -> None:
    slots = Slots(1)
    slots.observed(0, 5, "x", 0)
    slots.answered(0, intent(5, POLICY), 20)
    slots.answered(0, intent(5, MODEL), 400)
    assert slots.by_source == {"model": 1, "policy": 0, "predicted": 0}


def test_an_answer_for_a_newer_state_counts_and_is_told_apart() -> None:
    slots = Slots(2)
    for number in range(2):
        slots.observed(number, 5, "x", 0)
        slots.observed(number, 6, "x", 100)
        slots.observed(number, 7, "y", 200)
    slots.answered(0, intent(6), 300)
    slots.answered(1, intent(7), 300)
    assert slots.by_source["model"] == 2 and slots.answered_for_newer == 1


def test_too_late_is_the_policys() -> None:
    slots = Slots(2)
    slots.observed(0, 5, "x", 0)
    slots.answered(0, intent(5), ANSWER_MAX_MS + 1)
    slots.observed(1, 5, "x", 0)
    slots.answered(1, intent(5, ttl_ms=100), 150)
    slots.close()
    assert slots.by_source["policy"] == 2


def test_every_due_slot_is_settled_exactly_once() -> None:
    """In random play due slots = settled + open at every step, and no slot stays open after close()."""
    for seed in range(30):
        chance = random.Random(seed)
        slots, tick = Slots(4), 0
        for now_ms in range(0, 20_000, 37):
            number = chance.randrange(4)
            if chance.random() < 0.6:
                tick += 1
                slots.observed(number, tick, chance.choice("xyz"), now_ms)
            else:
                answer = intent(max(0, tick - chance.randrange(6)), chance.choice((MODEL, POLICY, PREDICTED)))
                slots.answered(number, answer, now_ms)
            slots.expire(chance.randrange(4), now_ms)
            assert sum(slots.by_source.values()) + slots.open == slots.due, f"seed {seed} at {now_ms}"
        slots.close()
        assert slots.open == 0 and sum(slots.by_source.values()) == slots.due


def test_a_state_is_as_coarse_as_the_mind() -> None:
    seen = Observation("a", 1, health=0.9, place="mill", percepts=(Percept("w", "wolf", "hostile", 9.0),))
    assert state_of(seen) == state_of(replace(seen, tick=2, health=0.8, position_m=(5, 0, 5)))
    assert state_of(seen) == state_of(replace(seen, percepts=(Percept("w", "wolf", "hostile", 19.9),)))
    for other in (
        replace(seen, health=0.5),
        replace(seen, place="road"),
        replace(seen, events=("attacked",)),
        replace(seen, percepts=(Percept("w", "wolf", "hostile", 7.0),)),
        replace(seen, percepts=(Percept("w", "wolf", "neutral", 9.0),)),
        replace(seen, percepts=(Percept("v", "wolf", "hostile", 9.0),)),
        replace(seen, percepts=()),
    ):
        assert state_of(other) != state_of(seen), other

"""NPCs are asked at most once per slot, side by side in small groups, spread over the slot."""

import random

from core.words import Activation
from tiers.cadence import TOGETHER, CadenceSettings, due_ns, next_slot_ns, offset_ns

SLOT_NS = CadenceSettings(active_hz=2.0).slot_ns


def test_a_slot_is_half_a_second_at_two_hertz() -> None:
    """A rate of two hertz gives a slot of half a second."""
    assert SLOT_NS == 500_000_000


def test_less_attention_is_a_longer_slot() -> None:
    """Warm NPCs are asked a quarter as often as active ones, ambient NPCs never."""
    settings = CadenceSettings()
    slots = {activation: settings.slot_ns_of(activation) for activation in Activation}
    assert slots == {Activation.ACTIVE: SLOT_NS, Activation.WARM: 4 * SLOT_NS, Activation.AMBIENT: None}


def test_neighbours_have_one_offset_and_groups_are_spread() -> None:
    """TOGETHER neighbours are due at once. Of 100 NPCs no tenth of the slot holds more than a fifth."""
    offsets = [offset_ns(n, SLOT_NS) for n in range(100)]
    for first in range(0, 100, TOGETHER):
        assert len(set(offsets[first : first + TOGETHER])) == 1
    tenths = [p * 10 // SLOT_NS for p in offsets]
    assert max(tenths.count(t) for t in range(10)) <= 20


def test_next_slot_is_the_first_not_before() -> None:
    """For random NPCs and moments the slot lies in [after, after + slot)."""
    rng = random.Random(1)
    for _ in range(1000):
        number, after = rng.randrange(1000), rng.randrange(10**12)
        at = next_slot_ns(number, SLOT_NS, after)
        assert after <= at < after + SLOT_NS
        assert (at - offset_ns(number, SLOT_NS)) % SLOT_NS == 0


def test_first_question_is_due_at_once_and_later_ones_wait_for_their_slot() -> None:
    """An NPC that was never asked is due now. Later it is due after half a slot at the earliest and a slot and a half
    at the latest."""
    assert due_ns(3, SLOT_NS, 10**9, None, urgent=False) == 10**9
    rng = random.Random(2)
    for _ in range(1000):
        asked = rng.randrange(10**12)
        received = asked + rng.randrange(SLOT_NS)
        at = due_ns(rng.randrange(50), SLOT_NS, received, asked, urgent=False)
        assert asked + SLOT_NS // 2 < at <= asked + 2 * SLOT_NS + 1_000_000
        assert at >= received


def test_an_event_does_not_wait_for_the_slot() -> None:
    """An NPC that is attacked is due when the event arrives, but not twice within a quarter of a slot."""
    asked = 7 * 10**9
    assert due_ns(3, SLOT_NS, asked + SLOT_NS // 3, asked, urgent=True) == asked + SLOT_NS // 3
    assert due_ns(3, SLOT_NS, asked + 1, asked, urgent=True) == asked + SLOT_NS // 4

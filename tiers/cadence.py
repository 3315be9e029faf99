"""The moment at which an NPC's next intent is due: at most once per slot of its cadence, and only after a change.

The more attention, the shorter the slot. An ambient NPC has none: the rule policy answers for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.clock import MS
from core.errors import ConfigError
from core.words import Activation

# NPCs side by side in number are due side by side in time, so that their sequences form runs in a step.
TOGETHER = 4
# The golden ratio spreads any number of groups evenly over a slot, however many come later.
SPREAD = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class CadenceSettings:
    """How often an NPC whose state has changed is asked. An event (attacked, spoken to) waits for no slot."""

    active_hz: float = 2.0
    """Questions per second about an active NPC at most. From 0.1 to 20."""
    warm_hz: float = 0.5
    """Questions per second about a warm NPC at most; at least 0.01, `intents.cadence.active_hz` at most."""

    @property
    def slot_ns(self) -> int:
        """Length of an active NPC's slot."""
        return round(1e9 / self.active_hz)

    def slot_ns_of(self, activation: Activation) -> int | None:
        """Length of a slot at that level; None: the model is not asked on its own account."""
        if activation is Activation.AMBIENT:
            return None
        return round(1e9 / (self.active_hz if activation is Activation.ACTIVE else self.warm_hz))


def check_cadence(settings: CadenceSettings, section: str = "intents.cadence") -> None:
    """Checks bounds. Raises ConfigError naming the setting, which is in `section`."""
    if not 0.1 <= settings.active_hz <= 20:
        raise ConfigError(f"{section}.active_hz: {settings.active_hz:g}, must be 0.1 to 20")
    if not 0.01 <= settings.warm_hz <= settings.active_hz:
        raise ConfigError(
            f"{section}.warm_hz: {settings.warm_hz:g}, must be 0.01 to {section}.active_hz ({settings.active_hz:g})"
        )


def offset_ns(number: int, slot_ns: int) -> int:
    """The moment in its slot at which the NPC with that number is due."""
    return int((number // TOGETHER) * SPREAD % 1.0 * slot_ns)


def next_slot_ns(number: int, slot_ns: int, after_ns: int) -> int:
    """The first moment of the NPC's cadence that is not before `after_ns`."""
    offset = offset_ns(number, slot_ns)
    slots = -(-(after_ns - offset) // slot_ns)
    return offset + slots * slot_ns


def due_ns(number: int, slot_ns: int, received_ns: int, asked_ns: int | None, urgent: bool) -> int:
    """The moment at which an NPC that changed at `received_ns` is due; `asked_ns` is the last question (None: none).

    The first time and urgent changes are due at once, but never twice within a quarter of a slot.
    """
    if asked_ns is None:
        return received_ns
    if urgent:
        return max(received_ns, asked_ns + slot_ns // 4)
    # A slot that was used up is over when the next begins; half a slot keeps a late answer from asking twice in a row.
    return next_slot_ns(number, slot_ns, max(received_ns, asked_ns + slot_ns // 2 + MS))

"""Full collections happen when nobody waits, and not never."""

import gc

from core.clock import S
from daemon.tidy import EVERY_S, Tidy
from engines.sim import VirtualClock


def test_collects_when_idle_and_due_or_long_overdue() -> None:
    """Busy: not before ten times the interval. Idle: after one."""
    before = gc.get_threshold()
    clock = VirtualClock()
    tidy = Tidy(clock)
    try:
        tidy.start()
        assert gc.get_threshold()[2] > 1_000_000
        assert gc.get_freeze_count() > 0
        tidy.look(idle=True)
        assert tidy.full == 0
        clock.advance((EVERY_S + 1) * S)
        tidy.look(idle=False)
        assert tidy.full == 0
        tidy.look(idle=True)
        assert tidy.full == 1
        clock.advance(10 * EVERY_S * S)
        tidy.look(idle=False)
        assert tidy.full == 2
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)

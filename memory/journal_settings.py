"""The settings of the journal: memory/journal.py."""

from __future__ import annotations

from dataclasses import dataclass

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """The local journal, to which everything is written before it counts as accepted."""

    segment_mib: int = 64
    """Size at which a new file (segment) is begun."""
    fsync_ms: int = 100
    """The journal is synced to disk at this interval; 0: each batch is synced before it is accepted."""
    keep_hours: int = 48
    """Segments that every store has are kept for this long, unless their room is needed."""
    bytes_max_mib: int = 0
    """Size of the journal at most; 0: until the disk is full."""
    waiting_max: int = 20_000
    """Records that may wait for the disk; beyond that new ones are not accepted."""
    accept_ms: int = 2_000
    """A caller waits this long at most for a record to be accepted."""

    @property
    def keep_ms(self) -> int:
        """The age that a record reaches at least, in milliseconds."""
        return self.keep_hours * HOUR_MS

"""Forgets trunks and commits forks: at once, or when the last work that needs them has ended.

Runs on the engine thread between steps. Owns the keys that still have to be forgotten or committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.words import TrunkKey
from core.work import Work
from scheduler.placing import Placer


class LettingGo:
    """`works` gives every work that has not ended."""

    def __init__(self, placer: Placer, works: Callable[[], Iterable[Work]]) -> None:
        self._placer = placer
        self._works = works
        self._forget: set[TrunkKey] = set()
        self._commit: set[TrunkKey] = set()

    def forget(self, key: TrunkKey) -> None:
        """Forgets a trunk's KV; of a plain key with all adapters and forks."""
        keys = {t.key for t in self._placer.homes.of_npc(key.npc)} | {w.key for w in self._works()}
        for one in sorted(k for k in keys if key.covers(k)):
            self._commit.discard(one)
            if not self._placer.forget(one) or self._wanted(one):
                self._forget.add(one)

    def commit(self, fork: TrunkKey) -> None:
        """Makes a fork's KV its origin's, and ends the fork."""
        if self._wanted(fork) or not self._placer.commit(fork):
            self._commit.add(fork)

    def comes(self, key: TrunkKey) -> None:
        """A work of a trunk comes, so its KV stays after all."""
        self._forget.discard(key)

    def ended(self, key: TrunkKey) -> None:
        """A work of a trunk has ended. If it was the last one, what was to be done with the trunk is done now."""
        if key in self._forget and self._placer.forget(key) and not self._wanted(key):
            self._forget.discard(key)
        for fork in sorted(f for f in self._commit if f == key or f.origin == key):
            if not self._wanted(fork) and self._placer.commit(fork):
                self._commit.discard(fork)

    def _wanted(self, key: TrunkKey) -> bool:
        """True when a work that has not ended will bring this trunk back."""
        return any(work.key == key for work in self._works())

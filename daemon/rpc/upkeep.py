"""Records that the journal needs without a caller who waits: refused ones again, and old ones before they are deleted.

Owns one task in the background at a time. daemon/process/serve.py looks here once a second.
"""

from __future__ import annotations

import asyncio

import structlog

from core.clock import Clock
from core.errors import NotFound, StoreFailed
from core.words import NpcKey
from daemon.rpc.changes import SAVES, Changes
from daemon.rpc.forgetting import Forgetting
from daemon.rpc.owed import Owed
from daemon.rpc.world_records import WorldRecords
from daemon.worlds.worlds import Worlds
from memory.memory import Memory

CARRIED_PARTS = 4  # so often in the time that the journal keeps a record

log = structlog.get_logger("npcd")


class Upkeep:
    """Pays what is owed (daemon/rpc/owed.py), and carries on what would be deleted with the journal's old segments."""

    def __init__(
        self,
        worlds: Worlds,
        memory: Memory,
        records: WorldRecords,
        forgetting: Forgetting,
        owed: Owed,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._worlds = worlds
        self._memory = memory
        self._records = records
        self._forgetting = forgetting
        self.owed = owed
        self._changes = changes
        self._clock = clock
        self._carry_ms = 0
        self._trying: asyncio.Task[None] | None = None

    def look_after(self, now_ns: int) -> None:
        """Once a second: tries again all that is owed, in the background, when the journal can be written."""
        journal = self._memory.journal
        if (journal is not None and journal.degraded) or not self.idle:
            return
        if self.owed.due(now_ns):
            self._trying = asyncio.create_task(self._try_again())
        elif journal is not None and self._memory.recent_feeder is None and self._memory.wall_ms() >= self._carry_ms:
            # The journal is the only store, and old segments are deleted: records that must stay are written again.
            self._carry_ms = self._memory.wall_ms() + journal.keep_ms // CARRIED_PARTS
            self._trying = asyncio.create_task(self._carry_on())

    @property
    def idle(self) -> bool:
        """True while nothing is written in the background."""
        return self._trying is None or self._trying.done()

    async def _carry_on(self) -> None:
        for world in list(self._worlds):
            key = (world.tenant, world.world_id)
            await self._changes.alone(key, self._records.carry_on(*key))
        await self._memory.carry_on(self._is_registered)

    def _is_registered(self, key: NpcKey) -> bool:
        try:
            return bool(self._worlds.npc(*key))
        except NotFound:
            return False

    async def _try_again(self) -> None:
        try:
            for who in list(self.owed.forgets):
                await self._changes.alone(SAVES, self._forgetting.forget_now(who, redact=False))
                self.owed.paid(who)
                log.info("forgotten at last", world=who.world, left=len(self.owed.forgets))
            for key in list(self.owed.worlds):
                await self._changes.alone(key, self._records.write_owed(*key))
        except StoreFailed as error:
            log.warning("owed to the journal", reason=str(error), forgets=len(self.owed.forgets))
            self.owed.tried(False, self._clock())
        else:
            self.owed.tried(True, self._clock())

"""A program that appends to a journal without end and prints the accepted ids. A test kills it in the middle.

python crash.py FOLDER LIFE
"""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import count
from pathlib import Path

from memory.journal import Journal
from memory.journal_settings import JournalSettings
from memory.records import Kind, Record


async def main() -> None:
    folder, life = Path(sys.argv[1]), sys.argv[2]
    journal = Journal(folder, JournalSettings(segment_mib=1), lambda: time.time_ns() // 1_000_000)
    journal.start()

    async def appends(who: int) -> None:
        for n in count():
            name = f"{life}-{who}-{n}"
            journal.add(Record(Kind.INTENT, n, "tenant", "world", "npc"))
            if await journal.accept(Record(Kind.TURN, n, "tenant", "world", "npc", body={"line": "x" * n}, id=name)):
                print(name, flush=True)

    await asyncio.gather(*map(appends, range(8)))


if __name__ == "__main__":
    asyncio.run(main())

"""The comparison with llama-server on many NPCs sends both the same requests, and says so when there is no
llama-server."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from core.clock import MS
from daemon.config import SHIPPED_MODEL
from engines.llama import LlamaSettings
from loadtests.bench import kv_peer
from loadtests.bench.figures import Figures
from loadtests.bench.kv_homes import REPLY_LEN
from loadtests.bench.kv_peer import TAIL_LEN, People, Side
from loadtests.bench.kv_served import Served
from loadtests.bench.options import Options
from loadtests.bench.rig import Rig
from loadtests.peers.http_calls import HttpCalls
from loadtests.peers.llama_server import HOST, PeerSettings, command

SMALL = LlamaSettings(SHIPPED_MODEL, sequences=48, context_len=1280, threads=1, flash_attention="off", weights="file")


@pytest.mark.parametrize(
    ("python", "binary", "says"),
    [(sys.executable, "/nowhere/llama-server", "no program"), (sys.executable, "", "has no xllamacpp")],
)
async def test_without_a_llama_server_nothing_is_measured(python: str, binary: str, says: str) -> None:
    """It prints that, and the area ends."""
    lines: list[str] = []
    figures = Figures(lines.append)
    await kv_peer.run(figures, Options(SHIPPED_MODEL, frozenset(), python, binary, quick=True))
    assert not figures.found
    assert lines[0].startswith("skipped, nothing was measured") and says in lines[0]
    assert len(lines) == 1


@asynccontextmanager
async def side(people: People) -> AsyncIterator[Side]:
    """npcd's rig behind HTTP, in this process."""
    async with Rig(SMALL, 1000) as rig:
        server = await asyncio.start_server(Served(rig).connected, HOST, 0)
        http = HttpCalls(HOST, server.sockets[0].getsockname()[1], 10)
        try:
            yield Side("npcd", http, people, None)
        finally:
            await http.close()
            server.close()


async def test_a_visit_computes_its_tail_and_streams_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a first visit the trunk is there. A round plays each visit once, and late ones are cut off."""
    people = People(SHIPPED_MODEL, 8)
    async with side(people) as npcd:
        await npcd.fill(8)
        visits = [(n * 5 * MS, n % 8, people.tail()) for n in range(12)]
        tally = await npcd.play(visits)
        assert tally.failed == tally.cut == 0
        assert sorted(tally.replies) == list(range(12))
        assert {len(reply) for reply in tally.replies.values()} == {REPLY_LEN}
        assert tally.computed_tokens == 12 * TAIL_LEN
        assert len(tally.first_ns) == len(tally.whole_ns) == 12
        assert all(first < whole for first, whole in zip(sorted(tally.first_ns), sorted(tally.whole_ns), strict=True))
        assert (await npcd.play(visits)).replies == tally.replies
        monkeypatch.setattr(kv_peer, "DRAIN_S", 0.0)
        late = await npcd.play(visits[:1])
        assert (late.cut, len(late.first_ns), late.replies) == (1, 1, {})


def test_visits_are_the_same_for_the_same_seed() -> None:
    """That holds for the trunks and the order of visits. With pinning the most visited NPCs have slots of their own."""
    one, other = People(SHIPPED_MODEL, 30), People(SHIPPED_MODEL, 30)
    assert one.trunks == other.trunks
    assert one.by_rank == other.by_rank
    assert all(400 <= len(trunk) < 1000 for trunk in one.trunks)
    assert [one.ranks[npc] for npc in one.by_rank] == list(range(30))
    pinned = Side("peer", HttpCalls(HOST, 1, 1), one, PeerSettings("m", 1, slots=20, pin=True))
    bodies = [pinned._body(npc, [1, 2], 12) for npc in one.by_rank]
    assert [body["id_slot"] for body in bodies] == [*range(20), *range(10)]
    assert bodies[0]["prompt"] == [*one.trunks[one.by_rank[0]], 1, 2] and bodies[0]["ignore_eos"]


def test_the_size_of_the_cache_in_ram_is_a_setting() -> None:
    """The setting is in the printed words and in the command."""
    settings = PeerSettings("m", 1, cache_ram_mib=512, cache_idle=False)
    assert "cache 512 MiB when taken" in settings.words
    asked = command(settings, "", "llama-server")
    assert "--no-cache-idle-slots" in asked and asked[asked.index("--cache-ram") + 1] == "512"
    assert "--cache-idle-slots" in command(PeerSettings("m", 1), "", "llama-server")

"""The time until a lane is free again after a client cancels its Talk.

Daemon, game and canceller are three processes on one clock. Every other cancel comes while a line of 1,000 tokens is
being prefilled, the others after the first text. It is measured with no other load, then beside a game.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

import grpc

from core.clock import MS, S, now_ns
from engines.llama import load_vocab, send_native_log_to
from loadtests.bench import children
from loadtests.bench.figures import Figures
from loadtests.bench.served import LANE, LEASED
from loadtests.bench.traffic import NPCS, npc_ids
from loadtests.scene import load_scene
from npcd.v1 import dialogue_pb2
from npcd_client import NpcdError
from scheduler.meter import percentile

CANCELS = 200
LINE_LEN = 1_000
BRONZE = 8  # lanes are left beside the game's 8 dialogues: this measures cancelling and not waiting for a lane
PREFILL_MS = (4.0, 35.0)  # a cancel comes this long after the turn was admitted
WAIT_S = 5.0
QUEUED_S = 1.0  # if no lane was leased until then, the turn was cancelled while it waited
CALL_S = 20.0
TRIES_X = 3


@dataclass(frozen=True, slots=True)
class _Cancel:
    """One cancel: its time, whether in the middle of the prefill, and how long until the lane was free."""

    took_ns: int
    prefilling: bool


async def run(figures: Figures, model: Path, quick: bool) -> None:
    """Measures idle, then beside a game."""
    count = 40 if quick else CANCELS
    figures.note(f"-- {count} cancels of a Talk, half of them in the middle of {LINE_LEN} tokens of prefill")
    sets = (
        f"engine.model={model}",
        "engine.sequences=250",
        # Lines of this length are above the daemon's own limits.
        f"caps.player_line={LINE_LEN}",
        f"caps.talk_tail={LINE_LEN + 100}",
    )
    line = long_line(model)
    async with children.daemon(*sets) as daemon, children.traffic(children.target(daemon)) as game:
        await game.ask("")
        async with grpc.aio.insecure_channel(children.target(daemon)) as channel:
            canceller = _Canceller(channel, line)
            idle = await canceller.cancel(count)
            bronze: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/npcd.bench/Bronze")
            await bronze(BRONZE.to_bytes(4, "little"), timeout=CALL_S)
            await game.ask("load")
            busy = await canceller.cancel(count)
            figures.note(f"   the game meanwhile: {await game.ask('rest')}")
    for name, cancels in (("idle", idle), ("beside a game", busy)):
        for prefilling in (True, False):
            took = [c.took_ns for c in cancels if c.prefilling is prefilling]
            figures.note(
                f"   {name}, {len(took)} {'in the prefill' if prefilling else 'while it spoke'}: p50/p95/p99/max "
                f"{'/'.join(f'{percentile(took, share) / MS:.1f}' for share in (0.5, 0.95, 0.99, 1.0))} ms"
            )
    figures.add("cancel.reuse_p99_ms", percentile([c.took_ns for c in busy], 0.99) / MS)
    figures.add("cancel.reuse_p50_ms", percentile([c.took_ns for c in busy], 0.5) / MS)
    figures.add("cancel.reuse_idle_p99_ms", percentile([c.took_ns for c in idle], 0.99) / MS)
    figures.add("cancel.prefill_share", sum(c.prefilling for c in busy) / max(1, len(busy)))


def long_line(model: Path) -> str:
    """A line of at least 1,000 tokens that is no longer than a line may be. Raises ConfigError for an unsuitable
    model."""
    send_native_log_to(None)
    vocab = load_vocab(model)
    chance = random.Random(5)
    line = ""
    while len(vocab.encode(line)) < LINE_LEN:
        line += chance.choice("0123456789~^&%$#@*+=<>|{}")
    assert len(line.encode()) <= 2048, "one character, one token or more"
    return line


class _Canceller:
    """One player at a time, who hangs up."""

    def __init__(self, channel: grpc.aio.Channel, line: str) -> None:
        self._channel = channel
        self._line = line
        self._number = 0
        scene = load_scene()
        self._world = scene.world.world_id
        self._npcs = npc_ids(scene)
        self._chance = random.Random(3)

    async def cancel(self, count: int) -> list[_Cancel]:
        """So many cancels in time, half of them in the prefill. Raises NpcdError when too many came late."""
        done: list[_Cancel] = []
        tries = 0
        while len(done) < count:
            tries += 1
            if tries > TRIES_X * count:
                raise NpcdError(f"only {len(done)} of {tries} cancels came before the turn's end")
            wanted = sum(c.prefilling for c in done) <= len(done) / 2
            cancel = await self._once(prefilling=wanted)
            if cancel is not None and cancel.prefilling is wanted:
                done.append(cancel)
        return done

    async def _once(self, prefilling: bool) -> _Cancel | None:
        """Cancels one turn. Returns None when the turn ended before."""
        self._number += 1
        player = f"canceller-{self._number}"
        request = dialogue_pb2.TalkRequest(
            world_id=self._world,
            npc_id=self._npcs[self._number * 11 % NPCS],
            player_id=player,
            turn_id=player,
            text=self._line if prefilling else "Good evening. Tell me about this place.",
            max_tokens=200,
        )
        talk = self._channel.unary_stream(
            "/npcd.v1.Dialogue/Talk",
            request_serializer=dialogue_pb2.TalkRequest.SerializeToString,
            response_deserializer=dialogue_pb2.TalkEvent.FromString,
        )
        call = talk(request, timeout=CALL_S)
        until = dialogue_pb2.TALK_EVENT_KIND_STARTED if prefilling else dialogue_pb2.TALK_EVENT_KIND_TEXT
        async for event in call:
            if event.kind >= until:
                break
        if prefilling:
            await asyncio.sleep(self._chance.uniform(*PREFILL_MS) / 1000)
        cancelled_ns = now_ns()
        call.cancel()
        return await self._released(player, cancelled_ns)

    async def _released(self, player: str, cancelled_ns: int) -> _Cancel | None:
        """The daemon's notes of the player's lane. Returns None when the turn ended before, or never had a lane."""
        lanes: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary("/npcd.bench/Lanes")
        leased = False
        while now_ns() < cancelled_ns + WAIT_S * S:
            for at_ns, branch_len, tail_len, whose in LANE.iter_unpack(await lanes(b"", timeout=CALL_S)):
                if whose.rstrip(b"\0") == player.encode():
                    leased = True
                    if branch_len != LEASED:
                        return _Cancel(at_ns - cancelled_ns, branch_len < tail_len) if at_ns > cancelled_ns else None
            if not leased and now_ns() > cancelled_ns + QUEUED_S * S:
                return None
            await asyncio.sleep(0.01)
        raise NpcdError(f"the lane of {player} was not free {WAIT_S:g} s after its cancel")

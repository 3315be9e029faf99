"""On the real engine a trunk that was moved out gives the same replies as before, whatever happened to its bytes."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from core.clock import now_ns
from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Work
from daemon.config import SHIPPED_MODEL
from engines.base import tokens_of
from engines.llama import LlamaEngine, LlamaSettings
from kvcache.homes import Trunk
from kvcache.verify import HEADER_BYTES, REASONS, Sealed, Verifier
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tiers.promises import Promises

PLACES, NAMES = ("mill", "crypt", "market"), ("the wolf", "the ghoul", "the count")  # all of one length
KV = KvSettings(prefixes=1, lanes=2, ram_mib=64)
Spoil = Callable[[Sealed, Trunk, Verifier], Sealed]


class Real:
    """A scheduler on the shipped model, with two residents."""

    def __init__(self, engine: LlamaEngine) -> None:
        self.engine = engine
        engine.rebuild()
        self.scheduler = Scheduler(engine, Promises(), SchedulerSettings(kv=KV))
        self.placer = self.scheduler.placer
        self._numbers = itertools.count(1)

    def key(self, npc: int) -> TrunkKey:
        """The trunk of an NPC towards a player."""
        return TrunkKey(NpcKey("", "w", f"npc{npc}"), "p")

    def ask(self, npc: int, tokens_max: int = 12) -> tuple[list[int], Ended]:
        """An NPC's greedy answer, and how it ended."""
        words = self.engine.vocab.encode(f"Mira goes to the {PLACES[npc]} and meets {NAMES[npc]}. " * 10)
        trunk, tail = tokens_of(words), tokens_of(self.engine.vocab.encode("Mira goes to the"))
        ticket = next(self._numbers)
        self.scheduler.submit(ticket, Work(Tier.SILVER, self.key(npc), trunk, tail, tokens_max), now_ns())
        made: list[int] = []
        while True:
            planned = self.scheduler.plan(now_ns())
            if planned.step is not None:
                began = now_ns()
                result = self.engine.step(planned.step)
                self.scheduler.apply(planned, result, now_ns() - began, now_ns())
            for number, what in self.scheduler.take_deliveries():
                if number == ticket and isinstance(what, Chunk):
                    made += what.tokens
                elif number == ticket and isinstance(what, Ended):
                    return made, what

    def away(self, npc: int) -> Trunk:
        """Moves an NPC's trunk to RAM."""
        trunk = self.placer.homes.get(self.key(npc))
        if trunk.seq >= 0:
            self.placer.moves.move_out(trunk)
        assert trunk.home == "ram"
        return trunk


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    """The shipped model with five sequences."""
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=5, context_len=512, batch_len=512))
    yield engine
    engine.close()


@pytest.fixture
def real(engine: LlamaEngine) -> Real:
    """A scheduler without any trunk."""
    return Real(engine)


def test_a_trunk_that_was_moved_out_gives_the_same_reply_without_being_computed_again(real: Real) -> None:
    """Three NPCs on two residents are asked again and again. Each is loaded from RAM and gives its own reply."""
    first = [real.ask(n)[0] for n in range(3)]
    assert len({tuple(f) for f in first}) > 1
    for n in (0, 1, 2, 0):
        trunk = real.away(n)
        held = trunk.held
        again, ended = real.ask(n)
        assert again == first[n]
        assert ended.timings.loaded_tokens == ended.timings.cached_tokens == held
        assert ended.timings.prefilled_tokens < 10
    assert real.placer.moves.loads_refused == 0
    assert real.placer.moves.loads.learned >= 4
    assert real.placer.tokens.computed < 4 * held


def broken_payload(sealed: Sealed, rng: random.Random) -> Sealed:
    """Flips one bit of the bytes."""
    payload = bytearray(sealed.payload)
    payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    return replace(sealed, payload=bytes(payload))


def broken_header(sealed: Sealed, rng: random.Random) -> Sealed:
    """Flips one bit of the header."""
    header = bytearray(sealed.header)
    header[rng.randrange(HEADER_BYTES)] ^= 1 << rng.randrange(8)
    return replace(sealed, header=bytes(header))


@pytest.mark.parametrize("times", range(6))
def test_broken_bytes_are_computed_anew_and_counted(real: Real, times: int) -> None:
    """For flipped bits at random places of header and bytes, and for cuts, the reply is that of a computed trunk."""
    rng = random.Random(times)
    first, _ = real.ask(0)
    for spoil in (broken_payload, broken_header, cut):
        trunk = real.away(0)
        assert trunk.blob is not None
        trunk.blob = spoil(trunk.blob, rng)
        before = real.placer.moves.loads_refused
        again, ended = real.ask(0)
        assert again == first
        assert ended.timings.cached_tokens == 0
        assert real.placer.moves.loads_refused == before + 1
    assert real.placer.moves.refused["checksum"] == 1
    assert real.placer.moves.refused["length"] == 1


def cut(sealed: Sealed, rng: random.Random) -> Sealed:
    """Cuts some bytes off."""
    return replace(sealed, payload=sealed.payload[: rng.randrange(len(sealed.payload))])


def test_another_npc_s_bytes_never_answer(real: Real) -> None:
    """When the bytes of two homes are swapped, both are computed anew, and both give their own reply. Without the check
    they do not."""
    first = [real.ask(n)[0] for n in range(2)]
    for checked in (True, False):
        trunks = [real.away(n) for n in range(2)]
        trunks[0].blob, trunks[1].blob = trunks[1].blob, trunks[0].blob
        if not checked:
            real.placer.moves.verifier = Trusting(real.engine.kv_kind)
        again = [real.ask(n)[0] for n in range(2)]
        assert (again == first) == checked
    assert real.placer.moves.refused["tokens"] == 2


class Trusting(Verifier):
    """A check that never finds a fault."""

    def fault(self, sealed: Sealed, tokens: object, adapter: str = "") -> str:
        return ""


@pytest.mark.parametrize(
    ("field", "reason"),
    [("model", "model"), ("kv_type", "kv_type"), ("attention", "attention"), ("shape", "geometry")],
)
def test_bytes_of_another_engine_are_computed_anew(real: Real, field: str, reason: str) -> None:
    """Bytes that an engine sealed which differs in one thing are refused for that reason, and the reply is the same."""
    assert reason in REASONS
    first, _ = real.ask(0)
    trunk = real.away(0)
    assert trunk.blob is not None
    foreign = Verifier(replace(real.engine.kv_kind, **{field: "another"}))
    trunk.blob = foreign.seal(trunk.blob.payload, trunk.tokens[: trunk.held])
    assert real.ask(0)[0] == first
    assert real.placer.moves.refused[reason] == 1


def test_a_load_that_would_take_longer_is_not_made(real: Real) -> None:
    """When loads are known to be slow the trunk is computed, with the same reply."""
    first, _ = real.ask(0)
    real.away(0)
    real.placer.moves.loads.fixed_ns = 1e12
    again, ended = real.ask(0)
    assert again == first
    assert (ended.timings.loaded_tokens, real.placer.moves.turned_down) == (0, 1)

"""Adapters on llama.cpp: KV of one adapter is neither the base model's nor another adapter's, and nothing leaks."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Work
from engines.base import GREEDY_PICK, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, load_vocab
from engines.lora import Adapter, Adapters, AdapterSettings
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tests.engines.adapters import write
from tests.engines.conftest import MODEL
from tiers.promises import Promises

STORY = "Mayor Greta rules the village of Ravenmere, and strangers are watched. Mira keeps the tavern by the old road."
TAIL_LEN = 2
NAMES = ("old", "angry", "north", "sly", "loud", "sad", "poet")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """Seven adapters of rank 8 with matrices of f16, one that changes nothing, and one that is only activated."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        write(folder / f"{name}.gguf", seed, rank=8, dtype=np.float16)
    write(folder / "nothing.gguf", 50, rank=8, size=0.0)
    write(folder / "lively.gguf", 51)
    write(folder / "gloomy.gguf", 52)
    write(folder / "invoked.gguf", 53, invocation=load_vocab(MODEL).encode(" says"))
    return Adapters(AdapterSettings(str(folder), loaded_max=3, activated=("lively", "gloomy")), MODEL)


@pytest.fixture(scope="module")
def engine(adapters: Adapters) -> Iterator[LlamaEngine]:
    """The shipped model with these adapters."""
    engine = LlamaEngine(LlamaSettings(MODEL, 16, 512, 512, 128, flash_attention="off"), adapters)
    engine.try_adapters()
    yield engine
    engine.close()


def told(engine: LlamaEngine, tokens: Sequence[int], sha: str = "", seq: int = 0) -> NDArray[np.float32]:
    """The logits after a text on an emptied sequence."""
    engine.trim(seq, 0)
    engine.step(StepPlan([Slice(seq, 0, tokens_of(tokens), GREEDY_PICK)], sha))
    return logits(engine)


def logits(engine: LlamaEngine) -> NDArray[np.float32]:
    """The logits of the one token that the last step picked."""
    row: NDArray[np.float32] = engine.state.logits(1)[0].copy()
    return row


def test_an_adapter_that_changes_nothing_changes_not_a_bit(engine: LlamaEngine, adapters: Adapters) -> None:
    """Logits and KV are equal, without flash attention."""
    story = engine.vocab.encode(STORY)
    base, kv = told(engine, story), engine.store(0)
    assert np.array_equal(told(engine, story, adapters.find("nothing").sha), base)
    assert engine.store(0) == kv
    assert not np.allclose(told(engine, story, adapters.find("old").sha), base, atol=0.1)
    assert np.array_equal(told(engine, story), base)


def test_a_composed_stack_is_what_all_do_together(engine: LlamaEngine, adapters: Adapters) -> None:
    """It equals llama.cpp's own sum of adapters that are set at once, within the rounding of f16."""
    story = engine.vocab.encode(STORY)
    composed = told(engine, story, adapters.find("old+angry+poet").sha)
    three = [engine.loras.hold(adapters.find(name).sha) for name in ("old", "angry", "poet")]
    told(engine, story)
    pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 3)(*three)
    llama_cpp.llama_set_adapters_lora(engine.state.context, pointers, 3, (ctypes.c_float * 3)(1.0, 1.0, 1.0))
    together = told(engine, story)
    llama_cpp.llama_set_adapters_lora(engine.state.context, None, 0, None)
    assert np.abs(composed - together).max() < 0.02 * np.abs(together).max()
    assert not np.allclose(composed, told(engine, story, adapters.find("old").sha), atol=0.1)


def test_more_adapters_than_may_be_in_memory_take_turns(engine: LlamaEngine, adapters: Adapters) -> None:
    """The one unused longest is dropped, and gives the same reply when it is back. That holds for a stack, too, and for
    the one in use."""
    story = engine.vocab.encode(STORY)
    names = [*NAMES, "old+sad", "loud+poet", ""]
    shas = {name: adapters.find(name).sha if name else "" for name in names}
    first = {name: told(engine, story, sha) for name, sha in shas.items()}
    dropped = engine.adapter_counts()["dropped"]
    for name in names * 2:
        assert np.array_equal(told(engine, story, shas[name]), first[name])
        assert engine.adapter_counts()["resident"] <= adapters.settings.loaded_max
    assert engine.adapter_counts()["dropped"] > dropped + 10
    assert len({logits.tobytes() for logits in first.values()}) == len(names)


def test_an_engine_that_was_rebuilt_has_no_adapter_until_it_is_asked_for_one(
    engine: LlamaEngine, adapters: Adapters
) -> None:
    """A new context begins with the base model."""
    story, sha = engine.vocab.encode(STORY), adapters.find("old").sha
    base, with_it = told(engine, story), told(engine, story, sha)
    engine.rebuild()
    assert np.array_equal(told(engine, story, sha), with_it)
    engine.rebuild()
    assert np.array_equal(told(engine, story), base)


def test_files_may_go_after_the_start(tmp_path: Path) -> None:
    """The files were checked, and stay open."""
    write(tmp_path / "old.gguf", 1)
    write(tmp_path / "new.gguf", 2)
    adapters = Adapters(AdapterSettings(str(tmp_path), loaded_max=1), MODEL)
    engine = LlamaEngine(LlamaSettings(MODEL, 4, 256, 256, 64, flash_attention="off"), adapters)
    story = engine.vocab.encode(STORY)
    first = told(engine, story, adapters.find("old").sha)
    for path in tmp_path.iterdir():
        path.unlink()
    told(engine, story, adapters.find("new").sha)
    assert np.array_equal(told(engine, story, adapters.find("old").sha), first)
    engine.close()


class Told:
    """A scheduler on the engine that runs works one after another."""

    def __init__(self, engine: LlamaEngine, patch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        kv = KvSettings(prefixes=2, lanes=4, ram_mib=64)
        self.scheduler = Scheduler(engine, Promises(), SchedulerSettings(kv=kv))
        self.story = tokens_of(engine.vocab.encode(STORY))
        self.tickets = 0
        # A story of 29 tokens is computed faster than its bytes are verified.
        patch.setattr(self.scheduler.placer.moves.loads, "pays", lambda *_: True)

    def reply(self, npc: str, adapter: Adapter | None, text: str = " Then") -> tuple[list[int], Ended]:
        """An NPC's reply after the story and a text, and its cost."""
        self.tickets += 1
        sha, trunk_sha = (adapter.sha, adapter.trunk_sha) if adapter is not None else ("", "")
        key = TrunkKey(NpcKey("", "w", npc), "player", trunk_sha)
        tail = tokens_of(self.engine.vocab.encode(text))
        self.scheduler.submit(self.tickets, Work(Tier.SILVER, key, self.story, tail, 12, adapter=sha), 0)
        made: list[int] = []
        while True:
            planned = self.scheduler.plan(0)
            if planned.step is not None:
                self.scheduler.apply(planned, self.engine.step(planned.step), 0, 0)
            for _, what in self.scheduler.take_deliveries():
                if isinstance(what, Ended):
                    return made, what
                made += what.tokens if isinstance(what, Chunk) else ()

    def move_all_out(self) -> None:
        """Moves every trunk to RAM."""
        for trunk in [t for t in self.scheduler.placer.homes if t.seq >= 0]:
            self.scheduler.placer.moves.move_out(trunk)


@pytest.fixture
def scheduled(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """A scheduler of its own for each test; it leaves the sequences empty."""
    for seq in range(engine.geometry.sequences):
        engine.trim(seq, 0)
    yield Told(engine, monkeypatch)
    for seq in range(engine.geometry.sequences):
        engine.trim(seq, 0)


def test_two_activated_adapters_share_one_trunk(scheduled: Told, adapters: Adapters) -> None:
    """The second reply, with another adapter, computes only the tail, and the two replies differ."""
    lively, first = scheduled.reply("mira", adapters.find("lively"))
    gloomy, second = scheduled.reply("mira", adapters.find("gloomy"))
    assert first.timings.prefilled_tokens == len(scheduled.story) + TAIL_LEN
    assert second.timings.prefilled_tokens == TAIL_LEN
    assert second.timings.cached_tokens == len(scheduled.story)
    assert lively != gloomy
    assert scheduled.reply("anna", adapters.find("gloomy"))[0] == gloomy
    assert len(scheduled.scheduler.placer.homes.of_npc(NpcKey("", "w", "mira"))) == 1


def test_an_invoked_adapter_is_on_from_its_invocation(scheduled: Told, adapters: Adapters) -> None:
    """The reply is that of the base model's KV up to the invocation and the adapter's behind it, made by hand. The base
    model answers a tail without an invocation.
    """
    engine, invoked = scheduled.engine, adapters.find("invoked")
    assert invoked.activated
    before, after = " Then Mira", " says to him:"
    said, ended = scheduled.reply("mira", invoked, before + after)
    off, rest = tokens_of(engine.vocab.encode(before)), tokens_of(engine.vocab.encode(after))
    assert np.array_equal(np.concatenate([off, rest]), tokens_of(engine.vocab.encode(before + after)))
    assert ended.timings.prefilled_tokens == len(scheduled.story) + len(off) + len(rest)
    by_hand = {}
    for name, parts in {"invoked": (off, rest), "whole": (off[:0], np.concatenate([off, rest]))}.items():
        engine.trim(0, 0)
        story = np.concatenate([scheduled.story, parts[0]])
        engine.step(StepPlan([Slice(0, 0, story)]))
        made: list[int] = []
        at, feed = len(story), parts[1]
        while len(made) < 12:
            result = engine.step(StepPlan([Slice(0, at, feed, GREEDY_PICK)], invoked.sha))
            at, feed = at + len(feed), tokens_of(result.picked)
            made += result.picked
        by_hand[name] = made
    engine.trim(0, 0)
    assert said == by_hand["invoked"] != by_hand["whole"]
    base = scheduled.reply("anna", None, before)[0]
    assert scheduled.reply("mira", invoked, before)[0] == base
    assert scheduled.reply("mira", adapters.find("lively"), before)[0] != base


@pytest.mark.parametrize("between", [lambda told: None, Told.move_all_out], ids=["resident", "from RAM"])
def test_kv_of_one_adapter_is_never_used_for_another(
    scheduled: Told, adapters: Adapters, between: Callable[[Told], None]
) -> None:
    """An ordinary adapter has trunks of its own, also after they were moved to RAM and back; each is used again."""
    chosen = [None, adapters.find("old"), adapters.find("angry"), adapters.find("old+angry")]
    alone = [scheduled.reply(f"alone{n}", adapter)[0] for n, adapter in enumerate(chosen)]
    for adapter, wanted in zip(chosen, alone, strict=True):
        said, ended = scheduled.reply("mira", adapter)
        assert said == wanted
        assert ended.timings.cached_tokens == 0
    between(scheduled)
    for adapter, wanted in zip(chosen, alone, strict=True):
        said, ended = scheduled.reply("mira", adapter)
        assert said == wanted
        assert ended.timings.prefilled_tokens == TAIL_LEN
    assert len({tuple(said) for said in alone}) == len(chosen)
    assert scheduled.scheduler.placer.moves.loads_refused == 0


def test_bytes_of_one_adapter_are_refused_for_another(scheduled: Told, adapters: Adapters) -> None:
    """Bytes that are swapped in RAM are recomputed and counted, and the reply is the same."""
    wanted = {name: scheduled.reply("mira", adapters.find(name))[0] for name in ("old", "angry")}
    scheduled.move_all_out()
    old, angry = (
        scheduled.scheduler.placer.homes.find(TrunkKey(NpcKey("", "w", "mira"), "player", adapters.find(name).sha))
        for name in ("old", "angry")
    )
    assert old is not None and angry is not None
    old.blob, angry.blob = angry.blob, old.blob
    for name in ("old", "angry"):
        assert scheduled.reply("mira", adapters.find(name))[0] == wanted[name]
    assert scheduled.scheduler.placer.moves.refused["adapter"] == 2

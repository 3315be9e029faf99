"""An archetype names its adapter. Its NPCs act and speak with that adapter, and no other NPCs do."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import CallerError, ConfigError
from core.work import Chunk, Ended, Work
from daemon.commands.doctor import examine
from daemon.config import SHIPPED_MODEL, Config, load
from daemon.model import Model, load_model
from daemon.process.telemetry import StatusCollector
from engines.base import StepPlan, StepResult
from engines.llama import LlamaEngine, LlamaSettings, load_vocab
from engines.lora import Adapters, AdapterSettings
from npcd.v1 import dialogue_pb2, npcs_pb2
from prompts.layout import Layout
from scheduler.ticket import Ticket
from tests.daemon.rig import Rig, gated, quick, running, world
from tests.engines.adapters import write
from tests.patience import PATIENCE_S
from tiers.routing import LLAMA

TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT
Submission = tuple[Work, Callable[[Ended], None], Callable[[Chunk], None]]
SMALL = LlamaSettings(SHIPPED_MODEL, sequences=40, context_len=1024, threads=1, flash_attention="off", weights="file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ordinary adapters, one that is only activated, and one with an invocation."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("old", "proud", "lively")):
        write(folder / f"{name}.gguf", seed, size=0.1)
    # It is on from where the NPC begins to speak.
    speaks = Layout(load_vocab(SHIPPED_MODEL)).marks["npc"]
    write(folder / "eloquent.gguf", 7, size=0.1, invocation=list(speaks))
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[Model]:
    """The shipped model with these adapters."""
    adapters = Adapters(AdapterSettings(str(folder), activated=("lively",)), SHIPPED_MODEL)
    engine = LlamaEngine(SMALL, adapters)
    yield Model(engine, engine.card.name, engine.card.sha256, adapters=adapters)
    engine.close()


@pytest.fixture
def model(opened: Model) -> Model:
    """The same with empty sequences."""
    opened.engine.rebuild()
    return opened


def named(adapter: str) -> npcs_pb2.DefineWorldRequest:
    """The rig's world with an adapter for vampires."""
    request = world()
    request.archetypes[1].adapter = adapter
    return request


def works_of(rig: Rig) -> list[Work]:
    """The works submitted from now on. They are seen on the event loop, so an earlier work is never among them."""
    submitted: list[Work] = []
    honest = rig.daemon.door.submit_group

    def submit_group(group: Sequence[Submission]) -> list[Ticket]:
        submitted.extend(work for work, _, _ in group)
        return honest(group)

    rig.daemon.door.submit_group = submit_group  # type: ignore[method-assign]
    return submitted


async def reply(rig: Rig, npc: str) -> str:
    """Its reply to a new player."""
    events = await rig.say(npc, "Good evening. Who are you?", player=f"p{rig.tick}", seed=1, has_seed=True)
    rig.tick += 1
    await rig.daemon.door.all_ended()
    return "".join(e.text for e in events if e.kind == TEXT)


async def test_npcs_act_and_speak_with_the_adapter_of_their_archetype(model: Model) -> None:
    """Intents, barks, replies and trunks of vampires have the adapter, and those of villagers do not. A change counts
    at once."""
    assert model.adapters is not None
    proud, old = (model.adapters.find(name) for name in ("proud", "old"))
    async with running(model, quick(Config())) as rig:
        works = works_of(rig)
        said = [await reply(rig, "npc1")]
        for name, adapter in (("proud", proud), ("old", old), ("old+proud", None)):
            await rig.daemon.calls.define_world("", named(name))
            adapter = adapter or model.adapters.find(name)
            works.clear()
            said.append(await reply(rig, "npc1"))
            await rig.daemon.calls.observe("", rig.frame(rig.sees("npc1", ("p1", "player", "hostile", 2.0))))
            async with asyncio.timeout(PATIENCE_S):
                # The question of this round, and not of the one before.
                while all(w.choice is None for w in works):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await rig.daemon.door.all_ended()
            assert {(w.adapter, w.key.adapter) for w in works} == {(adapter.sha, adapter.sha)}
        assert len(set(said)) == 4
        works.clear()
        await reply(rig, "npc0")
        assert {(w.adapter, w.key.adapter) for w in works} == {("", "")}
        await rig.daemon.calls.define_world("", named(""))
        works.clear()
        await reply(rig, "npc1")
        assert {(w.adapter, w.key.adapter) for w in works} == {("", "")}


async def test_trunks_of_an_activated_adapter_are_the_base_models(model: Model) -> None:
    """The adapter is on while the NPC speaks, and the base model's KV is used."""
    assert model.adapters is not None
    async with running(model) as rig:
        works = works_of(rig)
        await rig.daemon.calls.define_world("", named("lively"))
        events = await rig.say("npc1", "Good evening.")
        assert {(w.adapter, w.key.adapter) for w in works} == {(model.adapters.find("lively").sha, "")}
        assert events[-1].timings.cached_tokens > 50


async def test_an_adapter_with_an_invocation_is_on_for_what_is_said(model: Model) -> None:
    """The base model computes perception and the player's line, in steps without the adapter. Intents do not invoke it
    at all."""
    assert model.adapters is not None
    eloquent = model.adapters.find("eloquent")
    async with running(model, quick(Config())) as rig:
        steps: list[tuple[str, int]] = []
        honest = model.engine.step

        def step(plan: StepPlan) -> StepResult:
            steps.append((plan.adapter, sum(len(s.tokens) for s in plan.slices)))
            return honest(plan)

        plain = await reply(rig, "npc1")
        await rig.daemon.calls.define_world("", named("eloquent"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.engine, "step", step)
            said = await reply(rig, "npc1")
            assert said and said != plain
            spoken = [tokens for adapter, tokens in steps if adapter]
            assert {adapter for adapter, _ in steps} == {"", eloquent.sha}
            assert set(spoken) == {len(Layout(model.engine.vocab).marks["npc"])} == {1}
            assert len(spoken) >= 3
            steps.clear()
            await rig.daemon.calls.observe("", rig.frame(rig.sees("npc1", ("p1", "player", "hostile", 2.0))))
            await rig.intent("npc1", lambda intent: intent.version > 0)
            await rig.daemon.door.all_ended()
            assert {adapter for adapter, _ in steps} == {""}


async def test_metrics_count_adapters(model: Model, opened: Model) -> None:
    """They count loads, drops and switches since the start, and the adapters in memory. Without a folder they show
    none."""
    async with running(model) as rig:
        board, steps = rig.daemon.board, rig.daemon.step_backend

        def shown() -> dict[str, float]:
            metrics = {
                m.name: m for m in StatusCollector(board.message, lambda: {LLAMA: steps.snapshot.counters}).collect()
            }
            counts = {s.labels["what"]: s.value for s in metrics["npcd_adapters"].samples}
            return counts | {"resident": metrics["npcd_adapters_resident"].samples[0].value}

        for name in ("proud", "old"):
            await rig.daemon.calls.define_world("", named(name))
            before = shown()
            await reply(rig, "npc1")
            assert shown()["switched"] > before["switched"]
        now = shown()
        assert 2 <= now["resident"] == now["loaded"] - now["dropped"]
    async with running(gated()) as rig:
        board, steps = rig.daemon.board, rig.daemon.step_backend
        collector = StatusCollector(board.message, lambda: {LLAMA: steps.snapshot.counters})
        assert not any("adapter" in m.name for m in collector.collect())


@pytest.mark.parametrize("name", ["nobody", "old+nobody", "old+lively", "lively+eloquent"])
async def test_an_adapter_that_cannot_be_had_is_refused_by_its_field(model: Model, name: str) -> None:
    """The world stays as it was."""
    async with running(model) as rig:
        before = rig.daemon.worlds.world("", "vale")
        with pytest.raises(CallerError, match=r"archetypes\[1\]\.adapter: "):
            await rig.daemon.calls.define_world("", named(name))
        assert rig.daemon.worlds.world("", "vale") is before


async def test_without_adapters_none_can_be_named() -> None:
    """The message says that there are no adapters."""
    async with running(gated()) as rig:
        with pytest.raises(CallerError, match=r"archetypes\[1\]\.adapter: there is no adapter 'old'"):
            await rig.daemon.calls.define_world("", named("old"))


def test_the_doctor_names_them_and_a_faulty_one(folder: Path, tmp_path: Path) -> None:
    """doctor reports them as serve would. Without a folder there is no finding."""

    def said(where: Path | str) -> list[tuple[str, str]]:
        checks = examine(lambda: replace(Config(), adapters=AdapterSettings(str(where))))
        return [(check.outcome.name, check.says) for check in checks if check.name == "adapters"]

    assert said(folder) == [("OK", "4 (eloquent, lively, old, proud), 8 in memory at once")]
    assert said(tmp_path) == [("WARN", "none in adapters.folder")]
    write(tmp_path / "odd.gguf", 1, rank=65)
    assert [(outcome, "rank 65" in says) for outcome, says in said(tmp_path)] == [("FAIL", True)]
    assert said("") == []


def test_the_folder_is_a_setting_and_is_checked_at_the_start(folder: Path, tmp_path: Path) -> None:
    """With one bad file the daemon does not start, and the message names that file."""
    config = load(None, [f"adapters.folder={folder}", "adapters.activated=lively", "adapters.loaded_max=2"], {})
    loaded = load_model(replace(config, engine=SMALL))
    assert loaded.adapters is not None
    assert loaded.adapters.names == ["eloquent", "lively", "old", "proud"]
    assert loaded.adapters.find("lively").activated
    loaded.engine.close()
    write(tmp_path / "odd.gguf", 1, architecture="qwen2")
    config = load(None, [f"adapters.folder={tmp_path}"], {})
    with pytest.raises(ConfigError, match=r"odd\.gguf: made for the architecture 'qwen2'"):
        load_model(replace(config, engine=SMALL))

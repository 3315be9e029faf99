"""Several engines in one daemon: each has a thread, a scheduler, KV and a layout of its own."""

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.clock import now_ns
from core.errors import CallerError, ConfigError
from core.script import SectionKind
from core.work import Work
from daemon.config import SHIPPED_MODEL, Config, load
from daemon.engine_settings import FurtherEngine
from daemon.engines import load_models, share_cores
from daemon.model import Model
from daemon.process.cores import NICE, give_way
from daemon.process.keeping import open_keeping
from daemon.process.telemetry import StatusCollector
from engines.backend import Submitted
from engines.llama import LlamaEngine, LlamaSettings
from engines.sim import SimVocab
from npcd.v1 import dialogue_pb2, intents_pb2, npcs_pb2
from scheduler.parking import Shelf
from scheduler.placing import KvSettings
from tests.daemon.rig import UNHURRIED, Gated, GatedEngine, Rig, gated, move_out, patience, patient, running, until
from tests.memory.redis_fixture import RedisServer, redis_for_all, redis_server
from tests.patience import PATIENCE_S
from tiers.conditions import When
from tiers.routing import LLAMA, Route, Routes

__all__ = ["patience", "redis_for_all", "redis_server"]

TALK = "talk"
MODEL = intents_pb2.INTENT_SOURCE_MODEL
TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT


def plain() -> Gated:
    """A gated engine whose model knows none of npcd's marks."""
    engine = GatedEngine()
    engine.vocab = SimVocab([], end="")
    return Gated(engine, "plain", "p" * 64)


def talking(config: Config = UNHURRIED) -> Config:
    """Replies and what belongs to them go to the second engine."""
    routes = replace(config.routes, reply=replace(config.routes.reply, engine=TALK))
    return replace(config, routes=routes, engines={TALK: FurtherEngine(SHIPPED_MODEL)})


def small() -> Model:
    """The shipped model in a small engine."""
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, 42, 1024, threads=1, flash_attention="off", weights="file"))
    return Model(engine, engine.card.name, engine.card.sha256)


async def meets_a_wolf(rig: Rig, npc: str = "npc1") -> intents_pb2.Intent:
    """The model's intent about a wolf."""
    await rig.daemon.calls.observe("", rig.frame(rig.sees(npc, ("w1", "wolf", "hostile", 3.0), events=["attacked"])))
    return await rig.intent(npc, lambda i: i.source == MODEL)


async def end(rig: Rig, npc: str = "npc0") -> None:
    """Ends the conversation with a player, and waits for its summary."""
    request = dialogue_pb2.EndSessionRequest(world_id="vale", npc_id=npc, player_id="p1")
    await rig.daemon.calls.end_session("", request)
    await rig.daemon.door.all_ended()


async def test_intents_and_talk_on_engines_of_their_own() -> None:
    """Intents run on the first engine alone. Replies, their trunk and the summary run on the second alone, in its
    model's tokens.
    """
    first, second = gated(), plain()
    async with running(first, talking(), further={TALK: second}) as rig:
        await rig.daemon.door.all_ended()
        before = first.engine.steps, second.engine.steps
        await meets_a_wolf(rig)
        await rig.daemon.door.all_ended()
        assert first.engine.steps > before[0] and second.engine.steps == before[1]
        before = first.engine.steps, second.engine.steps
        await rig.say("npc0", "I am Tom. I lost my lantern.")
        await end(rig)
        assert first.engine.steps == before[0] and second.engine.steps > before[1]
        status = rig.daemon.board.message()
        assert [(e.name, e.model_name) for e in status.engines] == [(LLAMA, "sim"), (TALK, "plain")]
        assert [e.layout.partition(":")[0] for e in status.engines] == ["npcd", "plain"]
        assert [e.steps for e in status.engines] == [e.backend.snapshot.steps for e in rig.daemon.engines.values()]
        assert status.steps == sum(e.steps for e in status.engines)


async def test_describe_and_metrics_name_the_engine() -> None:
    """An NPC's trunk for intents and the one of its conversation are on different engines, and both are told."""
    async with running(gated(), talking(), further={TALK: plain()}) as rig:
        await rig.say("npc0", "Good day.")
        await rig.daemon.door.all_ended()
        answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"]))
        assert {(bool(t.partner), t.engine) for t in answer.npcs[0].trunks} == {(False, LLAMA), (True, TALK)}
        board = rig.daemon.board
        families = {m.name: m for m in StatusCollector(board.message, board.counters).collect()}
        for name in ("npcd_kv_trunk_tokens", "npcd_step_cost_ns", "npcd_engine_residents_used"):
            assert {sample.labels["engine"] for sample in families[name].samples} == {LLAMA, TALK}, name


async def test_an_engine_that_stands_still_holds_up_nobody_else() -> None:
    """While the engine of talk computes one long step, intents are answered."""
    second = plain()
    async with running(gated(), talking(), further={TALK: second}) as rig:
        second.engine.close()
        line = asyncio.create_task(rig.say("npc0", "Good day."))
        await second.engine.stand_still()
        assert (await meets_a_wolf(rig)).action
        assert not line.done()
        second.engine.open()
        assert (await line)[-1].kind == dialogue_pb2.TALK_EVENT_KIND_END


async def test_forgetting_a_player_reaches_every_engine() -> None:
    """Forget leaves the player's trunk on no engine."""
    async with running(gated(), talking(), further={TALK: plain()}) as rig:
        await rig.say("npc0", "Good day.")
        await rig.daemon.door.all_ended()
        await rig.daemon.calls.forgetting.forget("", npcs_pb2.ForgetRequest(world_id="vale", player_id="p1"))
        await rig.daemon.door.obeyed()
        answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale"))
        assert not [t for npc in answer.npcs for t in npc.trunks if t.partner]


async def test_a_world_is_checked_for_every_model() -> None:
    """A world whose words one of the models cannot tell apart is refused, though the first one can."""

    class Deaf(SimVocab):
        """It reads every word that begins with "gr" as the same token."""

        def encode(self, text: str) -> list[int]:
            """Tokens, fewer than there are words."""
            return super().encode(re.sub(r"gr\w+", "gr", text))

    second = plain()
    second.engine.vocab = Deaf([], end="")
    request = npcs_pb2.DefineWorldRequest(world_id="vale", lore="A village.")
    request.archetypes.add(archetype_id="villager", description="Plain folk.")
    request.actions.extend([npcs_pb2.ActionWord(word="greet"), npcs_pb2.ActionWord(word="grab")])
    request.emotions.extend(["calm"])
    async with running(gated(), npcs=0) as rig:
        await rig.daemon.calls.define_world("", request)
    async with running(gated(), talking(), npcs=0, further={TALK: second}) as rig:
        with pytest.raises(CallerError, match=r"actions: .* the same tokens"):
            await rig.daemon.calls.define_world("", request)


async def test_two_native_engines_in_one_process() -> None:
    """Two llama.cpp contexts compute at the same time, each on its thread, and both answer."""
    first, second = small(), small()
    try:
        async with running(first, talking(), further={TALK: second}) as rig:
            intent, events = await asyncio.gather(meets_a_wolf(rig), rig.say("npc0", "What do you sell here?"))
            assert intent.action and "".join(e.text for e in events if e.kind == TEXT)
            threads = {engine.backend.thread_id for engine in rig.daemon.engines.values()}
            assert len(threads) == 2
    finally:
        first.close()
        second.close()


@pytest.mark.usefixtures("patience")
async def test_engines_share_the_store_of_parked_kv(tmp_path: Path, redis_server: RedisServer) -> None:
    """The first trunk that each engine parks has the same number there, and each gets its own bytes back."""
    config = talking()
    memory = replace(patient(config.memory), folder=tmp_path / "data", postgres="off", redis=redis_server.url())
    kv = KvSettings(ram_mib=0, redis_mib=16, lanes=4, prefixes=2)
    engines = {TALK: replace(config.engines[TALK], kv=kv)}
    config = replace(config, memory=memory, engines=engines, scheduler=replace(config.scheduler, kv=kv))
    keeping = await open_keeping(config, now_ns)
    try:
        assert keeping.parked is not None
        async with running(gated(), config, 2, keeping=keeping, further={TALK: plain()}) as rig:
            assert await asyncio.to_thread(keeping.parked.settled, PATIENCE_S)
            await rig.say("npc0", "Good day to you.", max_tokens=4)
            await until(lambda: not rig.daemon.door.open)
            for engine in rig.daemon.engines.values():
                engine.backend.scheduler.placer.homes.ram_bytes_max = 0
            await move_out(rig, "npc0")
            assert await asyncio.to_thread(keeping.parked.settled, PATIENCE_S)
            answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"]))
            assert {(t.engine, t.home) for t in answer.npcs[0].trunks} == {(LLAMA, "redis"), (TALK, "redis")}
            for engine in rig.daemon.engines.values():
                engine.backend.scheduler.placer.homes.ram_bytes_max = 64 << 20  # trunks come back through RAM
                engine.backend.coming_near(rig.daemon.worlds.npc("", "vale", "npc0").key)
            await rig.daemon.door.obeyed()
            assert await asyncio.to_thread(keeping.parked.settled, PATIENCE_S)
            await rig.daemon.door.obeyed()
            for engine in rig.daemon.engines.values():
                counters = engine.backend.snapshot.counters
                assert not any(counters["refused"].values()), (engine.name, counters["refused"])
            answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"]))
            assert {(t.engine, t.home) for t in answer.npcs[0].trunks} == {(LLAMA, "ram"), (TALK, "ram")}
    finally:
        await keeping.stop(PATIENCE_S)


def test_shelves_share_no_number() -> None:
    """Numbers of different engines never meet in the store, and each says whose it is."""
    taken: list[int] = []

    class Store:
        def park(self, number: int, header: bytes, payload: bytes) -> bool:
            taken.append(number)
            return True

        def fetch(self, number: int) -> None:
            taken.append(number)

        def drop(self, number: int) -> None:
            taken.append(number)

    for place in range(3):
        shelf = Shelf(Store(), place, 3)
        for number in range(1, 5):
            shelf.park(number, b"", b"")
    assert len(set(taken)) == 12
    assert [(n % 3, n // 3) for n in taken] == [(place, number) for place in range(3) for number in range(1, 5)]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["engines.talk.sequences=50"], "engines.talk.model: is missing; give the GGUF file of the model"),
        (["engines.talk.model=x.gguf", "engines.talk.threads=-3"], "engines.talk.threads: -3, must be 0 to 512"),
        (
            ["engines.talk.model=x.gguf", "engines.talk.sequences=20"],
            "engines.talk.sequences: 20 must exceed engines.talk.kv.prefixes (12) + engines.talk.kv.lanes (24)",
        ),
        (["engines.talk.model=x.gguf", "engines.talk.sequenzes=20"], "did you mean 'engines.talk.sequences'?"),
        (["engines.talk.model=x.gguf", "engines.talk.speculation.drafts=some"], "engines.talk.speculation.drafts: "),
        (["engines.llama.model=x.gguf"], "engines.llama: 'llama' is the engine of [engine]"),
        (["engines.Talk.model=x.gguf"], "'engines.Talk' must be named with small letters, digits and single"),
        (["engines.talk=5"], "'engines.talk' is a section, not a value"),
        (["routes.reply.engine=talk"], "routes.reply.engine: there is no engine 'talk'; there is: llama"),
        (
            ["engines.talk.model=x.gguf", "routes.reply.engine=tlak"],
            "routes.reply.engine: there is no engine 'tlak'; there is: llama, talk; did you mean 'talk'?",
        ),
        (
            ["engines.talk.model=x.gguf", "engines.talk.context_len=300", "routes.reply.engine=talk"],
            "routes.reply.output_max: 512 is more than engine.context_len (300) holds",
        ),
    ],
)
def test_a_faulty_engine_is_named_by_its_setting(sets: list[str], said: str) -> None:
    """The error has the name that the setting has in the user's file."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(None, sets, {})


@pytest.mark.parametrize(
    ("usable", "threads"),
    [(1, [1, 1]), (2, [1, 1]), (3, [1, 1]), (4, [1, 2]), (8, [3, 4]), (16, [7, 8]), (64, [31, 32])],
)
def test_cores_are_shared(usable: int, threads: list[int]) -> None:
    """Each engine has a thread at least, together they leave a core to the event loop where there are three, and an
    engine alone has all of the others.
    """
    assert list(share_cores(usable, [LLAMA, TALK], {LLAMA}).values()) == threads
    assert usable < 3 or sum(threads) < usable
    assert share_cores(usable, [LLAMA], {LLAMA}) == {LLAMA: max(1, usable - 1)}
    three = share_cores(usable, [LLAMA, TALK, "more"], {LLAMA})
    assert min(three.values()) == 1 or sum(three.values()) < usable


async def test_only_engines_without_gold_give_way() -> None:
    """The engine of intents does not, nor does one that some intents go to by a row."""
    async with running(gated(), talking(), further={TALK: plain()}) as rig:
        assert {e.name: e.gives_way for e in rig.daemon.engines.values()} == {LLAMA: False, TALK: True}
    config = by_rows(intent=(When(TALK, world=("x",)),))
    async with running(gated(), config, further={TALK: plain()}) as rig:
        assert not any(e.gives_way for e in rig.daemon.engines.values())


async def test_a_thread_gives_way() -> None:
    """The kernel has the engine's thread at a lower priority, and no other one."""
    async with running(gated(), talking(), further={TALK: plain()}) as rig:
        give_way(rig.daemon.engines[TALK].backend.thread_id)
        nice = {e.name: os.getpriority(os.PRIO_PROCESS, e.backend.thread_id) for e in rig.daemon.engines.values()}
        assert nice[TALK] == min(19, nice[LLAMA] + NICE) and os.getpriority(os.PRIO_PROCESS, 0) == nice[LLAMA]


def test_engines_from_a_file_and_the_environment(tmp_path: Path) -> None:
    """A table in the file and a variable make one engine; the first engine's settings are not inherited."""
    file = tmp_path / "npcd.toml"
    file.write_text(
        "[engine]\nthreads = 3\n[engines.talk]\nmodel = 'big.gguf'\n[engines.talk.kv]\nlanes = 8\n"
        "[routes.reply]\nengine = 'talk'\n"
    )
    config = load(file, (), {"NPCD_ENGINES__TALK__THREADS": "2"})
    talk = config.engines["talk"]
    assert (config.engine.threads, talk.threads, talk.kv.lanes, talk.model.name) == (3, 2, 8, "big.gguf")
    assert config.routes.engines() == [LLAMA, "talk"]


def test_an_engine_that_cannot_be_loaded_names_its_setting(tmp_path: Path) -> None:
    """The message is about engines.talk.model, and the engine that was loaded before is closed."""
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    fast = {"threads": 1, "flash_attention": "off", "weights": "file"}
    config = talking(Config(engine=LlamaSettings(SHIPPED_MODEL, 42, 1024, **fast)))  # type: ignore[arg-type]
    config = replace(config, engines={TALK: FurtherEngine(tmp_path / "x.gguf", 42, 1024, **fast)})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^engines\.talk\.model: .*x\.gguf"):
        load_models(config)


def test_an_engine_that_no_route_names_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model's file need not even exist."""
    loaded: list[str] = []

    def load_model(config: Config, setup: object, *_: object) -> Model:
        loaded.append(getattr(setup, "name", ""))
        return gated()

    monkeypatch.setattr("daemon.engines.load_model", load_model)
    config = Config(engines={TALK: FurtherEngine(Path("nowhere.gguf"))})
    load_models(config)
    assert loaded == [LLAMA]
    intents_elsewhere = Routes(intent=Route(config.routes.intent.tier, TALK, 8))
    loaded.clear()
    load_models(replace(config, routes=intents_elsewhere))
    assert loaded == [TALK, LLAMA], "the engine of intents comes first"


def by_rows(**rows: tuple[When, ...]) -> Config:
    """Two engines, and rows that send some works to the second."""
    routes = UNHURRIED.routes
    for kind, when in rows.items():
        routes = replace(routes, **{kind: replace(getattr(routes, kind), when=when)})
    return replace(UNHURRIED, routes=routes, engines={TALK: FurtherEngine(SHIPPED_MODEL)})


async def test_rows_send_some_npcs_to_another_engine() -> None:
    """Intents of one archetype are asked on the second engine, in its model's tokens, and those of others on the first.
    Their trunks are made where they are asked.
    """
    second = plain()
    async with running(gated(), by_rows(intent=(When(TALK, archetype=("vampire",)),)), further={TALK: second}) as rig:
        await rig.daemon.door.all_ended()
        answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale"))
        found = {npc.npc_id: {t.engine for t in npc.trunks} for npc in answer.npcs}
        assert found == {"npc0": {LLAMA}, "npc1": {TALK}, "npc2": {LLAMA}, "npc3": {TALK}}
        before = second.engine.steps
        await meets_a_wolf(rig, "npc0")
        await rig.daemon.door.all_ended()
        assert second.engine.steps == before
        assert (await meets_a_wolf(rig, "npc1")).action
        assert second.engine.steps > before


async def test_a_reply_reads_what_the_npc_sees_in_its_own_models_tokens() -> None:
    """The tail of a reply on the second engine is what that model's layout makes of its sections."""
    works: list[Work] = []
    async with running(gated(), talking(), further={TALK: plain()}) as rig:
        await meets_a_wolf(rig, "npc0")
        backend = rig.daemon.engines[TALK].backend
        submit = backend.submit

        def watched(group: Sequence[Submitted]) -> None:
            works.extend(one.work for one in group)
            submit(group)

        backend.submit = watched  # type: ignore[method-assign]
        await rig.say("npc0", "What is that?")
    work = next(w for w in works if w.max_tokens)
    layout = rig.daemon.engines[TALK].layout
    assert work.script is not None and any(s.kind is SectionKind.SIGHT for s in work.script.tail)
    assert tuple(work.tail.tolist()) == layout.encode(work.script.tail)


async def test_a_conversation_stays_on_its_engine_until_its_trunk_is_computed_anew() -> None:
    """Its trunk grows beyond a row's bound and stays where it is. After the rebuild the row holds, the next reply runs
    on the other engine, and nothing is left on the first.
    """
    rows = (When(TALK, context_min=120),)
    config = by_rows(reply=rows)
    config = replace(config, hot=replace(config.hot, turns_max=8, turns_kept=6))
    async with running(gated(), config, further={TALK: plain()}) as rig:
        engines = []
        for n in range(6):
            await rig.say("npc0", f"Line {n}: " + "so it was, and the bell rang over the old mill. " * 3, max_tokens=8)
            await rig.daemon.door.all_ended()
            answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"]))
            (place,) = [t.engine for t in answer.npcs[0].trunks if t.partner]
            engines.append(place)
        session = rig.daemon.dialogue.hot.find(rig.daemon.worlds.npc("", "vale", "npc0").key, "p1", 0)
        assert session is not None and session.rebuilds
        assert engines == [LLAMA] * 3 + [TALK] * 3, "turn 4 fills the hot window"
        await end(rig)
        answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"]))
        assert not [t for t in answer.npcs[0].trunks if t.partner]

"""Benchmarks: figures are kept and shown unchanged, and both sides of a comparison do the same work."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

import core.observation
from core.choice import Node
from core.clock import MS, now_ns
from core.errors import ConfigError
from core.words import Finish, Tier
from daemon.words import observation
from daemon.worlds.limits import WorldLimits
from daemon.worlds.worlds import Worlds
from engines.llama import LlamaSettings, send_native_log_to
from loadtests.bench import __main__ as command_line
from loadtests.bench import figures, flood
from loadtests.bench.bare import Bare
from loadtests.bench.call_names import CALLS
from loadtests.bench.elsewhere import Elsewhere
from loadtests.bench.options import Options
from loadtests.bench.peer import INTENT_NPCS, TALK_NPCS, Prompts
from loadtests.bench.rig import TRUNK_LEN, OpenLoop, Refill, Rig, Village
from loadtests.bench.served import LANE
from loadtests.bench.sights import sight
from loadtests.bench.stretches import Stretches
from loadtests.peers import llama_server
from loadtests.peers.http_calls import HttpCalls, HttpError
from loadtests.scene import load_scene
from npcd.v1 import intents_pb2, npcs_pb2
from npcd_client import Observation, wire
from prompts.caps import Caps
from prompts.choices import ActionWord
from prompts.layout import Layout
from prompts.sight import state_of
from tools.fetch_chat_model import MEMBER

MODEL = figures.ROOT / "models" / "npcd-demo.gguf"
SMALL = LlamaSettings(
    MODEL, sequences=56, context_len=512, batch_len=512, threads=1, flash_attention="off", weights="file"
)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_a_figure_is_shown_with_its_unit_and_whether_its_goal_was_kept() -> None:
    """Each figure is printed at once on a line, and missed goals are named."""
    lines: list[str] = []
    found = figures.Figures(lines.append)
    found.add("step.efficiency_32", 0.97)
    found.add("gold.queue_p99_ms_under_prefill", 9.5)
    found.add("made.up_x", 2)
    assert lines[0].split() == ["step.efficiency_32", "0.970", "x", "goal", ">=", "0.95:", "kept"]
    assert lines[1].endswith("MISSED")
    assert found.missed == ["gold.queue_p99_ms_under_prefill"]


def test_without_a_chat_model_an_area_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the command that fetches one, and the option. A missing file is named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"python -m tools\.fetch_chat_model.*--chat-model"):
        Options(MODEL, frozenset(), "", "", quick=True).chat()
    with pytest.raises(ConfigError, match=r"no file .*none\.gguf"):
        Options(MODEL, frozenset(), "", "", quick=True, chat_model=tmp_path / "none.gguf").chat()
    assert Options(MODEL, frozenset(), "", "", quick=True, chat_model=MODEL).chat() == MODEL
    kept = tmp_path / "npcd" / Path(MEMBER).name
    kept.parent.mkdir()
    kept.touch()
    assert Options(MODEL, frozenset(), "", "", quick=True).chat() == kept


def test_the_longest_stretch_of_a_call_has_a_goal_and_every_call_has_words() -> None:
    """Each rpc that is built has at least one measured call."""
    assert figures.KNOWN["pauses.longest_call_ms"].goal == "< 5"
    for name in CALLS:
        for key in (f"pauses.call_{name}_ms", f"pauses.call_{name}_wall_ms"):
            assert figures.KNOWN[key].what and figures.KNOWN[key].unit == "ms", key


def test_a_stretch_is_what_the_loop_runs_without_a_turn_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest stretch is kept with its name until it is taken."""
    monkeypatch.setattr(asyncio.Handle, "_run", asyncio.Handle._run)
    stretches = Stretches()
    stretches.start()

    async def works() -> None:
        while time.thread_time_ns() < until_ns:
            pass

    until_ns = time.thread_time_ns() + 20_000_000
    asyncio.run(works())
    said = stretches.take()
    assert said["cpu_ns"] >= 15_000_000 and "works" in said["what"] and said["wall_ns"] > 0
    assert stretches.take() == {"cpu_ns": 0, "wall_ns": 0, "what": ""}


def test_results_merge_into_one_flat_file(tmp_path: Path) -> None:
    """An area overwrites its own keys and leaves the others; the machine of its measurement is beside them."""
    path = tmp_path / "results" / "bench.json"
    first, second = figures.Figures(lambda _: None), figures.Figures(lambda _: None)
    first.add("step.plan_us", 20)
    first.add("flood.gold_x", 1.4)
    first.merge_into(path, "scheduler")
    second.add("flood.gold_x", 1.2)
    second.merge_into(path, "scheduler", 0.04)
    written = json.loads(path.read_text())
    assert written["step.plan_us"] == 20
    assert written["flood.gold_x"] == 1.2
    assert written["meta.scheduler.others"] == "4%"
    assert {key for key in written if key.startswith("meta.")} == {
        f"meta.scheduler.{name}" for name in ("cpu", "cores", "python", "commit", "date", "others")
    }
    assert not [value for value in written.values() if not isinstance(value, int | float | str)]


def test_the_table_has_machine_goals_and_every_figure() -> None:
    """Known figures come in their order with words and goal, unknown ones after them; the machine is above."""
    text = figures.table(
        {
            "other.thing_ms": 3.14159,
            "flood.gold_x": 1.7,
            "step.efficiency_32": 0.96,
            "meta.scheduler.cpu": "Some CPU",
            "meta.scheduler.cores": "2",
            "meta.scheduler.python": "3.11.7",
            "meta.scheduler.commit": "abc1234",
            "meta.scheduler.date": "2026-11-20",
            "meta.scheduler.others": "2%",
        }
    )
    lines = text.splitlines()
    assert lines[0] == "scheduler: Some CPU, 2 cores, Python 3.11.7, commit abc1234, 2026-11-20; others took 2% of it"
    assert [line.split("`")[1] for line in lines[4:]] == ["step.efficiency_32", "flood.gold_x", "other.thing_ms"]
    assert "1.7 x | <= 1.5 **missed** |" in lines[5]


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown area, an unknown part, and an empty table are errors with a hint."""
    assert command_line.main(["weather"]) == 2
    assert command_line.main(["scheduler", "--only", "sleep"]) == 1
    assert command_line.main(["--table", "--results", str(tmp_path / "none.json")]) == 1
    said = capsys.readouterr().err
    assert "there are scheduler" in said
    assert "it has steps, prefill, flood, get, cancel" in said
    assert "run a benchmark first" in said


def test_our_own_work_is_not_somebody_elses() -> None:
    """A busy loop of this process does not count as others' work."""
    elsewhere = Elsewhere()
    ends_ns = now_ns() + 300 * MS
    while now_ns() < ends_ns:
        pass
    share = elsewhere.share()
    assert share is None or 0.0 <= share <= 1.0


# -- the rig -----------------------------------------------------------------------------------------------------------


async def test_the_rig_runs_works_of_all_kinds_and_notes_their_steps() -> None:
    """Open-loop Gold, refilled Bronze and fresh Silver all end, and every token of a step is counted."""
    send_native_log_to(None)
    async with Rig(SMALL) as rig:
        village = Village(rig.engine.vocab)
        await rig.run([village.trunk_only(n) for n in range(8)])
        assert sum(sum(s.tokens) for s in rig.steps) == 8 * TRUNK_LEN
        rig.steps.clear()
        bronze = Refill(rig, 2, lambda slot: village.speech(Tier.BRONZE, slot, 12))
        silver = Refill(rig, 1, lambda slot: village.fresh(slot, 200))
        gold = OpenLoop(rig, village.intent)
        begin_ns = now_ns() + 5 * MS
        await gold.play([(begin_ns + n * 10 * MS, [n % 8, (n + 1) % 8]) for n in range(6)])
        bronze.stop()
        silver.stop()
        await rig.idle()
        assert len(gold.asked) == 12
        for asked in gold.asked:
            assert asked.ended is not None
            assert asked.ended.finish is Finish.STOP
            assert len(asked.chunks_ns) == 3
            assert asked.due_ns <= asked.submitted_ns <= asked.ended_ns
        assert sum(s.tokens[Tier.GOLD] for s in rig.steps) == 12 * (24 + 2)
        assert rig.stages.count("step") == rig.stages.count("decode") >= len(rig.steps)


def test_the_bare_side_makes_the_tokens_that_a_greedy_work_makes() -> None:
    """Both sides have the same model, the same positions and the same outputs."""
    send_native_log_to(None)

    async def scheduled(village: Village) -> list[int]:
        async with Rig(SMALL) as rig:
            work = village.speech(Tier.SILVER, 3, 9)
            made: list[int] = []
            rig.door.submit(work, lambda _: None, lambda chunk: made.extend(chunk.tokens))
            await rig.idle()
            tails.append(work.tail)
            return made

    tails: list[object] = []
    bare = Bare(SMALL, 4)
    try:
        village = Village(bare.engine.vocab)
        made = asyncio.run(scheduled(village))
        bare.prepare([village.trunks[n] for n in range(4)])
        seen: list[int] = []
        inner = bare._decode

        def noting(n: int) -> object:
            token = inner(n)
            seen.append(int(token[3]))
            return token

        bare._decode = noting  # type: ignore[method-assign, assignment]
        bare.run(TRUNK_LEN, [tails[0]] * 4, 9)  # type: ignore[list-item]
        assert seen == made
    finally:
        bare.close()


def test_the_flood_asks_every_npc_twice_a_second_neighbours_together() -> None:
    """200 NPCs are asked 400 times a second, in groups of four."""
    dues = flood._dues(0, 3.0)
    assert sum(len(numbers) for _, numbers in dues) == 1200
    assert dues == sorted(dues)
    assert {len(numbers) for _, numbers in dues} == {4}


def test_notes_of_lanes_are_of_one_size() -> None:
    """The canceller unpacks the bytes that the daemon packs."""
    packed = LANE.pack(5, 3, 24, b"canceller-7") + LANE.pack(6, -1, 24, b"x" * 32)
    assert [(a, b, c, d.rstrip(b"\0")) for a, b, c, d in LANE.iter_unpack(packed)] == [
        (5, 3, 24, b"canceller-7"),
        (6, -1, 24, b"x" * 32),
    ]


# -- the same work on both sides ---------------------------------------------------------------------------------------


def received(seen: Observation) -> core.observation.Observation:
    """An observation as the daemon has it, after the wire."""
    message = wire.observation(seen, 1).SerializeToString()
    return observation(intents_pb2.Observation.FromString(message), 0, 0)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    """The demo village as the peer gets it."""
    return Prompts(MODEL, load_scene())


def test_the_peer_gets_the_trunks_that_the_daemon_makes(prompts: Prompts) -> None:
    """They are equal to those of Register, token for token, and no two are the same."""
    scene = load_scene()
    layout = Layout(prompts.vocab, Caps())
    worlds = Worlds([layout], WorldLimits(), {})
    world = wire.define_world(scene.world, 0).SerializeToString()
    worlds.define("", npcs_pb2.DefineWorldRequest.FromString(world))
    specs = [npcs_pb2.NpcSpec.FromString(wire.npc_spec(spec).SerializeToString()) for spec in prompts.specs]
    worlds.register("", npcs_pb2.RegisterRequest(world_id=scene.world.world_id, npcs=specs))
    npcs = worlds.world("", scene.world.world_id).npcs
    for npc_id, trunk in zip(prompts.npc_ids, prompts.trunks, strict=True):
        assert layout.trunk(npcs[npc_id].script).tokens.tolist() == list(trunk)
    assert len(set(prompts.trunks)) == len(prompts.trunks) == INTENT_NPCS + TALK_NPCS


def test_the_peer_gets_the_tails_that_the_daemon_makes(prompts: Prompts) -> None:
    """They follow from the same observation, through the wire and back."""
    layout = Layout(prompts.vocab, Caps())
    for number in range(40):
        seen = sight("mira", number, number + 1, urgent=True)
        tail, entities = prompts.tail(seen)
        perception = layout.perceive(received(seen))
        assert tail == layout.intent_tail(perception).tokens
        assert entities == tuple(p.entity_id for p in perception.percepts)
        assert 16 <= len(tail) <= 32


def test_every_look_says_something_else_and_forces_nothing() -> None:
    """Two looks in a row differ as states, so npcd asks about each. Each has three percepts to choose from."""
    for number in range(20):
        states = []
        for tick in range(1, 30):
            seen = received(sight("mira", number, tick, urgent=True))
            assert len(seen.percepts) == 3
            states.append(state_of(seen, 5))
        assert all(a != b for a, b in pairwise(states))


def test_the_grammar_allows_what_the_choice_allows(prompts: Prompts) -> None:
    """It allows the same actions, with the same targets, then the same emotions."""
    world = load_scene().world
    words = [ActionWord(a.word, a.needs_target, a.speaks) for a in world.actions]
    choice = prompts.layout.intents(words, world.emotions)[3]
    grammar = prompts.grammar(3)
    root, feel = grammar.splitlines()
    ways = [way.split(") (") for way in root.removeprefix("root ::= ").split(" feel")[:-1]]
    allowed = {(action, target) for actions, targets in ways for action in _ids(actions) for target in _ids(targets)}
    assert allowed == {
        (int(action), int(target))
        for action, after in zip(choice.ids, choice.nexts, strict=True)
        for target in after.ids
    }
    assert _ids(feel) == {int(token) for token in _last(choice).ids}


def test_an_answer_in_tokens_reads_as_words(prompts: Prompts) -> None:
    """It gives the action, the entity that the mark names, and the emotion."""
    action, nobody, second = (
        prompts.layout.word("greet")[0],
        prompts.layout.marks["p0"][0],
        prompts.layout.marks["p2"][0],
    )
    calm = prompts.layout.word("calm")[0]
    assert prompts.answer([action, second, calm], ["a", "b", "c"]) == ("greet", "b", "calm")
    assert prompts.answer([action, nobody, calm], ["a", "b", "c"]) == ("greet", "", "calm")


def _ids(text: str) -> set[int]:
    return {int(part.split("]")[0]) for part in text.split("<[")[1:]}


def _last(node: Node) -> Node:
    while not node.nexts[0].complete:
        node = node.nexts[0]
    return node


def test_the_peer_is_started_as_asked() -> None:
    """The peer is started from the package with its settings as JSON, or as a program with flags."""
    settings = next(llama_server.grid("m.gguf", 4000))
    python = llama_server.command(settings, "py", "")
    assert python[0] == "py"
    assert llama_server.PeerSettings(**json.loads(python[2])) == settings
    program = llama_server.command(settings, "py", "bin/llama-server")
    assert program[:3] == ["bin/llama-server", "--model", "m.gguf"]
    assert program[program.index("--ctx-size") + 1] == str(16 * 1024)


# -- http --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def echo() -> AsyncIterator[tuple[HttpCalls, list[str]]]:
    """A server that answers a body, streams it as events, fails, or hangs up after one answer."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append("connection")
        while line := await reader.readline():
            path, length = line.split()[1].decode(), 0
            while header := (await reader.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            body = await reader.readexactly(length)
            heard.append(path)
            if path == "/stream":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                # An event that is split over two chunks, and two events in one chunk.
                for part in (b'data: {"n"', b": 1}\n\n", b'data: {"n": 2}\n\ndata: [DONE]\n\n'):
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            else:
                status = "500 Sorry" if path == "/fail" else "200 OK"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            if path == "/once":
                writer.close()
                return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    calls = HttpCalls("127.0.0.1", server.sockets[0].getsockname()[1], 2)
    yield calls, heard
    await calls.close()
    server.close()


async def test_a_connection_is_kept_for_the_next_call(echo: tuple[HttpCalls, list[str]]) -> None:
    """Answers and streams in any order use one connection."""
    calls, heard = echo
    assert await calls.post("/say", {"a": 1}) == {"a": 1}
    assert [event async for event in calls.stream("/stream", {})] == [{"n": 1}, {"n": 2}]
    assert await calls.post("/say", {"b": [2]}) == {"b": [2]}
    assert heard == ["connection", "/say", "/stream", "/say"]


async def test_a_connection_that_was_closed_meanwhile_is_replaced(echo: tuple[HttpCalls, list[str]]) -> None:
    """The server hangs up between two calls, and the second call succeeds."""
    calls, heard = echo
    assert await calls.post("/once", {"a": 1}) == {"a": 1}
    await asyncio.sleep(0.05)
    assert await calls.post("/say", {"a": 2}) == {"a": 2}
    assert heard.count("connection") == 2


async def test_an_answer_that_is_no_success_is_an_error_with_its_text(echo: tuple[HttpCalls, list[str]]) -> None:
    """The server's text is in the message."""
    calls, _ = echo
    with pytest.raises(HttpError, match=r"500 Sorry.*why"):
        await calls.post("/fail", {"why": "because"})


async def test_nobody_there_is_not_healthy() -> None:
    """A closed port gives False, and no exception."""
    assert not await HttpCalls("127.0.0.1", 1, 1).get("/health")

"""A chat model's words: does it act as a designer wants, and does it speak as the NPC and for nobody else?

Intents and replies go the daemon's way, from a world's definition to the engine, without the daemon around it. Nothing
here is a timing. The situations and lines are in real_situations.toml.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from core.choice import Option
from core.clock import now_ns
from core.errors import ConfigError
from core.observation import Observation, Percept
from core.script import SectionKind, player_line
from core.words import Finish
from core.work import Chunk, Ended, Sampling, Work
from daemon.model import lay_out
from daemon.worlds.limits import WorldLimits
from daemon.worlds.policy_file import load_policy
from daemon.worlds.works import Works
from daemon.worlds.world import Npc, World
from daemon.worlds.worlds import Worlds
from engines.backend import Delivery
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from loadtests.bench.figures import Figures
from loadtests.scene import load_scene
from npcd.v1 import npcs_pb2
from npcd_client.wire import define_world
from prompts.caps import Caps
from prompts.guard_rules import GuardSettings
from prompts.guards import guarded
from prompts.layout import Layout
from prompts.templates import find_markup
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.step_backend import StepBackend
from scheduler.ticket import Door
from tiers.policy import PolicyRow, evaluate
from tiers.policy_table import read_sections
from tiers.promises import Promises
from tiers.routing import LLAMA, Routes

DATA = Path(__file__).with_name("real_situations.toml")
AT_ONCE = 16
CONTEXT_LEN = 1024
EXAMPLES_LEN = 192  # tokens; eight rows of the data fit
REPLIES = 300
REPLY_LEN = 32
TEMPERATURE = 0.7
PLAYER = "Tilda"
ROUTES = Routes()
# A label is a capitalised name with a colon, at the beginning of a reply or of a line in it.
_LABEL = re.compile(r"(?:^|\n)\s*[\"(*]*[A-Z][\w' ]{0,27}:")


@dataclass(frozen=True, slots=True)
class Case:
    """A situation, and the action that a designer wants."""

    wanted: str
    archetype_id: str
    seen: Observation


@dataclass(frozen=True, slots=True)
class Data:
    """The content of real_situations.toml."""

    policy: tuple[PolicyRow, ...]
    lines: tuple[str, ...]
    name_lines: tuple[str, ...]
    held_out: tuple[Case, ...]


class Chat:
    """A chat model behind npcd's scheduler, and the works of its NPCs. Start it with `async with`."""

    def __init__(self, model: Path) -> None:
        send_native_log_to(None)
        kv = KvSettings(prefixes=8, lanes=AT_ONCE)
        self.engine = LlamaEngine(
            LlamaSettings(model, sequences=8 + AT_ONCE + 12, context_len=CONTEXT_LEN, weights="file")
        )
        self.promises = replace(
            Promises(),
            gold=replace(Promises().gold, running_max=AT_ONCE),
            silver=replace(Promises().silver, running_max=AT_ONCE, waiting_max=64),
        )
        scheduler = Scheduler(self.engine, self.promises, SchedulerSettings(kv=kv))
        template = self.engine.card.chat_template
        self.layout, why = lay_out(self.engine.vocab, template, Caps())
        if self.layout.kind != "chat":
            raise ConfigError(f"--chat-model: {model}: not a chat model for npcd: {why}")
        self.markup = find_markup(template, self.engine.vocab).markup
        self.backend = StepBackend(scheduler)
        self.door = Door({LLAMA: self.backend}, self.promises, now_ns)
        self._loop = asyncio.get_running_loop()
        self._death: BaseException | None = None

    async def __aenter__(self) -> Chat:
        self.backend.start(self._deliver, self._died)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.door.stop(5.0, "the benchmark is over"):
            self.engine.close()

    async def answers(self, works: Sequence[Work]) -> list[tuple[Ended, str]]:
        """How each work ended, and its text; `AT_ONCE` works at a time."""
        out: list[tuple[Ended, str]] = []
        for at in range(0, len(works), AT_ONCE):
            part = [_Heard(work) for work in works[at : at + AT_ONCE]]
            self.door.submit_group([(heard.work, heard.end, heard.take) for heard in part])
            await self.door.all_ended()
            if self._death is not None:
                raise self._death
            out += [(heard.ended, heard.text.decode("utf-8", "replace")) for heard in part if heard.ended is not None]
        return out

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        self._loop.call_soon_threadsafe(self.door.deliver, deliveries)

    def _died(self, error: BaseException) -> None:
        self._death = error
        self._loop.call_soon_threadsafe(self.door.end_all, "the engine thread died")


class Before(Layout):
    """Chat prompts as they were: no worked examples, and the answer begins its message, so that an action has no space
    before it and a vocabulary has most actions in pieces.
    """

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat.engine.vocab, Caps(examples=0), chat.markup)
        self.marks = {**self.marks, "do": self.marks["npc"]}

    def _spell(self, stage: str, option: Option) -> tuple[int, ...]:
        return self._short(option.text) if stage == "actions" else super()._spell(stage, option)


class _Heard:
    """The chunks and the end that come back of one work."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.text = b""
        self.ended: Ended | None = None

    def take(self, chunk: Chunk) -> None:
        self.text += chunk.text

    def end(self, ended: Ended) -> None:
        self.ended = ended


class Village:
    """The scene's world with the policy of the data, as one layout reads it, and one NPC of each archetype."""

    def __init__(self, chat: Chat, data: Data, layout: Layout | None = None, turned: bool = False) -> None:
        layout = layout or chat.layout
        scene = load_scene()
        request = npcs_pb2.DefineWorldRequest.FromString(define_world(scene.world, 0).SerializeToString())
        del request.policy.rows[:]
        request.policy.rows.extend(npcs_pb2.PolicyRow(**asdict(row)) for row in data.policy)
        if turned:
            actions = request.actions[::-1]
            del request.actions[:]
            request.actions.extend(actions)
        worlds = Worlds([layout], WorldLimits(), load_policy())
        self.world: World = worlds.define("", request)[0]
        # Of each archetype the first resident of the scene.
        homes = {archetype: persona for persona, archetype, _ in reversed(scene.homes)}
        specs = [npcs_pb2.NpcSpec(npc_id=a, archetype_id=a, persona_id=p) for a, p in homes.items()]
        worlds.register("", npcs_pb2.RegisterRequest(world_id=self.world.world_id, npcs=specs))
        self.npcs: dict[str, Npc] = self.world.npcs
        self.layout, self.vocab, self.markup = layout, chat.engine.vocab, chat.markup
        self.works = Works({LLAMA: layout}, chat.promises)

    def intent(self, case: Case) -> Work:
        """The work that asks what an NPC does."""
        perception = self.layout.perceive(case.seen)
        tail, choice = self.layout.intent_tail(perception), self.world.choices[len(perception.percepts)]
        return self.works.chooses(self.npcs[case.archetype_id], ROUTES.intent, tail, choice, now_ns(), None)

    def reply(self, npc: Npc, line: str, seed: int, player: str = "") -> Work:
        """The work that answers a player's first line."""
        tail = self.layout.talk_tail(player_line(line, player))
        sampling = Sampling(temperature=TEMPERATURE, seed=seed)
        return self.works.speaks(npc, ROUTES.reply, tail, now_ns(), None, f"p{seed}", REPLY_LEN, sampling)


def read(path: Path = DATA) -> Data:
    """The data of the file."""
    content = tomllib.loads(path.read_text("utf-8"))
    held_out = tuple(_case(line) for line in content["situations"]["held_out"].strip().splitlines())
    sections = read_sections(content["policy"], path.name)
    ordered = sorted(sections.values(), key=lambda section: not section.archetype_id)
    rows = tuple(row for section in ordered for row in section.rows)
    return Data(rows, tuple(content["lines"]), tuple(content["name_lines"]), held_out)


def _case(line: str) -> Case:
    action, archetype_id, time, place, health, event, percepts = (part.strip() for part in line.split("|"))
    seen = []
    for number, words in enumerate(filter(None, percepts.split(" + ")), 1):
        kind, stance, distance_m = words.split()
        seen.append(Percept(f"e{number}", kind, "" if stance == "-" else stance, float(distance_m)))
    events = (event,) if event else ()
    return Case(action, archetype_id, Observation(1, tuple(seen), events, time, place, float(health)))


async def run(figures: Figures, model: Path, quick: bool) -> None:
    """Measures intents. Raises ConfigError when the model cannot be loaded."""
    async with Chat(model) as chat:
        await _intents(figures, chat, read(), quick)


async def run_replies(figures: Figures, model: Path, quick: bool) -> None:
    """Measures replies. Raises ConfigError when the model cannot be loaded."""
    async with Chat(model) as chat:
        await _replies(figures, chat, read(), quick)


# -- intents -----------------------------------------------------------------------------------------------------------


async def _intents(figures: Figures, chat: Chat, data: Data, quick: bool) -> None:
    cases = data.held_out[:: 4 if quick else 1]
    shows = Layout(chat.engine.vocab, Caps(examples=EXAMPLES_LEN), chat.markup)
    village = Village(chat, data, shows)
    villages = {
        "before": Village(chat, data, Before(chat)),
        "accuracy": village,
        "accuracy_turned": Village(chat, data, shows, turned=True),
    }
    for name, asked in villages.items():
        actions = await chosen(chat, asked, cases)
        right = sum(action == case.wanted for action, case in zip(actions, cases, strict=True))
        figures.add(f"real.intent_{name}", right / len(cases))
        figures.note(f"  most frequent answers: {counted(actions)}")
    figures.add("real.intent_gain", figures.found["real.intent_accuracy"] - figures.found["real.intent_before"])
    rows, wanted = village.world.policy, [case.wanted for case in cases]
    figures.add("real.intent_rules", sum(_by_rule(rows, case) == case.wanted for case in cases) / len(cases))
    figures.add("real.intent_majority", Counter(wanted).most_common(1)[0][1] / len(cases))
    examples = [s for s in village.npcs["villager"].script.sections if s.kind is SectionKind.EXAMPLE]
    tokens = sum(len(shows.render(section).tokens) for section in examples)
    figures.note(f"  worked examples of a villager: {len(examples)}, {tokens} tokens of the shared prefix")


async def chosen(chat: Chat, village: Village, cases: Sequence[Case]) -> list[str]:
    """The model's action in each situation."""
    answers = await chat.answers([village.intent(case) for case in cases])
    return [village.world.actions[dict(ended.labels)["actions"]].word for ended, _ in answers]


def _by_rule(rows: Sequence[PolicyRow], case: Case) -> str:
    answer = evaluate(rows, case.archetype_id, case.seen)
    return answer.action if answer is not None else ""


def counted(words: Sequence[str]) -> str:
    """The most frequent words, with their numbers."""
    return ", ".join(f"{word} {count}" for word, count in Counter(words).most_common(5))


# -- replies -----------------------------------------------------------------------------------------------------------


async def _replies(figures: Figures, chat: Chat, data: Data, quick: bool) -> None:
    village = Village(chat, data)
    npcs = list(village.npcs.values())
    named = [(npc, line) for npc in npcs for line in data.name_lines]
    own = [village.reply(npc, line, seed) for seed, (npc, line) in enumerate(named)]
    told = [village.reply(npc, line, seed, PLAYER) for seed, (npc, line) in enumerate(named)]
    plain = [_plainly(village, npc, line, seed) for seed, (npc, line) in enumerate(named)]
    answers = await chat.answers(own)
    sides = {"named_share": answers, "named_told_share": await chat.answers(told)}
    sides["named_plain_share"] = await chat.answers(plain)
    for key, heard in sides.items():
        pairs = zip(named, heard, strict=True)
        figures.add(f"real.{key}", _share(npc.name in _guarded(npc, text) for (npc, _), (_, text) in pairs))
    more = [(npc, line) for npc in npcs for line in data.lines][: 18 if quick else REPLIES - len(named)]
    works = [village.reply(npc, line, len(named) + n) for n, (npc, line) in enumerate(more)]
    asked, answers = named + more, answers + await chat.answers(works)
    texts = [text.strip() for _, text in answers]
    kept = [_guarded(npc, text) for (npc, _), text in zip(asked, texts, strict=True)]
    figures.add("real.labels_raw_share", _share(_LABEL.search(text) is not None for text in texts))
    figures.add("real.labels_share", _share(_LABEL.search(text) is not None for text in kept))
    for text in filter(_LABEL.search, kept):
        figures.note(f"  counted as a label: {text!r}")
    figures.add("real.thoughts", sum("<think>" in text for text in kept))
    figures.add("real.reply_words", sum(len(text.split()) for text in kept) / len(kept))
    figures.add("real.replies_ended_share", _share(ended.finish is Finish.STOP for ended, _ in answers))
    for (npc, line), text in list(zip(asked, texts, strict=True))[:: len(asked) // 6]:
        figures.note(f"  {npc.name}, to {line!r}: {text!r}")


def _guarded(npc: Npc, text: str) -> str:
    """A reply as the player hears it: a label is no answer."""
    return guarded(text.strip(), GuardSettings().reply(native=False), [npc.name], ["player", PLAYER]).kept


def _plainly(village: Village, npc: Npc, line: str, seed: int) -> Work:
    """The same question to a model that is told who it is, and nothing else."""
    work = village.reply(npc, line, seed)
    encode = village.vocab.encode
    assert village.markup is not None
    head, opens = village.markup.head, village.markup.opens
    told = (*head, *encode(f"{village.markup.system_lead}You are {npc.name}. {npc.persona.text}"), *opens)
    work.trunk, work.shared = np.asarray(told, np.int32), 0
    work.key = work.key._replace(partner=f"plain{seed}")
    return work


def _share(found: Iterable[bool]) -> float:
    marks = list(found)
    return sum(marks) / len(marks)

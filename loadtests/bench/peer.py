"""The same mixed work on npcd and on llama.cpp's llama-server, open loop, in turns.

The work, per second of a rate r: r intents of 96 NPCs of the demo village in turn, each with a persona of its own
(trunk of about 270 tokens, tail of about 20, three tokens out of the world's choice), and r / 20 dialogue turns of 12
other NPCs (the trunk, up to four turns, a line, then up to 24 greedy tokens, streamed). Moments are random and the same
for both sides, trunks and tails are the same token ids, and answers are compared. Latency counts from the moment when
an intent or a line was due. An intent that agrees with a newer observation answers the older ones too.

npcd: `npcd serve` with its defaults, on a Unix socket. Intents go through one Live stream of npcd_client, dialogues
through Talk. Barks are off, because the peer does not make them, and the cadence is raised so that every observation is
asked about. npcd also prepares each finished turn's trunk in the background.

llama-server: see loadtests/peers/llama_server.py; its settings are the best of a grid that is printed. The caller keeps
the conversations' tokens for it.

Servers and caller are three processes on the same cores; a server that is not measured is idle. The rates are 60 % and
120 % of the slower side's with 64 callers who never pause.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Protocol

from core.clock import MS, S, now_ns
from core.observation import Observation as Seen
from core.observation import Percept as SeenPercept
from core.script import player_line
from engines.llama import load_vocab, send_native_log_to
from loadtests.bench.children import Child
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options
from loadtests.bench.rig import until
from loadtests.bench.sights import sight
from loadtests.peers import llama_server
from loadtests.peers.http_calls import HttpCalls, HttpError
from loadtests.peers.llama_server import PeerSettings
from loadtests.scene import Scene, load_scene
from npcd_client import (
    Client,
    Intent,
    IntentSource,
    Live,
    NpcdError,
    NpcSpec,
    Observation,
    Overloaded,
    Persona,
    TalkEventKind,
)
from npcd_client.v1 import admin_pb2
from prompts.choices import ActionWord
from prompts.layout import Layout
from scheduler.meter import percentile

PARTS = ("llama_server",)
INTENT_NPCS = 96
TALK_NPCS = 12
# Family names, each made of two parts.
FIRST = ("Ash", "Black", "Cold", "Deep", "East", "Fox", "Grey", "Hill", "Iron", "Long", "Moss", "North")
LAST = ("brook", "field", "ford", "ham", "wood", "stone", "mere", "well", "gate")
INTENTS_PER_TURN = 20
TURNS_PER_TALK = 4
REPLY_LEN = 24
CALLERS = 64
CAPACITY_S = 3.0
FINAL_CAPACITY_S = 6.0
ROUND_S = 8.0
ROUNDS = 3
DRAIN_S = 15.0
CONNECTIONS = 256
READY_S = 60.0


@dataclass(slots=True)
class Tally:
    """The results of one round of one side. Latencies are in nanoseconds; `answers` are by (NPC, tick)."""

    intents_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    answers: dict[tuple[int, int], tuple[str, str, str]] = field(default_factory=dict)
    replies: dict[tuple[int, int], str] = field(default_factory=dict)  # by (NPC, turn)
    turns: int = 0
    reply_tokens: int = 0
    computed_tokens: int = 0
    failed: int = 0
    cut_ns: list[int] = field(default_factory=list)  # ages of intents without an answer when the round was cut off
    cut_first_ns: list[int] = field(default_factory=list)  # ages of lines without a first text
    refused: int = 0  # refused lines that were said again
    late_ns: list[int] = field(default_factory=list)  # the caller's own lateness

    @property
    def done(self) -> int:
        """Intents and turns that were completed."""
        return len(self.intents_ns) + self.turns

    @property
    def gold_p95_ms(self) -> float:
        """p95 of intent latency; an intent without an answer counts with its age."""
        return percentile(self.intents_ns + self.cut_ns, 0.95) / MS

    @property
    def ttft_p95_ms(self) -> float:
        """p95 of line due to first text; a line without a text counts with its age."""
        return percentile(self.first_ns + self.cut_first_ns, 0.95) / MS


class Side(Protocol):
    """One server as the caller sees it. Raises HttpError or NpcdError."""

    name: str

    async def computed_tokens(self) -> int:
        """Prompt tokens that it has computed so far; cache hits do not count."""

    async def intend(self, number: int, tick: int) -> tuple[str, str, str]:
        """Asks for an NPC's intent: action, target, emotion."""

    async def say(self, number: int, line: str, fresh: bool, on_first: Callable[[], None]) -> tuple[str, int]:
        """Runs one turn and returns the reply and its tokens. `fresh` marks the first turn of a conversation."""


def villagers(scene: Scene) -> list[NpcSpec]:
    """The village's NPCs with a family name each, so that no two trunks are the same."""
    people = {p.persona_id: p for p in scene.world.personas}
    specs = []
    for n, r in enumerate(scene.residents(INTENT_NPCS + TALK_NPCS)):
        person = people[r.persona_id]
        name = f"{person.name} {FIRST[n % len(FIRST)]}{LAST[n // len(FIRST)]}"
        specs.append(NpcSpec(r.npc_id, r.archetype_id, persona=Persona(r.npc_id, name, person.text)))
    return specs


class Prompts:
    """The demo village as token ids, made with the daemon's own layout."""

    def __init__(self, model: Path, scene: Scene) -> None:
        send_native_log_to(None)
        self.vocab = load_vocab(model)
        self.layout = Layout(self.vocab)
        if not self.layout.native:
            raise NpcdError(f"{model} has no npcd control tokens; the comparison needs a model made for npcd")
        world = scene.world
        self._actions = [ActionWord(a.word, a.needs_target, a.speaks) for a in world.actions]
        shared = self.layout.world(world.lore, self._actions, world.emotions)
        kinds = {a.archetype_id: self.layout.archetype(a.archetype_id, a.description) for a in world.archetypes}
        self.specs = villagers(scene)
        self.npc_ids = [spec.npc_id for spec in self.specs]
        self.trunks = []
        for spec in self.specs:
            assert spec.persona is not None, "everybody here has one of their own"
            persona = self.layout.persona(spec.persona.name, spec.persona.text)
            self.trunks.append(shared + kinds[spec.archetype_id] + persona)
        self.emotions = {self._one(word): word for word in world.emotions}
        self.actions = {self._one(a.word): a for a in self._actions}

    def tail(self, seen: Observation) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """An observation as an intent's tail, and the entities of <|1|>, <|2|>, ..."""
        perception = self.layout.perceive(
            Seen(
                seen.tick,
                tuple(SeenPercept(p.entity_id, p.kind, p.stance, p.distance_m, p.in_sight) for p in seen.percepts),
                seen.events,
                seen.time_of_day,
                seen.place,
                1.0 if seen.health is None else seen.health,
            )
        )
        return self.layout.intent_tail(perception).tokens, tuple(p.entity_id for p in perception.percepts)

    def grammar(self, percepts: int) -> str:
        """The grammar of an intent that can name so many percepts."""
        marks = [self.layout.marks[f"p{i}"][0] for i in range(percepts + 1)]
        actions = [(token, marks[1:] if a.needs_target else marks) for token, a in self.actions.items()]
        return llama_server.token_grammar(actions, list(self.emotions))

    def answer(self, tokens: Sequence[int], entities: Sequence[str]) -> tuple[str, str, str]:
        """Three tokens in words."""
        action, target, emotion = tokens
        marks = [self.layout.marks[f"p{i}"][0] for i in range(len(entities) + 1)]
        which = marks.index(target)
        return self.actions[action].word, entities[which - 1] if which else "", self.emotions[emotion]

    def _one(self, word: str) -> int:
        tokens = self.layout.word(word)
        assert len(tokens) == 1, f"'{word}' is {len(tokens)} tokens; the comparison is about intents of three"
        return tokens[0]


class NpcdSide:
    """npcd through its Python client."""

    def __init__(self, client: Client, live: Live, prompts: Prompts, name: str) -> None:
        self.name = name
        self._client = client
        self._live = live
        self._prompts = prompts
        # By NPC: questions without an answer yet, oldest first.
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[Intent]]]] = {n: deque() for n in prompts.npc_ids}

    def answered(self, intent: Intent) -> None:
        """A new intent of the model has come; a rule of the policy only stands in for one."""
        if intent.source is not IntentSource.MODEL:
            return
        waiting = self._waiting[intent.npc_id]
        while waiting and waiting[0][0] <= intent.observed_tick:
            _, future = waiting.popleft()
            if not future.done():
                future.set_result(intent)

    async def computed_tokens(self) -> int:
        return (await self.status()).prefilled_tokens

    async def status(self) -> admin_pb2.StatusResponse:
        """The daemon's own counts."""
        return await self._client.status()

    async def intend(self, number: int, tick: int) -> tuple[str, str, str]:
        npc = self._prompts.npc_ids[number]
        future: asyncio.Future[Intent] = asyncio.get_running_loop().create_future()
        self._waiting[npc].append((tick, future))
        self._live.observe(sight(npc, number, tick, urgent=True))
        intent = await future
        return intent.action, intent.target_entity_id, intent.emotion

    async def say(self, number: int, line: str, fresh: bool, on_first: Callable[[], None]) -> tuple[str, int]:
        npc = self._prompts.npc_ids[number]
        if fresh:
            await self._client.end_session(npc, "player")
        text, tokens = "", 0
        async for event in self._client.talk(npc, "player", line, max_tokens=REPLY_LEN, temperature=0.0):
            if event.kind is TalkEventKind.TEXT:
                if not text:
                    on_first()
                text += event.text
            if event.kind is TalkEventKind.END and event.timings is not None:
                tokens = event.timings.output_tokens
        return text, tokens


class PeerSide:
    """llama-server through HTTP. Keeps the conversations, since the server does not."""

    name = "llama-server"

    def __init__(self, http: HttpCalls, settings: PeerSettings, prompts: Prompts) -> None:
        self._http = http
        self._settings = settings
        self._prompts = prompts
        self._grammars = [prompts.grammar(n) for n in range(9)]
        self._talks: dict[int, tuple[int, ...]] = {}
        self._computed = 0

    async def computed_tokens(self) -> int:
        return self._computed

    async def intend(self, number: int, tick: int) -> tuple[str, str, str]:
        prompts = self._prompts
        tail, entities = prompts.tail(sight(prompts.npc_ids[number], number, tick, urgent=True))
        body = llama_server.intent_body(
            prompts.trunks[number] + tail, self._grammars[len(entities)], self._slot(number)
        )
        answer = await self._http.post("/completion", body)
        self._computed += int(answer["timings"]["prompt_n"])
        return prompts.answer(answer["tokens"], entities)

    async def say(self, number: int, line: str, fresh: bool, on_first: Callable[[], None]) -> tuple[str, int]:
        layout = self._prompts.layout
        trunk = self._prompts.trunks[number] if fresh else self._talks.get(number, self._prompts.trunks[number])
        turn = player_line(line)
        body = llama_server.turn_body(trunk + layout.talk_tail(turn).tokens, REPLY_LEN, self._slot(number))
        text, count, ends = "", 0, self._prompts.vocab.eog_ids
        async for event in self._http.stream("/completion", body):
            if event.get("content") and not text:
                on_first()
            text += event.get("content", "")
            self._computed += int(event.get("timings", {}).get("prompt_n", 0)) if event.get("stop") else 0
            if not event.get("stop"):
                count += sum(token not in ends for token in event.get("tokens", ()))
        self._talks[number] = trunk + layout.render(turn).tokens + layout.npc_turn(text)
        return text, count

    def _slot(self, number: int) -> int:
        return number % self._settings.slots if self._settings.pin else -1


class Caller:
    """Plays the work on one side. With `patient` a refused line is said again after the retry time, and its latency
    goes on from when it was due.
    """

    def __init__(self, side: Side, lines: Sequence[str], patient: bool = False) -> None:
        self.side = side
        self._lines = lines
        self._patient = patient
        self._ticks = [0] * INTENT_NPCS
        self._next_npc = 0
        self._turns = [0] * TALK_NPCS
        self._next_talk = 0
        # One NPC answers one line at a time; asyncio.Lock wakes waiters in order.
        self._floors = [asyncio.Lock() for _ in range(TALK_NPCS)]

    async def meet(self) -> None:
        """Asks every NPC once, so that a cache that can hold them all does."""
        tally, now = Tally(), now_ns()
        for _ in range(0, INTENT_NPCS, 16):
            await asyncio.gather(*(self._intent(tally, now) for _ in range(16)))
        await asyncio.gather(*(self.turn(tally, now) for _ in range(TALK_NPCS)))

    async def busy(self, seconds: float) -> float:
        """Callers who never pause. Returns intents per second."""
        tally = Tally()
        ends_ns = now_ns() + round(seconds * S)
        units = iter(range(10**9))

        async def call() -> None:
            while now_ns() < ends_ns:
                if next(units) % (INTENTS_PER_TURN + 1) == INTENTS_PER_TURN:
                    await self.turn(tally, now_ns())
                else:
                    await self._intent(tally, now_ns())

        began_ns = now_ns()
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        if tally.failed > tally.done:
            raise NpcdError(f"{self.side.name} refused {tally.failed} of {tally.failed + tally.done} calls")
        return len(tally.intents_ns) / ((now_ns() - began_ns) / S)

    async def play(self, intents_per_s: float, seconds: float, turn: int) -> Tally:
        """Plays open loop at a rate, the same for the same `turn`. Requests without an answer DRAIN_S after the end are
        cut off."""
        tally, chance = Tally(), random.Random(turn)
        computed = await self.side.computed_tokens()
        # Ticks grow over rounds, and the same round asks both sides the same.
        self._ticks = [(turn + 1) * 1_000_000] * INTENT_NPCS
        self._next_npc = 0
        self._next_talk = 0
        self._turns = [turn * TURNS_PER_TALK * 1_000] * TALK_NPCS
        tasks: set[asyncio.Task[None]] = set()
        began_ns = now_ns()
        at_ns, unit = began_ns + 20 * MS, 0
        while at_ns < began_ns + seconds * S:
            await until(at_ns)
            tally.late_ns.append(now_ns() - at_ns)
            unit += 1
            is_turn = unit % (INTENTS_PER_TURN + 1) == 0
            task = asyncio.create_task(self.turn(tally, at_ns) if is_turn else self._intent(tally, at_ns))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            at_ns += round(chance.expovariate(intents_per_s * (1 + 1 / INTENTS_PER_TURN)) * S)
        left = set(tasks)
        if left:
            _, late = await asyncio.wait(left, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        tally.computed_tokens = await self.side.computed_tokens() - computed
        return tally

    async def _intent(self, tally: Tally, due_ns: int) -> None:
        number, self._next_npc = self._next_npc, (self._next_npc + 1) % INTENT_NPCS
        self._ticks[number] += 1
        tick = self._ticks[number]
        try:
            answer = await self.side.intend(number, tick)
        except (NpcdError, HttpError):
            tally.failed += 1
            return
        except asyncio.CancelledError:
            tally.cut_ns.append(now_ns() - due_ns)
            raise
        tally.intents_ns.append(now_ns() - due_ns)
        tally.answers[number, tick] = answer

    async def turn(self, tally: Tally, due_ns: int) -> None:
        """Says one line that was due then, and counts the answer."""
        which, self._next_talk = self._next_talk, (self._next_talk + 1) % TALK_NPCS
        heard = False

        def on_first() -> None:
            nonlocal heard
            heard = True
            tally.first_ns.append(now_ns() - due_ns)

        try:
            async with self._floors[which]:
                turn, self._turns[which] = self._turns[which], self._turns[which] + 1
                line = self._lines[(which + turn) % len(self._lines)]
                text, said = await self._say(tally, which, line, turn % TURNS_PER_TALK == 0, on_first)
        except (NpcdError, HttpError):
            tally.failed += 1
            return
        except asyncio.CancelledError:
            if not heard:
                tally.cut_first_ns.append(now_ns() - due_ns)
            raise
        tally.turns += 1
        tally.reply_tokens += said
        tally.replies[which, turn] = text.strip()

    async def _say(
        self, tally: Tally, which: int, line: str, fresh: bool, on_first: Callable[[], None]
    ) -> tuple[str, int]:
        while True:
            try:
                return await self.side.say(INTENT_NPCS + which, line, fresh, on_first)
            except Overloaded as error:
                if not self._patient:
                    raise
                tally.refused += 1
                fresh = False  # the conversation has begun already
                await asyncio.sleep(error.retry_ms / 1000)


@asynccontextmanager
async def npcd_side(
    model: Path, prompts: Prompts, scene: Scene, name: str = "npcd", sets: Sequence[str] = ()
) -> AsyncIterator[NpcdSide]:
    """A daemon of our own with the village registered."""
    command = [
        *(sys.executable, "-m", "npcd", "serve", "--listen", "unix:{folder}/npcd.sock", "--http", ""),
        *("--data", "{folder}/data"),
        *(
            "--no-supervise",
            "--model",
            str(model),
            "--set",
            "intents.bark_every_ms=0",
            "--set",
            "intents.cadence.active_hz=20",
        ),
        *(part for one in sets for part in ("--set", one)),
    ]
    async with Child(command) as child, Client(f"unix:{child.folder}/npcd.sock") as client:
        try:
            await client.wait_ready(READY_S)
        except NpcdError as error:
            raise NpcdError(f"{error}; {child.log}") from error
        await client.define_world(scene.world)
        await client.register(prompts.specs)
        sides: list[NpcdSide] = []
        async with client.live(on_intent=lambda intent: sides[0].answered(intent)) as live:
            sides.append(NpcdSide(client, live, prompts, name))
            yield sides[0]


@asynccontextmanager
async def peer_side(settings: PeerSettings, options: Options, prompts: Prompts) -> AsyncIterator[PeerSide]:
    """A llama-server of our own. Raises NpcdError that says what to install when there is none."""
    command = llama_server.command(settings, options.peer_python, options.peer_binary)
    http = HttpCalls(llama_server.HOST, settings.port, CONNECTIONS)
    async with Child(command, talks=not options.peer_binary) as child:
        ends_ns = now_ns() + round(READY_S * S)
        while not await http.get("/health"):
            if child.ended or now_ns() > ends_ns:
                raise NpcdError(f"llama-server ({settings.words}) does not come up:\n{child.log}")
            await asyncio.sleep(0.05)
        try:
            yield PeerSide(http, settings, prompts)
        finally:
            await http.close()


async def run(figures: Figures, options: Options) -> None:
    """Runs the grid, both capacities, and the rounds. Raises NpcdError when a server is missing or refuses."""
    scene = load_scene()
    prompts = Prompts(options.model, scene)
    lines = [line for situation in scene.player.lines.values() for line in situation]
    figures.note(
        f"llama-server: {options.peer_binary or f'xllamacpp of {options.peer_python}'}; trunks of "
        f"{min(map(len, prompts.trunks))} to {max(map(len, prompts.trunks))} tokens"
    )
    best = await _best(figures, options, prompts, lines)
    async with (
        npcd_side(options.model, prompts, scene) as ours,
        peer_side(best, options, prompts) as theirs,
    ):
        us, them = Caller(ours, lines), Caller(theirs, lines)
        seconds = 2.0 if options.quick else FINAL_CAPACITY_S
        most: dict[str, list[float]] = {"npcd": [], "llama-server": []}
        for caller in (us, them):
            await caller.meet()
        for caller in (us, them, us, them):
            await caller.busy(1.0)
            most[caller.side.name].append(await caller.busy(seconds / 2))
        npcd_most, peer_most = median(most["npcd"]), median(most["llama-server"])
        figures.add("peer.npcd.intents_per_s", npcd_most, 0)
        figures.add("peer.llama_server.intents_per_s", peer_most, 0)
        slower = min(npcd_most, peer_most)
        await _rounds(figures, us, them, 0.6 * slower, "", options.quick)
        await _rounds(figures, us, them, 1.2 * slower, "_overload", options.quick)


async def _best(figures: Figures, options: Options, prompts: Prompts, lines: Sequence[str]) -> PeerSettings:
    """The settings that serve most intents: the best of the grid, then the best of a few more choices on top of it."""
    seconds = 1.0 if options.quick else CAPACITY_S
    figures.note(f"-- llama-server's settings, {CALLERS} callers for {seconds:g} s each: intents/s")

    async def measure(settings: PeerSettings) -> float:
        try:
            async with peer_side(settings, options, prompts) as side:
                caller = Caller(side, lines)
                await caller.meet()
                await caller.busy(seconds / 4)
                rate = await caller.busy(seconds)
        except HttpError as error:
            figures.note(f"   {settings.words}: {error}")
            return 0.0
        figures.note(f"   {settings.words}: {rate:.0f}")
        return rate

    first = list(llama_server.grid(str(options.model), free_port()))
    if options.quick:
        first = first[4:6]
    tried = [(await measure(settings), settings) for settings in first]
    rate, best = max(tried, key=lambda one: one[0])
    # Pinning cannot do better than a slot for every NPC.
    for more in ({"pin": True}, {"pin": True, "slots": 128}, {"threads": 2}, {"cache_ram_mib": 2048}):
        other = replace(best, **more)
        other_rate = await measure(other)
        if other_rate > rate:
            rate, best = other_rate, other
    figures.note(f"   best: {best.words}")
    return best


async def _rounds(figures: Figures, us: Caller, them: Caller, rate: float, suffix: str, quick: bool) -> None:
    """Rounds at one rate, in turns, and their figures."""
    seconds, rounds = (2.0, 1) if quick else (ROUND_S, ROUNDS)
    share = "120 %" if suffix else "60 %"
    figures.note(f"-- {share}: {rate:.0f} intents/s and {rate / INTENTS_PER_TURN:.1f} turns/s; {rounds} rounds")
    ours: list[Tally] = []
    theirs: list[Tally] = []
    for turn in range(rounds):
        order = [(us, ours), (them, theirs)]
        for caller, into in order[:: -1 if turn % 2 else 1]:
            tally = await caller.play(rate, seconds, turn + (100 if suffix else 0))
            into.append(tally)
            figures.note(f"   round {turn + 1}, {caller.side.name}: {words(tally)}")
    pairs = list(zip(ours, theirs, strict=True))
    figures.add(f"peer.llama_server.gold_x{suffix}", median(t.gold_p95_ms / o.gold_p95_ms for o, t in pairs))
    figures.add(f"peer.llama_server.ttft_x{suffix}", median(t.ttft_p95_ms / o.ttft_p95_ms for o, t in pairs))
    for name, tallies in (("npcd", ours), ("llama_server", theirs)):
        figures.add(f"peer.{name}.gold_p95_ms{suffix}", median(t.gold_p95_ms for t in tallies))
        figures.add(f"peer.{name}.ttft_p95_ms{suffix}", median(t.ttft_p95_ms for t in tallies))
    if not suffix:  # above that, newer observations supersede older ones
        same = [o.answers[k] == t.answers[k] for o, t in pairs for k in o.answers.keys() & t.answers.keys()]
        alike = [o.replies[k] == t.replies[k] for o, t in pairs for k in o.replies.keys() & t.replies.keys()]
        figures.note(
            f"   the same intent to the same question: {sum(same) / max(1, len(same)):.1%} of {len(same)}, "
            f"the same reply to the same line: {sum(alike) / max(1, len(alike)):.1%} of {len(alike)}"
        )
        figures.add("peer.llama_server.done_x", sum(t.done for t in theirs) / max(1, sum(o.done for o in ours)))
        tokens = sum(t.reply_tokens for t in theirs) / max(1, sum(o.reply_tokens for o in ours))
        figures.note(f"   tokens of replies, llama-server's over npcd's: {tokens:.3f}")


def words(tally: Tally) -> str:
    """One round in words."""
    gold = "/".join(f"{percentile(tally.intents_ns + tally.cut_ns, p) / MS:.1f}" for p in (0.5, 0.95, 0.99))
    first = "/".join(f"{percentile(tally.first_ns, p) / MS:.1f}" for p in (0.5, 0.95, 0.99))
    each = tally.computed_tokens / max(1, tally.done)
    return (
        f"{len(tally.intents_ns)} intents p50/p95/p99 {gold} ms, {tally.turns} turns, first token {first} ms, "
        f"{tally.reply_tokens} tokens said, {each:.0f} prompt tokens computed for each, "
        f"{tally.failed} failed, {len(tally.cut_ns)} cut off, caller late p95 "
        f"{percentile(tally.late_ns, 0.95) / MS:.1f} ms"
    )


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as one:
        one.bind((llama_server.HOST, 0))
        return int(one.getsockname()[1])

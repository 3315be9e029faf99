"""Everything is constructed here, by hand, in the order it depends on each other."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from core.clock import MS, Clock, S, now_ns
from core.slices import Slicer
from core.spread import Spread
from core.words import Activation, NpcKey, Tier
from daemon.config import Config
from daemon.engines import Engine, adapters_of, golden, open_engines
from daemon.minds.answers import Answers
from daemon.minds.attention import Attention
from daemon.minds.barks import Barks
from daemon.minds.intents import Intents
from daemon.minds.loading import Loading
from daemon.minds.look_ahead import LookAhead
from daemon.minds.mind import Mind
from daemon.minds.npc_events import NpcEvents
from daemon.minds.pacing import Pacing
from daemon.minds.pressure import Pressure
from daemon.minds.questions import Questions
from daemon.minds.table import Table
from daemon.model import Model
from daemon.rpc.admin import Admin
from daemon.rpc.calls import Calls
from daemon.rpc.changes import Changes
from daemon.rpc.deleting import Deleting
from daemon.rpc.describing import Describing
from daemon.rpc.forgetting import Forgetting
from daemon.rpc.intent_streams import IntentStreams
from daemon.rpc.owed import Owed
from daemon.rpc.recalling import Recalling
from daemon.rpc.save_games import SaveGames
from daemon.rpc.status import About, AboutEngine, Lifecycle, StatusBoard
from daemon.rpc.upkeep import Upkeep
from daemon.rpc.world_records import WorldRecords
from daemon.talk.dialogue import Dialogue
from daemon.talk.sessions import Sessions
from daemon.worlds.guide import Guide
from daemon.worlds.policy_file import load_policy
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from daemon.worlds.worlds import Worlds
from engines.backend import Backend
from memory.bonds import Bonds
from memory.hot import Hot
from memory.memory import Memory
from memory.parked import Parked
from memory.recall import Recall
from npcd import __version__
from prompts.layout import Layout, Perception
from scheduler.step_backend import StepBackend
from scheduler.ticket import Door
from tiers.asking import Asking
from tiers.routing import WorkKind, check_engines


@dataclass(frozen=True, slots=True)
class Ground:
    """The parts that every room stands on."""

    config: Config
    clock: Clock
    epoch: int
    door: Door
    worlds: Worlds
    works: Works
    memory: Memory
    slicer: Slicer
    slice_ns: int
    table: Table
    guide: Guide


@dataclass(frozen=True, slots=True)
class Minds:
    """The parts that decide what NPCs intend (daemon/minds/)."""

    table: Table
    events: NpcEvents
    pacing: Pacing
    pressure: Pressure
    attention: Attention
    look_ahead: LookAhead
    intents: Intents

    def felt(self, npc: Npc) -> str:
        """The emotion of the NPC's newest intent; empty without one."""
        mind = self.table.mind(npc.key)
        return mind.intent.emotion if mind is not None and mind.intent is not None else ""

    def perceived(self, npc: Npc, layout: Layout) -> Perception | None:
        """The NPC's newest observation, as a model's prompt has it."""
        mind = self.table.mind(npc.key)
        return layout.perceive(mind.seen) if mind is not None and mind.seen is not None else None


@dataclass(slots=True)
class Daemon:
    """The parts, put together: main starts and stops them."""

    calls: Calls
    upkeep: Upkeep
    dialogue: Dialogue
    memory: Memory
    worlds: Worlds
    table: Table
    attention: Attention
    look_ahead: LookAhead
    intents: Intents
    deleting: Deleting
    door: Door
    engines: Mapping[str, Engine]
    board: StatusBoard
    lag: Spread
    clock: Clock

    @property
    def step_backend(self) -> StepBackend:
        """The backend that intents go to by default."""
        return next(iter(self.engines.values())).backend


def wall_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // MS


def unix_s() -> int:
    """Unix time in seconds."""
    return time.time_ns() // S


def hot_only(config: Config, clock: Clock) -> Memory:
    """Memory that ends with this process."""
    bonds = Bonds(config.memory.bonds_max)
    recall = Recall(bonds, None, config.memory.recent.recall_ms, config.memory.reads_max, clock, wall_ms)
    return Memory(bonds, recall, None, None, None, wall_ms)


def build(
    config: Config,
    models: Mapping[str, Model],
    lifecycle: Lifecycle,
    drain: Callable[[float], Awaitable[None]],
    clock: Clock = now_ns,
    memory: Memory | None = None,
    saves: Path | None = None,
    ill: Callable[[], list[str]] = list,
    parked: Parked | None = None,
    pseudonym_key: bytes = b"",
    others: Mapping[str, Backend] = MappingProxyType({}),
) -> Daemon:
    """The daemon around loaded models (by engine, that of intents first), on the running event loop; nothing is
    started yet.

    Without `memory` it remembers what this process remembers. `saves` is the folder for save games, if there are any.
    `ill` says what else is not as it should be, a line each. `parked` takes KV that has no room in RAM.
    `pseudonym_key` is the data folder's; without one, players' pseudonyms are this process's own. `others` are backends
    beside the models' own, by the names that routes have for them.

    In this order: the engines, the worlds, the memory, the minds, the conversations, the rpcs.
    """
    engines = open_engines(config, models, parked, clock)
    first = next(iter(engines.values()))
    backends: dict[str, Backend] = {**{name: engine.backend for name, engine in engines.items()}, **others}
    check_engines(config.routes, backends)
    door = Door(backends, config.promises, clock)

    # The first layout also makes what backends read as text.
    layouts = {**dict.fromkeys(others, first.layout), **{name: engine.layout for name, engine in engines.items()}}
    policy, adapters = load_policy(config.worlds.policy_file), adapters_of(models)
    worlds = Worlds([engine.layout for engine in engines.values()], config.worlds, policy, adapters, unix_s)
    text_only = [name for name, backend in backends.items() if backend.limits.reads_text]
    works = Works(layouts, config.promises, text_only, config.guards)
    memory = memory or hot_only(config, clock)
    memory.has_world = worlds.has_world
    slice_ns = round(config.calls.slice_ms * MS)
    slicer = Slicer(slice_ns, clock)
    table = Table(config.intents, memory, clock)

    def activation(npc: NpcKey) -> Activation:
        mind = table.mind(npc)
        return mind.activation if mind is not None else Activation.AMBIENT

    guide = Guide(config.routes, works, activation)
    ground = Ground(config, clock, time.time_ns() // MS, door, worlds, works, memory, slicer, slice_ns, table, guide)

    sessions = Sessions(Hot(config.hot), memory, worlds, works, door, guide, ground.epoch, clock)
    minds = build_minds(ground, sessions)
    dialogue = Dialogue(
        worlds, works, door, sessions, memory, config.promises, guide, config.dialogue,
        minds.perceived, minds.felt, minds.attention.spoke, minds.pacing.admit, minds.pacing.first_text, clock,
    )  # fmt: skip

    lag = Spread(bounds_ns=config.promises.bounds_ns())
    about = About(__version__, {name: about_engine(e) for name, e in engines.items()}, ground.epoch, clock())
    board = StatusBoard(
        about, lifecycle, door, worlds, minds.table, minds.intents, minds.attention, minds.look_ahead, dialogue, memory,
        minds.pacing, minds.pressure, lag, partial(degraded, door, memory, ill), clock,
    )  # fmt: skip
    admin = Admin(board, door, drain)
    calls, upkeep, deleting = build_calls(ground, minds, dialogue, board, admin, saves, parked, pseudonym_key)
    return Daemon(
        calls, upkeep, dialogue, memory, worlds, minds.table, minds.attention, minds.look_ahead, minds.intents,
        deleting, door, engines, board, lag, clock,
    )  # fmt: skip


def build_minds(ground: Ground, sessions: Sessions) -> Minds:
    """The parts behind intents: what NPCs see, whom to ask and when, and how the answers are kept."""
    config, clock, door, works, worlds = ground.config, ground.clock, ground.door, ground.works, ground.worlds
    route = config.routes.of(WorkKind.INTENT)
    backend = door.backends[route.engine]

    def roomy() -> bool:
        return backend.snapshot.kv.roomy

    table, guide, events = ground.table, ground.guide, NpcEvents()
    questions = Questions(worlds, works, guide, sessions.digest)
    asking: Asking[Mind] = Asking(config.intents.asking, questions.tokens_each)

    def put_off() -> int:
        return len(asking.line)

    pressure = Pressure(door, config.promises, config.shedding, clock, put_off)
    pacing = Pacing(
        door, config.promises, config.routes, config.pace, golden(config.routes), config.intents.cadence,
        config.intents.activation, config.intents.answer_within_ms, clock,
    )  # fmt: skip
    attention = Attention(config.intents.activation, pacing, table, events, ground.memory, door, clock)

    def may_bark(activation: Activation) -> bool:
        return pressure.allows_barks() and pacing.allows_barks(activation)

    barks = Barks(table, works, door, guide, config.intents, may_bark, clock)

    def spare() -> bool:
        return pacing.allows_look_ahead() and pressure.spare()

    look_ahead = LookAhead(config.intents.prediction, questions, door, barks, spare, clock)
    answers = Answers(table, barks, questions, worlds, config.intents)
    loading = Loading(worlds, questions, door, roomy, pacing.allows_loads, clock)
    intents = Intents(
        asking, table, attention, answers, look_ahead, questions, loading, door, backend.expect,
        partial(door.stalled, route.engine), ground.slice_ns, clock,
    )  # fmt: skip
    return Minds(table, events, pacing, pressure, attention, look_ahead, intents)


def build_calls(
    ground: Ground,
    minds: Minds,
    dialogue: Dialogue,
    board: StatusBoard,
    admin: Admin,
    saves: Path | None,
    parked: Parked | None,
    pseudonym_key: bytes,
) -> tuple[Calls, Upkeep, Deleting]:
    """The rpcs, the upkeep of their records in the background, and the deletions under way."""
    config, clock, door, worlds, memory = ground.config, ground.clock, ground.door, ground.worlds, ground.memory
    table, intents, events, slicer = minds.table, minds.intents, minds.events, ground.slicer
    changes, owed = Changes(), Owed()
    records = WorldRecords(worlds, memory, owed, slicer)
    save_games = SaveGames(worlds, dialogue, memory, records, ground.epoch, saves, changes, slicer)
    forgetting = Forgetting(worlds, table, dialogue, door, memory, parked, save_games, owed, changes, slicer)
    upkeep = Upkeep(worlds, memory, records, forgetting, owed, changes, clock)
    deleting = Deleting(worlds, table, intents, dialogue, events, memory, save_games, changes, slicer)
    streams = IntentStreams(
        worlds, table, intents, ground.epoch, config.calls.observations_max, config.calls.frame_ms, slicer, clock
    )
    describing = Describing(table, minds.attention, door, pseudonym_key or secrets.token_bytes(32), slicer, clock)
    calls = Calls(
        worlds, table, intents, streams, describing, events, dialogue, board, memory, records,
        Recalling(worlds, memory), forgetting, save_games, admin, deleting, config.calls, changes, slicer, clock,
    )  # fmt: skip
    return calls, upkeep, deleting


def about_engine(engine: Engine) -> AboutEngine:
    """An engine's values for Status."""
    model = engine.model
    return AboutEngine(model.engine.name, model.name, model.sha256, engine.layout_says)


def degraded(door: Door, memory: Memory, ill: Callable[[], list[str]]) -> list[str]:
    """All that is not as it should be, a line each."""
    away = [f"engine '{name}' is not ready" for name, backend in door.backends.items() if not backend.health.ready]
    full = [f"{tier.name.lower()} queue is full" for tier in Tier if door.is_full(tier)]
    return away + full + memory.degraded() + ill()

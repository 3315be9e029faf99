"""Everything is constructed here, by hand, in the order it depends on each other."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from types import MappingProxyType

import structlog

from core.clock import MS, Clock, S, now_ns
from core.errors import ConfigError
from core.files import from_home
from core.slices import Pace
from core.spread import Spread
from core.words import Tier
from daemon.config import Config
from daemon.minds.answers import Answers
from daemon.minds.attention import Attention
from daemon.minds.barks import Barks
from daemon.minds.intents import Intents
from daemon.minds.loading import Loading
from daemon.minds.look_ahead import LookAhead
from daemon.minds.npc_events import NpcEvents
from daemon.minds.pressure import Pressure
from daemon.minds.questions import Questions
from daemon.minds.table import Table
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
from daemon.rpc.status import About, Lifecycle, StatusBoard
from daemon.rpc.upkeep import Upkeep
from daemon.rpc.world_records import WorldRecords
from daemon.talk.dialogue import Dialogue
from daemon.talk.sessions import Sessions
from daemon.worlds.policy_file import load_policy
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from daemon.worlds.worlds import Worlds
from engines.backend import Backend
from engines.base import Drafter, StepEngine, Vocab
from engines.draft import ModelDrafts
from engines.llama import SEQUENCES_MAX, LlamaEngine, open_draft, send_native_log_to
from engines.lora import Adapters
from engines.tune import tune
from memory.bonds import Bonds
from memory.hot import Hot
from memory.memory import Memory
from memory.parked import Parked
from memory.recall import Recall
from npcd import __version__
from prompts.caps import Caps
from prompts.layout import Layout, Perception
from prompts.templates import find_markup, unmarked
from scheduler.drafts import Ngrams
from scheduler.scheduler import Scheduler
from scheduler.speculation import Speculation, SpeculationSettings
from scheduler.step_backend import StepBackend
from scheduler.ticket import Door
from scheduler.warmup import sweep
from tiers.routing import LLAMA, WorkKind, check_engines

log = structlog.get_logger("npcd")

SIGHT_LEN_MIN = 12  # two percepts
ANSWER_LEN = 64  # an intent or a bark, in the tokens of a model that spells
TORN_WHY = "the file's tokenizer has them with the type NORMAL, so the model reads pieces; convert it again"


@dataclass(slots=True)
class Model:
    """A loaded engine and what is known of its model."""

    engine: StepEngine
    name: str
    sha256: str
    chat_template: str = ""
    threads: int = 1
    drafter: Drafter | None = None
    adapters: Adapters | None = None

    def close(self) -> None:
        """Frees what the libraries below hold."""
        if self.drafter is not None:
            self.drafter.close()
        self.engine.close()


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
    step_backend: StepBackend
    board: StatusBoard
    lag: Spread
    clock: Clock


@dataclass(slots=True)
class LlamaModel(Model):
    """A model that llama.cpp runs, in this process."""

    engine: LlamaEngine


def load_model(config: Config) -> LlamaModel:
    """Loads the model of the configuration. Takes seconds to minutes; call it off the event loop. Raises
    ConfigError.
    """
    send_native_log_to(lambda line: log.warning("llama.cpp", line=line))
    settings, tried = tune(config.engine, now_ns)
    for t in tried:
        log.info("tried", threads=t.threads, flash_attention=t.flash_attention, weights=t.weights, round_ms=t.round_ms)
    adapters = Adapters(config.adapters, settings.model)
    engine = LlamaEngine(settings, adapters)
    if engine.weights_why:
        log.warning("the weights stay as they are in the file", why=engine.weights_why)
    engine.try_adapters()
    drafter = open_drafter(config.speculation, engine)
    send_native_log_to(None)
    card = engine.card
    log.info(
        "model loaded",
        model=card.name,
        parameters=card.parameters,
        architecture=card.architecture,
        license=card.license or "not stated in the file",
        threads=engine.threads,
        flash_attention=settings.flash_attention,
        weights=engine.settings.weights,
    )
    if 0 < card.context_trained < settings.context_len:
        log.warning(
            "a longer context than the model was trained on",
            context_len=settings.context_len,
            trained=card.context_trained,
            why="beyond it models ramble; lower engine.context_len",
        )
    if len(adapters):
        log.info("adapters", names=adapters.names, loaded_max=config.adapters.loaded_max)
    return LlamaModel(engine, card.name, card.sha256, card.chat_template, engine.threads, drafter, adapters)


def open_drafter(settings: SpeculationSettings, engine: LlamaEngine) -> Drafter | None:
    """The drafter of these settings. Raises ConfigError when a draft model does not fit the model."""
    if settings.drafts == "off":
        return None
    if settings.drafts == "ngram":
        return Ngrams(settings.match_min, settings.match_max)
    path = from_home(settings.draft_model, "speculation.draft_model")
    # A few more than work at a time: who comes again finds what was taken in.
    draft = open_draft(path, engine, max(4, min(2 * settings.works_max, SEQUENCES_MAX)))
    log.info("draft model loaded", model=draft.card.name, parameters=draft.card.parameters)
    return ModelDrafts(draft, now_ns)


def choose_layout(model: Model, caps: Caps) -> tuple[Layout, str]:
    """How prompts are laid out for this model, and why so in one line."""
    return lay_out(model.engine.vocab, model.chat_template, caps)


def lay_out(vocab: Vocab, chat_template: str, caps: Caps) -> tuple[Layout, str]:
    """The same for a tokenizer and a template."""
    layout = Layout(vocab, caps)
    if layout.native:
        return layout, "the model has npcd's control tokens"
    found = find_markup(chat_template, vocab)
    return Layout(vocab, caps, found.markup), found.why


def context_min(layout: Layout, caps: Caps) -> int:
    """Tokens that a sequence must hold for worlds as long as caps allows."""
    return layout.trunk_max + caps.intent_tail + ANSWER_LEN


def check_context(config: Config, layout: Layout, context_len: int) -> None:
    """Raises ConfigError when a sequence of so many tokens, or a route's share of it, does not hold a world."""
    shortest = context_min(layout, config.caps)
    if context_len < shortest:
        raise ConfigError(
            f"engine.context_len: {context_len} is too short for worlds as long as caps allows; "
            f"make it {shortest} or more, or lower caps.lore, caps.words, caps.archetype or caps.persona"
        )
    for kind in WorkKind:
        context_max = config.routes.of(kind).context_max
        if 0 < context_max < shortest:
            raise ConfigError(
                f"routes.{kind.value}.context_max: {context_max} is too short for worlds as long as caps allows; "
                f"make it {shortest} or more, or 0"
            )


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


def open_step_backend(config: Config, model: Model, clock: Clock) -> StepBackend:
    """The model's engine behind npcd's scheduler, its cost model warm; nothing is started yet."""
    engine, planner = model.engine, config.scheduler.planner
    planner = replace(planner, chunk_min=max(planner.chunk_min, engine.geometry.chunk_min))
    speculation = None
    if model.drafter is not None:
        speculation = Speculation(config.speculation, model.drafter, engine.vocab.eog_ids)
    scheduler = Scheduler(engine, config.promises, replace(config.scheduler, planner=planner), speculation)
    swept = sweep(engine, scheduler.costs, clock)
    log.info("warm", **asdict(swept), step_cost_us=[round(w / 1000, 1) for w in scheduler.costs.weights_ns])
    return StepBackend(scheduler, clock)


def build(
    config: Config,
    model: Model,
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
    """The daemon around a loaded model, on the running event loop; nothing is started yet.

    Without `memory` it remembers what this process remembers. `saves` is the folder for save games, if there are any.
    `ill` says what else is not as it should be, a line each. `parked` takes KV that has no room in RAM.
    `pseudonym_key` is the data folder's; without one, players' pseudonyms are this process's own. `others` are backends
    beside the model's own, by the names that routes have for them.
    """
    engine = model.engine
    epoch = time.time_ns() // MS
    layout, why = choose_layout(model, config.caps)
    log.log(WARNING if layout.kind == "plain" else INFO, "layout", kind=layout.kind, why=why)
    torn = [] if layout.native else unmarked(model.chat_template, engine.vocab)
    if torn:
        log.warning("markers of the chat template are ordinary text", markers=torn, why=TORN_WHY)
    check_context(config, layout, engine.geometry.context_len)
    if layout.sight_room < SIGHT_LEN_MIN:
        log.warning(
            "little room for what NPCs see",
            tokens=layout.sight_room,
            caps_intent_tail=config.caps.intent_tail,
            why="in this model's tokens the marks take most of it; raise caps.intent_tail",
        )

    step_backend = open_step_backend(config, model, clock)
    if parked is not None:
        step_backend.park_in(parked)
        parked.start(step_backend.fetched)
    backends: dict[str, Backend] = {LLAMA: step_backend, **others}
    check_engines(config.routes, backends)
    door = Door(backends, config.promises, clock)
    asked = backends[config.routes.intent.engine]

    slice_ns = round(config.calls.slice_ms * MS)
    worlds = Worlds([layout], config.worlds, load_policy(config.worlds.policy_file), model.adapters, unix_s)
    text_only = [name for name, backend in backends.items() if backend.limits.reads_text]
    works = Works(dict.fromkeys(backends, layout), config.promises, text_only)
    memory = memory or hot_only(config, clock)
    memory.has_world = worlds.has_world
    sessions = Sessions(Hot(config.hot), memory, worlds, works, door, config.routes, epoch, clock)

    def put_off() -> int:
        return len(intents.asking.line)

    pressure = Pressure(door, config.promises, config.shedding, clock, put_off)
    table = Table(config.intents, memory, clock)
    events = NpcEvents()

    def roomy() -> bool:
        return asked.snapshot.kv.roomy

    attention = Attention(config.intents.activation, config.intents.carry, table, events, memory, door, clock)
    barks = Barks(table, works, door, config.routes, config.intents, pressure.allows_barks, clock)

    def spare() -> bool:
        return attention.carrying.calm(clock()) and pressure.spare()

    questions = Questions(worlds, works, config.routes, sessions.digest)
    look_ahead = LookAhead(config.intents.prediction, questions, door, barks, spare, clock)
    answers = Answers(table, barks, questions, worlds, config.intents)
    loading = Loading(worlds, questions, door, roomy, clock)
    intents = Intents(
        table, attention, answers, look_ahead, questions, loading, door, config.intents, asked.expect,
        partial(door.stalled, config.routes.intent.engine), slice_ns, clock,
    )  # fmt: skip

    def felt(npc: Npc) -> str:
        mind = table.mind(npc.key)
        return mind.intent.emotion if mind is not None and mind.intent is not None else ""

    def perceived(npc: Npc) -> Perception | None:
        mind = table.mind(npc.key)
        return layout.perceive(mind.seen) if mind is not None and mind.seen is not None else None

    dialogue = Dialogue(
        worlds, works, door, sessions, memory, config.promises, config.routes, config.dialogue,
        perceived, felt, attention.spoke, clock,
    )  # fmt: skip
    lag = Spread(bounds_ns=config.promises.bounds_ns())

    def degraded() -> list[str]:
        away = [f"engine '{name}' is not ready" for name, b in backends.items() if not b.health.ready]
        full = [f"{tier.name.lower()} queue is full" for tier in Tier if door.is_full(tier)]
        return away + full + memory.degraded() + ill()

    about = About(__version__, model.name, model.sha256, engine.name, f"{layout.kind}: {why}", epoch, clock())
    board = StatusBoard(
        about, lifecycle, door, worlds, table, intents, attention, look_ahead, dialogue, memory, pressure,
        lag, degraded, clock,
    )  # fmt: skip
    changes = Changes()
    pace = Pace(slice_ns, clock)
    owed = Owed()
    records = WorldRecords(worlds, memory, owed, pace)
    save_games = SaveGames(worlds, dialogue, memory, records, epoch, saves, changes, pace)
    recalling = Recalling(worlds, memory)
    forgetting = Forgetting(worlds, table, dialogue, door, memory, parked, save_games, owed, changes, pace)
    upkeep = Upkeep(worlds, memory, records, forgetting, owed, changes, clock)
    deleting = Deleting(worlds, table, intents, dialogue, events, memory, save_games, changes, pace)
    streams = IntentStreams(
        worlds, table, intents, epoch, config.calls.observations_max, config.calls.frame_ms, pace, clock
    )
    describing = Describing(table, attention, door, pseudonym_key or secrets.token_bytes(32), pace, clock)
    calls = Calls(
        worlds, table, intents, streams, describing, events, dialogue, board, memory, records, recalling, forgetting,
        save_games, Admin(board, door, drain), deleting, config.calls, changes, pace, clock,
    )  # fmt: skip
    return Daemon(
        calls, upkeep, dialogue, memory, worlds, table, attention, look_ahead, intents, deleting, door, step_backend,
        board, lag, clock,
    )  # fmt: skip

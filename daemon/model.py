"""The model that the daemon runs: it is loaded, and prompts are laid out for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from logging import INFO, WARNING
from typing import Any

import structlog

from core.clock import Clock, S, now_ns
from core.errors import ConfigError
from core.files import from_home
from core.words import AUTO
from daemon.config import Config, engines_of
from daemon.engine_settings import EngineSetup, check_kv, named
from daemon.starting import LOADING, READING, TUNING, WARMING, Start, plan
from engines.base import Drafter, StepEngine, Vocab
from engines.draft import ModelDrafts
from engines.kept import CHOSEN, Kept, chosen_before, hash_of, keep_choice, tuning_of
from engines.llama import SEQUENCES_MAX, LlamaEngine, LlamaSettings, open_draft, send_native_log_to, version
from engines.llama.sizes import fit_ram, kv_bytes
from engines.lora import Adapters
from engines.machine import cores_here, machine_says
from engines.model_file import look, tokenizer_doubt
from engines.room import memory_free
from engines.tune import Ended, candidates, large, tune
from npcd import __version__
from prompts.caps import Caps
from prompts.layout import Layout
from prompts.templates import find_markup
from scheduler.costs import Costs
from scheduler.drafts import Ngrams
from scheduler.placing import KvSettings
from scheduler.speculation import SpeculationSettings
from scheduler.warmup import sweep
from tiers.routing import LLAMA, WorkKind

log = structlog.get_logger("npcd")

SIGHT_LEN_MIN = 12  # two percepts
ANSWER_LEN = 64  # an intent or a bark, in the tokens of a model that spells


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
    costs: Costs | None = None  # learned by the warm-up; without them the engine is warmed up when it is opened
    kv: KvSettings | None = None  # with numbers in place of AUTO; None: as in the settings

    def close(self) -> None:
        """Frees what the libraries below hold."""
        if self.drafter is not None:
            self.drafter.close()
        self.engine.close()


@dataclass(slots=True)
class LlamaModel(Model):
    """A model that llama.cpp runs, in this process."""

    engine: LlamaEngine


def load_model(
    config: Config, setup: EngineSetup | None = None, start: Start | None = None, kept: Kept | None = None
) -> LlamaModel:
    """Loads the model of one engine (None: that of `[engine]`) and warms it up. Takes seconds to minutes; call it off
    the event loop. `start` is told the stages; `kept` has what earlier starts found out. Raises ConfigError.
    """
    setup = setup or engines_of(config)[LLAMA]
    kept = kept or Kept(None)
    with named(setup), ThreadPoolExecutor(1) as beside:
        start = start or Start(plan([(setup.name, setup.settings.tune_s, 0)], stores=False), now_ns())
        model = _load(setup, start, kept, beside)
        start.begin(WARMING, setup.name, now_ns())
        model.costs = warm_up(config, setup, model.engine, now_ns, start)
    for why in kept.troubles:
        log.warning("kept file not used", engine=setup.name, why=why)
    kept.troubles.clear()
    return model


def warm_up(config: Config, setup: EngineSetup, engine: StepEngine, clock: Clock, start: Start | None = None) -> Costs:
    """Runs a few steps of every kind, and returns what they cost."""
    costs = Costs(config.scheduler.costs)

    def moved(share: float) -> None:
        if start is not None:
            start.moved(share, now_ns())

    swept = sweep(engine, costs, clock, moved=moved)
    log.info("warm", engine=setup.name, **asdict(swept), step_cost_us=[round(w / 1000, 1) for w in costs.weights_ns])
    return costs


def _load(setup: EngineSetup, start: Start, kept: Kept, beside: ThreadPoolExecutor) -> LlamaModel:
    send_native_log_to(lambda line: log.warning("llama.cpp", line=line))
    start.begin(READING, setup.name, now_ns())
    # A large file is read while it is loaded; nothing of it is tuned.
    sha256 = beside.submit(hash_of, look(setup.settings.model), kept).result
    settings = _tuned(setup, sha256, start, kept)
    start.begin(LOADING, setup.name, now_ns())
    adapters = Adapters(setup.adapters, settings.model)
    engine = LlamaEngine(settings, adapters, sha256)
    if engine.weights_why:
        log.warning("the weights stay as they are in the file", engine=setup.name, why=engine.weights_why)
    check_kv(engine.geometry.sequences, setup.kv)
    kv = _sized(setup, engine)
    doubt, remedy = tokenizer_doubt(look(settings.model).values)
    if doubt:
        log.warning("tokenizer", engine=setup.name, why=f"{doubt}; {remedy}")
    engine.try_adapters()
    drafter = open_drafter(setup.speculation, engine)
    send_native_log_to(None)
    card = engine.card
    log.info(
        "model loaded",
        engine=setup.name,
        model=card.name,
        parameters=card.parameters,
        architecture=card.architecture,
        license=card.license or "not stated in the file",
        threads=engine.threads,
        flash_attention=settings.flash_attention,
        weights=engine.settings.weights,
    )
    if 0 < card.context_trained < engine.geometry.context_len:
        log.warning(
            "a longer context than the model was trained on",
            context_len=engine.geometry.context_len,
            trained=card.context_trained,
            why=f"beyond it models ramble; lower {setup.section}.context_len",
        )
    if len(adapters):
        log.info("adapters", engine=setup.name, names=adapters.names, loaded_max=setup.adapters.loaded_max)
    return LlamaModel(engine, card.name, card.sha256, card.chat_template, engine.threads, drafter, adapters, kv=kv)


def _sized(setup: EngineSetup, engine: LlamaEngine) -> KvSettings:
    """The engine's KV settings with what fits, and one log line about everything that was AUTO."""
    token_bytes = kv_bytes(look(engine.settings.model).values, engine.settings.kv_type)
    kv = setup.kv
    if kv.ram_mib == AUTO:
        kv = replace(kv, ram_mib=fit_ram(token_bytes, memory_free()))
    settings = setup.settings
    if AUTO in (settings.sequences, settings.context_len, setup.kv.ram_mib):
        geometry = engine.geometry
        log.info(
            "sizes",
            engine=setup.name,
            sequences=geometry.sequences,
            context_len=geometry.context_len,
            ram_mib=kv.ram_mib,
            kv_mib=geometry.sequences * geometry.context_len * token_bytes >> 20,
            why="sizes that fit the memory and the model; numbers in the settings stay as they are",
        )
    return kv


def _tuned(setup: EngineSetup, sha256: Callable[[], str], start: Start, kept: Kept) -> LlamaSettings:
    """The settings with everything chosen: as an earlier start chose, or measured now."""
    settings, about = setup.settings, dict[str, Any]()
    among = candidates(settings, cores_here().usable)
    if len(among) > 1 and not large(settings):
        about = tuning_of(settings, sha256(), machine_says(), (__version__, version()))
        before = chosen_before(kept, about, among)
        if before is not None:
            log.info("tuned", engine=setup.name, **_choice(before), why=Ended.KEPT.value)
            return before
    start.begin(TUNING, setup.name, now_ns())
    began_ns = now_ns()
    tuned = tune(settings, now_ns, moved=lambda share: start.moved(share, now_ns()))
    for t in tuned.tried:
        log.info("tried", engine=setup.name, **asdict(t))
    took_s = round((now_ns() - began_ns) / S, 1)
    log.info("tuned", engine=setup.name, **_choice(tuned.settings), why=tuned.ended.value, seconds=took_s)
    if tuned.tried:
        keep_choice(kept, about, tuned.settings)
    return tuned.settings


def _choice(settings: LlamaSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in CHOSEN}


def open_drafter(settings: SpeculationSettings, engine: LlamaEngine) -> Drafter | None:
    """The drafter of these settings. Raises ConfigError when a draft model does not fit the model."""
    if settings.drafts == "off":
        return None
    if settings.drafts == "ngram":
        return Ngrams(settings.match_min, settings.match_max)
    path = from_home(settings.draft_model, "speculation.draft_model")
    # A few more than work at a time: a work that comes again finds its text taken in.
    draft = open_draft(path, engine, max(4, min(2 * settings.works_max, SEQUENCES_MAX)))
    log.info("draft model loaded", model=draft.card.name, parameters=draft.card.parameters)
    return ModelDrafts(draft, now_ns)


def choose_layout(model: Model, caps: Caps) -> tuple[Layout, str]:
    """The layout of prompts for this model, and the reason in one line."""
    return lay_out(model.engine.vocab, model.chat_template, caps)


def lay_out(vocab: Vocab, chat_template: str, caps: Caps) -> tuple[Layout, str]:
    """The same for a tokenizer and a template. Adopts markers of the template that the tokenizer calls text."""
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


def tell_layout(config: Config, model: Model, layout: Layout, why: str) -> None:
    """Logs how prompts are laid out, and what is not as good as it could be. Raises ConfigError for a short context."""
    log.log(WARNING if layout.kind == "plain" else INFO, "layout", kind=layout.kind, why=why)
    check_context(config, layout, model.engine.geometry.context_len)
    if layout.sight_room < SIGHT_LEN_MIN:
        log.warning(
            "little room for what NPCs see",
            tokens=layout.sight_room,
            caps_intent_tail=config.caps.intent_tail,
            why="in this model's tokens the marks take most of it; raise caps.intent_tail",
        )

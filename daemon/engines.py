"""The engines of one daemon: their models are loaded, and each stands behind a scheduler and a thread of its own.

Engines share the process, the machine's cores and the store of parked KV. Queues, schedulers, cost models, layouts,
adapters and KV are an engine's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from core.clock import Clock
from core.words import Tier
from daemon.config import Config, engines_of
from daemon.engine_settings import EngineSetup, named
from daemon.model import Model, choose_layout, load_model, tell_layout, warm_up
from daemon.starting import Start
from engines.backend import Health
from engines.kept import Kept
from engines.lora import Adapters
from engines.machine import cores_here
from memory.parked import Parked
from prompts.layout import Layout
from scheduler.parking import Shelf, Store
from scheduler.scheduler import Scheduler
from scheduler.speculation import Speculation
from scheduler.step_backend import StepBackend
from tiers.routing import Routes, WorkKind

log = structlog.get_logger("npcd")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine that serves: its model, the layout of its prompts (and the reason for it), and its backend."""

    name: str
    model: Model
    layout: Layout
    why: str
    backend: StepBackend
    gives_way: bool = False  # to engines that serve Gold

    @property
    def layout_says(self) -> str:
        """The layout and its reason, in one line."""
        return f"{self.layout.kind}: {self.why}"

    def health(self) -> Health:
        """The state of its thread now."""
        return self.backend.health


def load_models(config: Config, start: Start | None = None, kept: Kept | None = None) -> dict[str, Model]:
    """The models of all engines that a route may use, by engine; the one of intents comes first. Takes seconds to
    minutes; call it off the event loop. `start` is told the stages; `kept` has what earlier starts found out. Raises
    ConfigError.
    """
    models: dict[str, Model] = {}
    setups = engines_of(config)
    unused = sorted(set(config.engines) - set(config.routes.engines()))
    if unused:
        log.warning("engines that no route uses are not loaded", engines=unused)
    threads = share_cores(cores_here().usable, config.routes.engines(), golden(config.routes))
    try:
        for name in config.routes.engines():
            setup = setups[name]
            if len(threads) > 1 and not setup.settings.threads:
                setup = setup._replace(settings=replace(setup.settings, threads=threads[name]))
            models[name] = load_model(config, setup, start, kept)
    except BaseException:
        for model in models.values():
            model.close()
        raise
    return models


def open_engines(config: Config, models: Mapping[str, Model], parked: Parked | None, clock: Clock) -> dict[str, Engine]:
    """The engines around loaded models, their cost models warm; only `parked` is started. Raises ConfigError."""
    setups, gold = engines_of(config), golden(config.routes)
    engines: dict[str, Engine] = {}
    for name, model in models.items():
        layout, why = choose_layout(model, config.caps)
        with named(setups[name]):
            tell_layout(config, model, layout, why)
        backend = open_step_backend(config, setups[name], model, clock)
        gives_way = bool(gold) and name not in gold
        engines[name] = Engine(name, model, layout, why, backend, gives_way)
    if parked is not None:
        _share(parked, [engine.backend for engine in engines.values()])
    return engines


def open_step_backend(config: Config, setup: EngineSetup, model: Model, clock: Clock) -> StepBackend:
    """A model's engine behind npcd's scheduler, its cost model warm; nothing is started."""
    engine, planner = model.engine, config.scheduler.planner
    planner = replace(
        planner,
        chunk_min=max(planner.chunk_min, engine.geometry.chunk_min),
        talk_share=min(planner.talk_share, config.pace.talk_share),
    )
    speculation = None
    if model.drafter is not None:
        speculation = Speculation(setup.speculation, model.drafter, engine.vocab.eog_ids)
    settings = replace(config.scheduler, planner=planner, kv=model.kv or setup.kv)
    costs = model.costs or warm_up(config, setup, engine, clock)
    scheduler = Scheduler(engine, config.promises, settings, speculation, costs)
    return StepBackend(scheduler, clock)


def golden(routes: Routes) -> set[str]:
    """The engines that some Gold work may go to."""
    gold = [route for kind in WorkKind if (route := routes.of(kind)).tier is Tier.GOLD]
    return {engine for route in gold for engine in (route.engine, *(row.engine for row in route.when))}


def share_cores(usable: int, engines: Sequence[str], gold: Collection[str]) -> dict[str, int]:
    """The threads of each engine on a machine with so many cores. One core is left to the event loop where there are
    three or more. Engines of Gold have half of the others together, because their model is the small one and has the
    shortest promise; the rest is for the other engines. Each has one thread at least.
    """
    left = max(1, usable - 1)
    some = [name for name in engines if name in gold]
    others = [name for name in engines if name not in gold]
    for_gold = max(1, left // 2) if others else left
    each = {name: max(1, for_gold // len(some)) for name in some}
    return each | {name: max(1, (left - sum(each.values())) // len(others)) for name in others}


def adapters_of(models: Mapping[str, Model]) -> dict[str, Adapters]:
    """The adapters of the engines that have some, by engine."""
    return {name: model.adapters for name, model in models.items() if model.adapters is not None}


def _share(parked: Parked, backends: Sequence[StepBackend]) -> None:
    """Gives each backend numbers of its own in the store, and starts it."""
    shelves: list[Store] = []
    for place, backend in enumerate(backends):
        shelves.append(Shelf(parked, place, len(backends)))
        backend.park_in(shelves[-1])

    def fetched(number: int, header: bytes, payload: bytes, fault: str) -> None:
        backend = backends[number % len(backends)]
        backend.fetched(number // len(backends), header, payload, fault)

    parked.start(fetched)

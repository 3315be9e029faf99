"""The engines of one daemon: their models are loaded, and each stands behind a scheduler and a thread of its own.

Engines share the process, the machine's cores and the store of parked KV. Queues, schedulers, cost models, layouts,
adapters and KV are an engine's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from core.clock import Clock
from daemon.config import Config, engines_of
from daemon.engine_settings import EngineSetup, named
from daemon.model import Model, choose_layout, load_model, tell_layout, warm_up
from daemon.starting import Start
from engines.backend import Health
from engines.kept import Kept
from engines.lora import Adapters
from memory.parked import Parked
from prompts.layout import Layout
from scheduler.parking import Shelf, Store
from scheduler.scheduler import Scheduler
from scheduler.speculation import Speculation
from scheduler.step_backend import StepBackend

log = structlog.get_logger("npcd")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine that serves: its model, the layout of its prompts (and the reason for it), and its backend."""

    name: str
    model: Model
    layout: Layout
    why: str
    backend: StepBackend

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
    try:
        for name in config.routes.engines():
            models[name] = load_model(config, setups[name], start, kept)
    except BaseException:
        for model in models.values():
            model.close()
        raise
    return models


def open_engines(config: Config, models: Mapping[str, Model], parked: Parked | None, clock: Clock) -> dict[str, Engine]:
    """The engines around loaded models, their cost models warm; only `parked` is started. Raises ConfigError."""
    setups, engines = engines_of(config), {}
    for name, model in models.items():
        layout, why = choose_layout(model, config.caps)
        with named(setups[name]):
            tell_layout(config, model, layout, why)
        engines[name] = Engine(name, model, layout, why, open_step_backend(config, setups[name], model, clock))
    if parked is not None:
        _share(parked, [engine.backend for engine in engines.values()])
    return engines


def open_step_backend(config: Config, setup: EngineSetup, model: Model, clock: Clock) -> StepBackend:
    """A model's engine behind npcd's scheduler, its cost model warm; nothing is started."""
    engine, planner = model.engine, config.scheduler.planner
    planner = replace(planner, chunk_min=max(planner.chunk_min, engine.geometry.chunk_min))
    speculation = None
    if model.drafter is not None:
        speculation = Speculation(setup.speculation, model.drafter, engine.vocab.eog_ids)
    settings = replace(config.scheduler, planner=planner, kv=setup.kv)
    costs = model.costs or warm_up(config, setup, engine, clock)
    scheduler = Scheduler(engine, config.promises, settings, speculation, costs)
    return StepBackend(scheduler, clock)


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

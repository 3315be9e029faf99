"""`npcd route explain`: tier and limits of each kind of work, and the origin of each value; for a given NPC, the engine
that serves it and the reason. Gives lines to print.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.errors import ConfigError
from core.words import AUTO
from daemon.config import Config, engines_of
from tiers.conditions import ACTIVATIONS, ANY, Facts
from tiers.routing import ABOUT, FOLLOWS, GROWING, Routes, WorkKind, serving

DEFAULT = "default"
# The prompt's caps bound tails. A bark's goes on from the intent's answer, which stands in it as well.
TAILS = {
    WorkKind.INTENT: "intent_tail",
    WorkKind.BARK: "intent_tail",
    WorkKind.REPLY: "talk_tail",
    WorkKind.PREDICTION: "intent_tail",
    WorkKind.PREDICTION_BARK: "intent_tail",
}


@dataclass(frozen=True, slots=True)
class Value:
    """One cell of the table. `setting` gives it; `origin` is its source: "default", or as config.load has it."""

    name: str
    shown: str
    setting: str
    origin: str


def explain(config: Config, origins: Mapping[str, str], only: str | None, for_programs: bool) -> Iterator[str]:
    """Lines to print about one kind, or all. `origins` as config.load gives them. Raises ConfigError for a kind that
    there is not.
    """
    kinds = [_kind(only)] if only else list(WorkKind)
    rows = {kind: values(kind, config, origins) for kind in kinds}
    if for_programs:
        yield json.dumps([as_json(kind, row) for kind, row in rows.items()], indent=2)
        return
    yield from _one(kinds[0], rows[kinds[0]]) if only else _table(rows)
    yield from _beyond(kinds, config)
    ruled = [kind.value for kind in kinds if config.routes.of(kind).when]
    if ruled:
        yield f"Rows decide for {', '.join(ruled)}: give --world, --archetype or others to see the engine of an NPC."


def values(kind: WorkKind, config: Config, origins: Mapping[str, str]) -> list[Value]:
    """All values of one kind, and their origins."""
    route, own = config.routes.of(kind), f"routes.{kind.value}"

    def value(name: str, shown: str, setting: str) -> Value:
        return Value(name, shown, setting, origins.get(setting, DEFAULT))

    tail = TAILS.get(kind)
    grown = WorkKind.REPLY if kind is WorkKind.REPLY_TRUNK else kind  # the KV that is made ready is the next reply's
    context_max = config.routes.of(grown).context_max
    setup = engines_of(config)[route.engine]
    engine_len = setup.settings.context_len
    context = f"routes.{grown.value}.context_max" if context_max else f"{setup.section}.context_len"
    return [
        value("tier", route.tier.name.lower(), f"{own}.tier"),
        value("engine", route.engine, f"routes.{_decides(kind, config.routes).value}.engine"),
        value("tail", str(getattr(config.caps, tail)), f"caps.{tail}") if tail else Value("tail", "-", "", DEFAULT),
        value("output", str(route.output_max or "-"), f"{own}.output_max"),
        value("context", str(context_max or ("auto" if engine_len == AUTO else engine_len)), context),
        value("recall", "yes" if route.recall else "no", f"{own}.recall"),
    ]


def serve(config: Config, only: str | None, facts: Facts, for_programs: bool) -> Iterator[str]:
    """Lines to print about which engine serves an NPC, for one kind or all. Raises ConfigError for a kind that there is
    not, or an activation that there is not.
    """
    if facts.activation not in ACTIVATIONS:
        raise ConfigError(f"--activation: '{facts.activation}', must be {', '.join(ACTIVATIONS)}")
    kinds = [_kind(only)] if only else list(WorkKind)
    found = {kind: _decided(kind, config.routes, facts) for kind in kinds}
    if for_programs:
        rows = [{"kind": kind.value, "engine": engine, "why": why} for kind, (engine, why) in found.items()]
        yield json.dumps(rows, indent=2)
        return
    width = max(len(engine) for engine, _ in found.values())
    for kind, (engine, why) in found.items():
        yield f"{kind.value:<16} {engine:<{width}}  {why[-1]}"
        if only:
            yield from (f"  {line}" for line in why[:-1])
    if any(kind in GROWING for kind in kinds):
        yield ""
        yield "A conversation stays on its engine until its trunk is computed anew."


def _decides(kind: WorkKind, routes: Routes) -> WorkKind:
    """The kind whose settings say where works of this kind go."""
    own = getattr(routes, kind.value)
    return kind if own.engine or own.when else _decides(FOLLOWS[kind], routes)


def _decided(kind: WorkKind, routes: Routes, facts: Facts) -> tuple[str, list[str]]:
    """The engine that serves a kind, and why: the rows that do not hold, and what decided last."""
    route, own = routes.of(kind), f"routes.{_decides(kind, routes).value}"
    engine, number = serving(route, facts)
    before = route.when if number == ANY else route.when[:number]
    why = [f"row {n} ({row.says()}) does not hold: {next(row.broken(facts))}" for n, row in enumerate(before, 1)]
    if number != ANY:
        return engine, [*why, f"{own}.when, row {number + 1}: {route.when[number].says()}"]
    named = f"{own}.engine"
    return engine, [*why, f"{named}, since no row of {own}.when holds" if route.when else named]


def as_json(kind: WorkKind, row: Sequence[Value]) -> dict[str, object]:
    """The same for programs."""
    return {
        "kind": kind.value,
        "about": ABOUT[kind],
        **{v.name: {"value": v.shown, "setting": v.setting, "origin": v.origin} for v in row},
    }


def _table(rows: Mapping[WorkKind, Sequence[Value]]) -> Iterator[str]:
    """A kind a line; a value that was set has a star, and its origin below."""
    some = next(iter(rows.values()))
    yield f"{'kind':<16}" + "".join(f" {v.name:>8} " for v in some)
    starred: dict[str, Value] = {}
    for kind, row in rows.items():
        cells = ""
        for v in row:
            star = " "
            if v.origin != DEFAULT:
                star = "*"
                starred[v.setting] = v
            cells += f" {v.shown:>8}{star}"
        yield f"{kind.value:<16}{cells}".rstrip()
    yield ""
    yield "Limits are in tokens; context is trunk, tail and output together. npcd route explain KIND says more."
    if not starred:
        yield "Everything is as shipped."
    for setting, v in starred.items():
        yield f"* {setting} = {v.shown}: {v.origin}"


def _beyond(kinds: Sequence[WorkKind], config: Config) -> Iterator[str]:
    """Tails that are longer than their tier's promise: models with many tokens per word need them."""
    for kind, cap in TAILS.items():
        tier = config.routes.of(kind).tier
        length, promised = getattr(config.caps, cap), config.promises.of(tier).tail_max
        if kind in kinds and length > promised:
            name = tier.name.lower()
            yield f"! {kind.value}: a tail of {length} is more than promises.{name}.tail_max ({promised}); measure it"


def _one(kind: WorkKind, row: Sequence[Value]) -> Iterator[str]:
    yield f"{kind.value}: {ABOUT[kind]}"
    for v in row:
        yield f"  {v.name:<8} {v.shown:>8}  {v.setting:<30} {v.origin if v.setting else ''}".rstrip()


def _kind(said: str) -> WorkKind:
    names = [kind.value for kind in WorkKind]
    if said in names:
        return WorkKind(said)
    near = difflib.get_close_matches(said, names, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    raise ConfigError(f"no kind of work is called '{said}'; {hint}")

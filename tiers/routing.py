"""The tier, engine and size of each kind of work: one table, which is both settings and code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from enum import Enum

from core.errors import ConfigError
from core.words import Tier
from tiers.conditions import ANY, Facts, When, check_engine, check_rows, first_that_holds
from tiers.promises import Promises

LLAMA = "llama"  # engines/llama/, in this process
ENGINES = (LLAMA,)


class WorkKind(Enum):
    """Everything that the daemon asks an engine for. The values are the names of Routes' fields."""

    INTENT = "intent"
    BARK = "bark"
    REPLY = "reply"
    REPLY_TRUNK = "reply_trunk"
    SUMMARY = "summary"
    TRUNK = "trunk"
    PREDICTION = "prediction"
    PREDICTION_BARK = "prediction_bark"


ABOUT = {
    WorkKind.INTENT: "the next action, target and emotion of an NPC",
    WorkKind.BARK: "a few words for an action that speaks",
    WorkKind.REPLY: "an NPC's answer to a player's line",
    WorkKind.REPLY_TRUNK: "a conversation's KV, made ready for the next line",
    WorkKind.SUMMARY: "the memory that an NPC keeps of a conversation that is over",
    WorkKind.TRUNK: "an NPC's KV, made ready before it is asked",
    WorkKind.PREDICTION: "an intent for a state that has not come yet",
    WorkKind.PREDICTION_BARK: "the first words for a player who walks up",
}

SILENT = frozenset({WorkKind.REPLY_TRUNK, WorkKind.TRUNK})  # they make KV and no tokens
GUESSES = frozenset({WorkKind.PREDICTION, WorkKind.PREDICTION_BARK})
GROWING = frozenset({WorkKind.REPLY, WorkKind.SUMMARY})  # their trunks grow with a conversation; others are the world's
RECALLING = frozenset({WorkKind.REPLY})
# A kind that names no engine of its own goes where the kind beside it goes, by the same rows.
FOLLOWS = {
    WorkKind.BARK: WorkKind.INTENT,
    WorkKind.TRUNK: WorkKind.INTENT,
    WorkKind.PREDICTION: WorkKind.INTENT,
    WorkKind.PREDICTION_BARK: WorkKind.BARK,
    WorkKind.REPLY_TRUNK: WorkKind.REPLY,
    WorkKind.SUMMARY: WorkKind.REPLY,
}


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one kind go and how large they may be."""

    tier: Tier
    """Tier of these requests: `gold`, `silver` or `bronze`. Predictions are Bronze; trunks are never Gold."""
    engine: str = LLAMA
    """The engine that runs them, by its name: `llama` is that of `[engine]`, NAME that of `[engines.NAME]`. Empty:
    barks, predictions and trunks go where intents go, summaries and the KV of conversations where replies go.
    """
    output_max: int = 0
    """Tokens that one of them makes at most, `promises.TIER.output_max` at most; 0 for trunks, which generate none. An
    intent may have as many as its longest answer needs.
    """
    context_max: int = 0
    """Tokens of trunk, tail and output together, for replies and summaries; 0: `engine.context_len`."""
    recall: bool = False
    """Lets a reply wait for what the NPC remembers of the player. Gold never waits."""
    when: tuple[When, ...] = ()
    """Rows that send some of these requests to another engine: `[[routes.KIND.when]]` with `engine` and conditions
    (docs/OPERATING.md). The first row that holds decides; if none does, `engine` runs them.
    """

    def context_len(self, engine_len: int) -> int:
        """Tokens that one work may hold, on an engine whose sequences hold `engine_len`."""
        return min(self.context_max or engine_len, engine_len)


@dataclass(frozen=True, slots=True)
class Routes:
    """The kinds of requests that npcd sends to an engine, and the tier of each. `npcd route explain` prints the table
    that is in effect.
    """

    intent: Route = Route(Tier.GOLD, output_max=8)
    """The next action, target and emotion of an NPC."""
    bark: Route = Route(Tier.GOLD, "", output_max=8)
    """A few words for an action that speaks."""
    reply: Route = Route(Tier.SILVER, output_max=512, recall=True)
    """An NPC's answer to a player's line."""
    reply_trunk: Route = Route(Tier.SILVER, "")
    """A conversation's KV, made ready for the next line."""
    summary: Route = Route(Tier.BRONZE, "", output_max=160)
    """The memory that an NPC keeps of a conversation that is over."""
    trunk: Route = Route(Tier.BRONZE, "")
    """An NPC's KV, made ready before the NPC is asked."""
    prediction: Route = Route(Tier.BRONZE, "", output_max=8)
    """An intent for a state that has not come yet."""
    prediction_bark: Route = Route(Tier.BRONZE, "", output_max=8)
    """The first words for a player who walks up."""

    def of(self, kind: WorkKind) -> Route:
        """The route of one kind. If it names no engine, it has that of the kind that it follows, and its rows."""
        route = getattr(self, kind.value)
        assert isinstance(route, Route)
        if route.engine:
            return route
        leader = self.of(FOLLOWS[kind])
        return replace(route, engine=leader.engine, when=route.when or leader.when)

    def engines(self) -> list[str]:
        """The engines that some work may go to, each once; the one that intents go to by default comes first."""
        routes = [self.of(kind) for kind in WorkKind]
        return list(dict.fromkeys([r.engine for r in routes] + [row.engine for r in routes for row in r.when]))


assert {f.name for f in fields(Routes)} == {kind.value for kind in WorkKind} == {kind.value for kind in ABOUT}


def own_rows(routes: Routes, kind: WorkKind) -> tuple[When, ...]:
    """The rows that stand in a kind's own settings."""
    rows: tuple[When, ...] = getattr(routes, kind.value).when
    return rows


def serving(route: Route, facts: Facts) -> tuple[str, int]:
    """The engine that serves a work of a route, and the number of the row that decided; ANY: none of them holds."""
    row = first_that_holds(route.when, facts) if route.when else ANY
    return (route.engine if row == ANY else route.when[row].engine), row


class Directions:
    """The routes as works take them: each with the one engine that the facts decide for. Holds no other state."""

    def __init__(self, routes: Routes) -> None:
        self._follow = frozenset(k for k in FOLLOWS if not getattr(routes, k.value).engine and not own_rows(routes, k))
        self._routes = {kind: routes.of(kind) for kind in WorkKind}
        # A work's route has an engine and no rows. All of them are made here: the hot path makes none.
        self._to = {
            (kind, engine): replace(route, engine=engine, when=())
            for kind, route in self._routes.items()
            for engine in routes.engines()
        }

    def asks(self, kind: WorkKind) -> bool:
        """True if facts matter for this kind: its route has rows."""
        return bool(self._routes[kind].when)

    def follows(self, kind: WorkKind) -> bool:
        """True if its settings name no engine and no rows: works of the kind go where those go that they belong to."""
        return kind in self._follow

    def own(self, kind: WorkKind) -> Route:
        """The route of a kind to its own engine."""
        return self._to[kind, self._routes[kind].engine]

    def to(self, kind: WorkKind, engine: str) -> Route:
        """The route of a kind to one of the engines."""
        return self._to[kind, engine]

    def of(self, kind: WorkKind, facts: Facts) -> Route:
        """The route of a kind to the engine that the facts decide for."""
        return self._to[kind, serving(self._routes[kind], facts)[0]]


def check_engines(routes: Routes, engines: Collection[str]) -> None:
    """Raises ConfigError naming the first route, or row of one, with an unknown engine, and the one probably meant."""
    for kind in WorkKind:
        route, name = routes.of(kind), f"routes.{kind.value}"
        if getattr(routes, kind.value).engine:
            check_engine(f"{name}.engine", route.engine, engines)
        check_rows(name, own_rows(routes, kind), engines)


def check_routes(routes: Routes, promises: Promises, engine_len: int, engines: Collection[str] = ENGINES) -> None:
    """Raises ConfigError naming the first setting that is not possible, and its limit. `engine_len` is the shortest
    `context_len` of the engines.
    """
    for kind in (WorkKind.INTENT, WorkKind.REPLY):
        if not getattr(routes, kind.value).engine:
            raise ConfigError(f"routes.{kind.value}.engine: is empty; name one of {', '.join(sorted(engines))}")
    check_engines(routes, engines)
    for kind in WorkKind:
        route, name = routes.of(kind), f"routes.{kind.value}"
        _check_tier(kind, route, name)
        _check_follows(kind, routes, name)
        if route.context_max and kind not in GROWING:
            grow = " and ".join(f"routes.{k.value}" for k in WorkKind if k in GROWING)
            raise ConfigError(f"{name}.context_max: only conversations grow; give it in {grow}, and leave it 0 here")
        if not 0 <= route.context_max <= engine_len:
            limit = f"engine.context_len ({engine_len})"
            raise ConfigError(f"{name}.context_max: {route.context_max}, must be 1 to {limit}, or 0: all of it")
        _check_output(kind, route, name, promises, engine_len)


def _check_follows(kind: WorkKind, routes: Routes, name: str) -> None:
    """KV that is made ready is of use only on the engine of the works that it is for."""
    if kind not in SILENT:
        return
    own, leader = getattr(routes, kind.value), routes.of(FOLLOWS[kind])
    follows = f"routes.{FOLLOWS[kind].value}"
    if own.when:
        raise ConfigError(f"{name}.when: it has the rows of {follows}, whose KV it makes; give rows there")
    if own.engine and (own.engine != leader.engine or leader.when):
        raise ConfigError(
            f"{name}.engine: '{own.engine}' would make KV for {follows}, which goes to '{leader.engine}'"
            f"{' and by rows elsewhere' if leader.when else ''}; leave {name}.engine empty"
        )


def _check_tier(kind: WorkKind, route: Route, name: str) -> None:
    if route.tier is Tier.GOLD and route.recall:
        raise ConfigError(f"{name}.recall: Gold never waits on I/O; leave it false, or take another tier")
    if route.recall and kind not in RECALLING:
        raise ConfigError(f"{name}.recall: only a reply waits for memory; leave it false")
    if kind in SILENT and route.tier is Tier.GOLD:
        raise ConfigError(
            f"{name}.tier: gold, must be silver or bronze: Gold is for few tokens, and would wait for a trunk's"
        )
    if kind in GUESSES and route.tier is not Tier.BRONZE:
        raise ConfigError(f"{name}.tier: {route.tier.name.lower()}, must be bronze: predictions run in spare time only")


def _check_output(kind: WorkKind, route: Route, name: str, promises: Promises, engine_len: int) -> None:
    if kind in SILENT:
        if route.output_max:
            raise ConfigError(f"{name}.output_max: {route.output_max}, must be 0: it makes KV and no tokens")
        return
    if route.output_max < 1:
        raise ConfigError(f"{name}.output_max: {route.output_max}, must be 1 or more")
    tier = route.tier.name.lower()
    most = promises.of(route.tier).output_max
    if route.output_max > most:
        raise ConfigError(
            f"{name}.output_max: {route.output_max} is more than {tier} promises (promises.{tier}.output_max: {most})"
        )
    context_len = route.context_len(engine_len)
    if route.output_max > context_len:
        limit = f"{name}.context_max" if route.context_max else "engine.context_len"
        raise ConfigError(f"{name}.output_max: {route.output_max} is more than {limit} ({context_len}) holds")

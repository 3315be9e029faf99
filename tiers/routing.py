"""The tier, engine and size of each kind of work: one table, which is both settings and code."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, fields
from enum import Enum

from core.errors import ConfigError
from core.words import Tier
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


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one kind go and how large they may be."""

    tier: Tier
    """Tier of these requests: `gold`, `silver` or `bronze`. Predictions are Bronze; trunks are never Gold."""
    engine: str = LLAMA
    """The engine that runs them, by its name. `llama`, in this process, is the one that npcd brings."""
    output_max: int = 0
    """Tokens that one of them makes at most, `promises.TIER.output_max` at most; 0 for trunks, which generate none. An
    intent may have as many as its longest answer needs.
    """
    context_max: int = 0
    """Tokens of trunk, tail and output together, for replies and summaries; 0: `engine.context_len`."""
    recall: bool = False
    """Lets a reply wait for what the NPC remembers of the player. Gold never waits."""

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
    bark: Route = Route(Tier.GOLD, output_max=8)
    """A few words for an action that speaks."""
    reply: Route = Route(Tier.SILVER, output_max=512, recall=True)
    """An NPC's answer to a player's line."""
    reply_trunk: Route = Route(Tier.SILVER)
    """A conversation's KV, made ready for the next line."""
    summary: Route = Route(Tier.BRONZE, output_max=160)
    """The memory that an NPC keeps of a conversation that is over."""
    trunk: Route = Route(Tier.BRONZE)
    """An NPC's KV, made ready before the NPC is asked."""
    prediction: Route = Route(Tier.BRONZE, output_max=8)
    """An intent for a state that has not come yet."""
    prediction_bark: Route = Route(Tier.BRONZE, output_max=8)
    """The first words for a player who walks up."""

    def of(self, kind: WorkKind) -> Route:
        """The route of one kind."""
        route = getattr(self, kind.value)
        assert isinstance(route, Route)
        return route


assert {f.name for f in fields(Routes)} == {kind.value for kind in WorkKind} == {kind.value for kind in ABOUT}


def check_engines(routes: Routes, engines: Collection[str]) -> None:
    """Raises ConfigError naming the first route with an unknown engine, and the engine that was probably meant."""
    for kind in WorkKind:
        engine = routes.of(kind).engine
        if engine not in engines:
            near = difflib.get_close_matches(engine, sorted(engines), 1) if len(engines) > 1 else []
            hint = f"; did you mean '{near[0]}'?" if near else ""
            there = ", ".join(sorted(engines))
            raise ConfigError(f"routes.{kind.value}.engine: there is no engine '{engine}'; there is: {there}{hint}")


def check_routes(routes: Routes, promises: Promises, engine_len: int, engines: Collection[str] = ENGINES) -> None:
    """Raises ConfigError naming the first setting that is not possible, and its limit."""
    check_engines(routes, engines)
    for kind in WorkKind:
        route, name = routes.of(kind), f"routes.{kind.value}"
        _check_tier(kind, route, name)
        if route.context_max and kind not in GROWING:
            grow = " and ".join(f"routes.{k.value}" for k in WorkKind if k in GROWING)
            raise ConfigError(f"{name}.context_max: only conversations grow; give it in {grow}, and leave it 0 here")
        if not 0 <= route.context_max <= engine_len:
            limit = f"engine.context_len ({engine_len})"
            raise ConfigError(f"{name}.context_max: {route.context_max}, must be 1 to {limit}, or 0: all of it")
        _check_output(kind, route, name, promises, engine_len)


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

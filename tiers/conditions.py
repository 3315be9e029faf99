"""Rows of a route that send some of its work to another engine: who is meant, and which row comes first.

A row has the conditions that its fields give; all of them must hold. The first row that holds decides. Decides only.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.errors import ConfigError
from core.words import Activation

ANY = -1  # no row holds: the route's own engine
ACTIVATIONS = tuple(activation.name.lower() for activation in Activation)


class Facts(NamedTuple):
    """An NPC and its prompt, as the rows of a route ask about them. `context` is the trunk's length in tokens of the
    model of the route's own engine; `activation` is the name of the NPC's level.
    """

    world: str = ""
    archetype: str = ""
    persona: str = ""
    activation: str = ACTIVATIONS[Activation.AMBIENT]
    context: int = 0


@dataclass(frozen=True, slots=True)
class When:
    """One row of `[[routes.KIND.when]]`. A condition that a row leaves out holds for everybody."""

    engine: str = ""
    """The engine that runs the work if all conditions of the row hold."""
    world: tuple[str, ...] = ()
    """Ids of worlds: the NPC is in one of them."""
    archetype: tuple[str, ...] = ()
    """Ids of archetypes: the NPC has one of them."""
    persona: tuple[str, ...] = ()
    """Ids of personas: the NPC has one of them."""
    activation: tuple[str, ...] = ()
    """Levels of activation, of `active`, `warm` and `ambient`: the NPC has one of them."""
    context_min: int = 0
    """Tokens that the trunk has at least."""
    context_max: int = 0
    """Tokens that the trunk has at most; 0: any number."""

    def holds(self, facts: Facts) -> bool:
        """True if all conditions hold."""
        return next(self.broken(facts), "") == ""

    def broken(self, facts: Facts) -> Iterator[str]:
        """The conditions that do not hold, each with what it wants and what is."""
        for name in ("world", "archetype", "persona", "activation"):
            wanted, found = getattr(self, name), getattr(facts, name)
            if wanted and found not in wanted:
                yield f"{name} is {found or 'not given'}, not {' or '.join(wanted)}"
        if facts.context < self.context_min:
            yield f"context is {facts.context} tokens, fewer than {self.context_min}"
        if 0 < self.context_max < facts.context:
            yield f"context is {facts.context} tokens, more than {self.context_max}"

    def says(self) -> str:
        """The conditions in words."""
        parts = [
            f"{name} = {' or '.join(wanted)}"
            for name in ("world", "archetype", "persona", "activation")
            if (wanted := getattr(self, name))
        ]
        if self.context_min:
            parts.append(f"context >= {self.context_min}")
        if self.context_max:
            parts.append(f"context <= {self.context_max}")
        return ", ".join(parts)


def first_that_holds(rows: Sequence[When], facts: Facts) -> int:
    """The number of the first row whose conditions hold; ANY when none does."""
    return next((number for number, row in enumerate(rows) if row.holds(facts)), ANY)


def check_rows(name: str, rows: Sequence[When], engines: Collection[str]) -> None:
    """Raises ConfigError naming the row and its field. `name` is the route's; rows are counted from 1 there."""
    for number, row in enumerate(rows, 1):
        where = f"{name}.when, row {number}"
        if not row.engine:
            raise ConfigError(f"{where}: engine is missing; there is: {', '.join(sorted(engines))}")
        check_engine(f"{where}: engine", row.engine, engines)
        if not row.says():
            raise ConfigError(
                f"{where}: it has no condition, so it holds always; give one of world, archetype, persona, activation, "
                f"context_min and context_max, or set {name}.engine"
            )
        for level in row.activation:
            if level not in ACTIVATIONS:
                near = difflib.get_close_matches(level, ACTIVATIONS, 1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise ConfigError(f"{where}: activation '{level}', must be {', '.join(ACTIVATIONS)}{hint}")
        if row.context_min < 0 or row.context_max < 0:
            raise ConfigError(f"{where}: context_min and context_max must be 0 or more")
        if 0 < row.context_max < row.context_min:
            raise ConfigError(f"{where}: context_max ({row.context_max}) is less than context_min ({row.context_min})")


def check_engine(setting: str, engine: str, engines: Collection[str]) -> None:
    """Raises ConfigError for an engine that there is not, with those that there are."""
    if engine not in engines:
        near = difflib.get_close_matches(engine, sorted(engines), 1) if len(engines) > 1 else []
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{setting}: there is no engine '{engine}'; there is: {', '.join(sorted(engines))}{hint}")

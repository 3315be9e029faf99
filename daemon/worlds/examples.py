"""Worked examples: rows of a world's rule policy, as situations with the answers to them.

A model that was not made for npcd is shown them before it is asked (docs/decisions/0025). Decides only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.observation import Observation, Percept
from core.script import Section, SectionKind
from prompts.choices import target_word
from prompts.layout import Layout
from prompts.sight import percept_words, situation_words
from tiers.policy import PolicyRow

EXAMPLES_MAX = 8  # per archetype
SOMEBODY = "stranger"  # a percept of a row that names no kind
UNSAID_DISTANCE_M = 5.0  # of a row that names no distance: "near"
WITHIN_SHARE = 0.6  # of a row's largest distance or health: clearly inside of it


def examples_of(rows: Iterable[PolicyRow], archetype_id: str, layouts: Sequence[Layout]) -> tuple[Section, ...]:
    """The worked examples of an archetype's NPCs: of each action the first row of a world's table that has a condition,
    in the table's order, while they fit `caps.examples` for every model.
    """
    readers = [layout for layout in layouts if not layout.native]
    if not readers:
        return ()
    out: list[Section] = []
    shown: set[str] = set()
    room = [layout.caps.examples for layout in readers]
    for row in rows:
        section = example_of(row)
        if row.archetype_id not in ("", archetype_id) or row.action in shown or section is None:
            continue
        left = [most - len(layout.render(section).tokens) for layout, most in zip(readers, room, strict=True)]
        if len(out) == EXAMPLES_MAX or min(left) < 0:
            break
        shown.add(row.action)
        out.append(section)
        room = left
    return tuple(out)


def example_of(row: PolicyRow) -> Section | None:
    """A situation in which a row holds, as an NPC would see it, and the row's answer; None for a row without
    conditions, which says nothing about any situation.
    """
    health = row.health_max * WITHIN_SHARE if row.health_max > 0 else 1.0
    events = (row.event,) if row.event else ()
    situation = situation_words(Observation(0, (), events, row.time_of_day, "", health))
    percepts: tuple[str, ...] = ()
    if row.percept_kind or row.percept_stance or row.distance_max_m > 0:
        distance_m = row.distance_max_m * WITHIN_SHARE or UNSAID_DISTANCE_M
        percepts = (percept_words(Percept("", row.percept_kind or SOMEBODY, row.percept_stance, distance_m)),)
    if not situation and not percepts:
        return None
    answer = (row.action, target_word(len(percepts)), row.emotion)
    return Section(SectionKind.EXAMPLE, situation, items=(*percepts, *answer))

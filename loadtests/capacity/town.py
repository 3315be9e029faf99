"""The simulated town: what its NPCs see, who talks with whom, and which stories are written beside that.

There is one player for every `npcs_per_player` NPCs in view. The player walks among them and converses with one after
the other. NPCs stand around a player at distances that make a share of them active, and an NPC's sight changes in a
meaningful way at most once a second. As in the daemon, tiers/ decides each NPC's attention and when it is due.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np

from core.choice import END, Node, Tokens, stage
from core.clock import S
from core.words import Activation, NpcKey
from prompts.marks import MARKS
from prompts.sight import TARGETS_MAX

ACTIONS, SPEAKS, EMOTIONS = 18, 7, 8  # the demo's world: actions, actions with a bark, emotions


@dataclass(frozen=True, slots=True)
class TownSettings:
    """The events of the town, the same for every machine. Lengths are in tokens; pairs are bounds.

    Of the NPCs in view `active_share` are within 25 m of a player and `warm_share` within 60 m. An NPC's sight changes
    every `change_s`, and `event_share` of the changes are events. `stories` are Bronze works that never run out.
    Without `npcs_per_player` no player converses, and without `barks` no NPC shouts. With `startle_every_s` every NPC
    has an event at the same moment, that often.
    """

    npcs_per_player: int = 25
    active_share: float = 0.4
    warm_share: float = 0.4
    observe_hz: float = 10.0
    change_s: tuple[float, float] = (1.0, 1.3)
    event_share: float = 0.03
    startle_every_s: float = 0.0
    archetypes: int = 6
    shared_len: int = 230
    persona_len: int = 40
    tail_len: tuple[int, int] = (16, 28)
    targets: tuple[int, int] = (1, 5)
    line_every_s: tuple[float, float] = (3.0, 7.0)
    line_len: tuple[int, int] = (8, 16)
    reply_len: tuple[int, int] = (16, 48)
    turns: int = 8
    barks: bool = True
    stories: int = 2
    story_len: int = 200
    sway_m: float = 8.0
    sway_s: tuple[float, float] = (20.0, 60.0)


@dataclass(slots=True, eq=False)
class Question:
    """A Gold work under way. `seen_ns` is the observation that it asks about."""

    number: int
    due_ns: int
    seen_ns: int
    tail: Tokens


@dataclass(slots=True, eq=False)
class Mind:
    """One NPC as the daemon has it, and its position.

    `state` counts the different sights that it had. The newest observation came at `observed_ns`, the newest that was
    looked at `seen_ns`, and the newest that its intent agrees with `agreed_ns`, as far as the game was told.
    """

    number: int
    key: NpcKey
    trunk: Tokens
    phase_ns: int
    distance_m: float
    sway_ns: int
    sway_phase: float
    state: int = 0
    news: bool | None = None  # its sight will change; True: because of an event
    observed_ns: int = 0
    seen_ns: int = 0
    agreed_ns: int = 0
    ruled_ns: int = 0  # when the rules last answered
    activation: Activation = Activation.AMBIENT
    barking: bool = False
    barked_ns: int = 0

    def at_m(self, now_ns: int, sway_m: float) -> float:
        """Metres to its player, who walks up and down."""
        return max(1.0, self.distance_m + sway_m * math.sin(2 * math.pi * (now_ns / self.sway_ns + self.sway_phase)))


@dataclass(slots=True, eq=False)
class Talk:
    """A conversation: its NPC, and the length of its trunk beyond the NPC's own."""

    player: str
    npc: Mind
    turns: int = 0
    said: list[int] = field(default_factory=list)


class Texts:
    """Random words of one vocabulary, and the choice of an intent."""

    def __init__(self, rng: random.Random, vocab_len: int) -> None:
        self._rng = rng
        self._first, self._words = len(MARKS) + 1, vocab_len - len(MARKS) - 1
        numbers = iter(range(self._first, vocab_len))
        emotions = stage("emotions", [(n, [next(numbers)], END) for n in range(EMOTIONS)])
        marks = [next(numbers) for _ in range(TARGETS_MAX + 1)]
        actions = [next(numbers) for _ in range(ACTIONS)]
        self._choices = []
        for targets in range(TARGETS_MAX + 1):
            after = stage("targets", [(n, [marks[n]], emotions) for n in range(targets + 1)])
            self._choices.append(stage("actions", [(n, [actions[n]], after) for n in range(ACTIONS)]))

    def choice(self, targets: int) -> Node:
        """The choice of an intent with so many percepts: action, target, emotion, a token each."""
        return self._choices[targets]

    def words(self, length: int) -> Tokens:
        """So many random words."""
        rng, first, words = self._rng, self._first, self._words
        return np.asarray([first + int(rng.random() * words) for _ in range(length)], np.int32)

    def between(self, bounds: tuple[int, int]) -> Tokens:
        """Random words, as many as the bounds allow."""
        return self.words(self._rng.randint(*bounds))


def people(settings: TownSettings, npcs: int, texts: Texts, rng: random.Random) -> list[Mind]:
    """The NPCs in view. Nearness is spread at random over their numbers, as in a game that registers them in any
    order."""
    shared = [texts.words(settings.shared_len) for _ in range(settings.archetypes)]
    active, warm = settings.active_share, settings.warm_share
    minds = []
    for number in range(npcs):
        where = (number + 0.5) / npcs
        if where < active:
            distance_m = 3.0 + 22.0 * where / active
        elif where < active + warm:
            distance_m = 25.0 + 35.0 * (where - active) / warm
        else:
            distance_m = 60.0 + 40.0 * (where - active - warm) / max(1e-9, 1.0 - active - warm)
        minds.append(distance_m)
    rng.shuffle(minds)
    return [
        Mind(
            number,
            NpcKey("", "town", f"npc{number}"),
            np.concatenate([shared[number % len(shared)], texts.words(settings.persona_len)]),
            round(rng.random() * S / settings.observe_hz),
            distance_m,
            round(rng.uniform(*settings.sway_s) * S),
            rng.random(),
        )
        for number, distance_m in enumerate(minds)
    ]


def seen_ns(mind: Mind, at_ns: int, every_ns: int) -> int:
    """The first time at or after `at_ns` when an NPC is observed."""
    slots = -(-(at_ns - mind.phase_ns) // every_ns)
    return mind.phase_ns + slots * every_ns

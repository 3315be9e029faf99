"""What is known of each NPC's mind: what it saw last, what it is asked, what it is about to do. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.observation import Observation
from core.words import Source
from daemon.prompt import Perception
from daemon.worlds import Npc, World
from scheduler.ticket import Ticket
from tiers.cadence import CadenceSettings


@dataclass(frozen=True, slots=True)
class IntentSettings:
    """`answer_within_ms`: later than this after the due moment, the rule policy answers. `ttl_ms` is game time.

    `bark_every_ms`: an NPC shouts at most this often; 0 switches barks off.
    """

    answer_within_ms: int = 100
    ttl_ms: int = 4_000
    blend_ms: int = 200
    bark_every_ms: int = 6_000
    bark_temperature: float = 0.7
    cadence: CadenceSettings = field(default_factory=CadenceSettings)


@dataclass(slots=True, eq=False)
class Intent:
    """What one NPC is about to do. `state` is the quantised observation that it answers, `seen` the newest that
    agrees.
    """

    version: int
    action: str
    target: str
    emotion: str
    bark: str
    source: Source
    state: str
    seen: Observation
    due_ns: int
    previous_action: str
    confidence: float


@dataclass(slots=True, eq=False)
class Mind:
    """One NPC's newest observation, the work that asks about it, and the intent that stands."""

    npc: Npc
    tick: int = -1  # the newest of the present lease
    seen: Observation | None = None
    state: str = ""
    intent: Intent | None = None
    version: int = 0
    due_ns: int = 0  # 0: nothing to ask
    moments: set[int] = field(default_factory=set)  # that stand in the heap for it
    asked_ns: int | None = None
    asking: Question | None = None
    barking: Ticket | None = None
    barked_ns: int = 0
    observations: int = 0
    dropped: int = 0
    removed: bool = False


@dataclass(slots=True, eq=False)
class Question:
    """A Gold work under way for one mind."""

    mind: Mind
    world: World
    seen: Observation
    state: str
    perception: Perception
    tail: tuple[int, ...]
    due_ns: int
    ticket: Ticket | None = None
    tokens: list[int] = field(default_factory=list)
    confidence: float = 0.0

"""The state of each NPC's mind: its last observation, its question, its intent. Plain values."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import tiers.phase
from core.observation import Observation
from core.words import Activation, Source
from core.work import Chunk, Ended
from daemon.worlds.world import Npc, World
from npcd.v1 import intents_pb2
from prompts.choices import target_word
from prompts.layout import Perception, Tail
from scheduler.ticket import Ticket
from tiers.activation import ActivationSettings
from tiers.cadence import CadenceSettings
from tiers.game_time import GameTime
from tiers.judging import AskingSettings
from tiers.prediction import Motion, PredictionSettings
from tiers.share import ShareSettings

HISTORY_LEN = 16


@dataclass(frozen=True, slots=True)
class IntentSettings:
    """Intents: how soon an NPC has an answer, how long it holds, and how often observations are looked at."""

    answer_within_ms: int = 100
    """If the model has not answered this long after an NPC was due, the rule policy answers. From 1 to 60000."""
    stall_ms: int = 20
    """If the engine stands still, the rule policy answers after this time already; `intents.answer_within_ms` at most.
    """
    ttl_ms: int = 4_000
    """An intent expires after this time of the game's clock; 0: never. From 0 to 604800000."""
    blend_ms: int = 200
    """Time over which a game should blend from one intent into the next; each intent carries it. From 0 to 60000."""
    looks_per_s: int = 1_000
    """Observations of active NPCs that are looked at per second, over all of them; of one NPC the newest counts. From
    10 to 1000000.
    """
    warm_look_ms: int = 500
    """Of a warm NPC one observation in this time is looked at, the newest; an event is looked at at once. From 0 to
    5000.
    """
    ambient_look_ms: int = 1_000
    """Of an ambient NPC one observation in this time is looked at, the newest; an event is looked at at once. From 0 to
    5000.
    """
    remember: int = 8
    """Answers to an NPC's last states that are kept, so that the model is not asked the same question again; 0: none.
    From 0 to 64.
    """
    remember_s: float = 30.0
    """A kept answer is used for this long. From 0 to 3600."""
    change_driven: bool = True
    """Asks the model only when an NPC's state has changed; with `false` an NPC is asked in every slot."""
    bark_every_ms: int = 6_000
    """An NPC barks at most once in this time; 0 turns barks off."""
    bark_temperature: float = 0.7
    """Sampling temperature of barks."""
    cadence: CadenceSettings = field(default_factory=CadenceSettings)
    activation: ActivationSettings = field(default_factory=ActivationSettings)
    share: ShareSettings = field(default_factory=ShareSettings)
    prediction: PredictionSettings = field(default_factory=PredictionSettings)

    @property
    def asking(self) -> AskingSettings:
        """Those that decide when an NPC is asked."""
        return AskingSettings(
            self.answer_within_ms, self.stall_ms, self.looks_per_s, self.warm_look_ms, self.ambient_look_ms,
            self.change_driven, self.cadence, self.share,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class Intent:
    """The next act of one NPC. `state` is the quantised observation that it answers, `seen` the newest that agrees."""

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


class PastIntent(NamedTuple):
    """The record of an earlier intent, for debugging."""

    version: int
    action: str
    target: str
    emotion: str
    source: Source
    tick: int
    state: str
    made_ns: int
    latency_ns: int


class Answer(NamedTuple):
    """The model's answer to a question: asked again with the same tail, it would say it again. `foreseen`: it was
    asked before the state came true. `chosen` is the answer as the model reads it, `bark` the words that were made
    ahead to go with it.
    """

    tail: Tail
    chosen: tuple[str, ...]
    action: str
    target: str
    emotion: str
    bark: str
    confidence: float
    speaks: bool
    at_ns: int
    foreseen: bool = False


Complain = Callable[[intents_pb2.NpcError], None]


class Glimpse(NamedTuple):
    """An observation that was not looked at yet; its sender hears of its errors."""

    said: intents_pb2.Observation
    game_time_ms: int
    at_ns: int
    complain: Complain | None


# Observes an NPC that nobody observed yet; it never pauses.
NOBODY: Game = tiers.phase.Game(GameTime(0))


@dataclass(slots=True, eq=False)
class Mind:
    """One NPC's newest observation and the intent that stands. Its question is tiers/asking.py's."""

    npc: Npc
    game: Game = NOBODY  # the game that sent its newest observation
    tick: int = -1  # the newest of the present lease
    seen: Observation | None = None
    state: str = ""
    glimpse: Glimpse | None = None  # newer than `seen`
    activation: Activation = Activation.AMBIENT
    decided: bool = False  # True once its activation was decided
    intent: Intent | None = None
    version: int = 0
    barking: Ticket | None = None
    barked_ns: int = 0
    motion: Motion | None = None  # for looking ahead; ambient minds have none
    ahead_ns: int = 0  # from when on it is looked ahead for again
    answers: dict[str, Answer] = field(default_factory=dict)  # by state, the newest last
    history: deque[PastIntent] = field(default_factory=lambda: deque(maxlen=HISTORY_LEN))
    observations: int = 0
    dropped: int = 0
    removed: bool = False

    def forget(self, player: str) -> None:
        """Takes out the past intents and answers in which somebody is named."""
        kept = [past for past in self.history if past.target != player and not names(past.state, player)]
        self.history = deque(kept, maxlen=HISTORY_LEN)
        self.answers = {
            state: answer
            for state, answer in self.answers.items()
            if answer.target != player and not names(state, player)
        }


Game = tiers.phase.Game[Mind]


@dataclass(slots=True, eq=False)
class Question:
    """A work under way for one mind: Gold when it is asked what it does, Bronze when it is asked ahead."""

    mind: Mind
    npc: Npc  # as it was when it was asked
    world: World
    seen: Observation
    state: str
    perception: Perception
    tail: Tail
    due_ns: int
    number: int = 0  # as tiers/asking.py has it
    ticket: Ticket | None = None
    chosen: tuple[str, ...] = ()  # action, target and emotion, once they are known
    confidence: float = 0.0
    answer: Answer | None = None


def names(state: str, entity_id: str) -> bool:
    """True if a state (prompts/layout.py) has an entity among its percepts."""
    return f"@{entity_id}|" in f"{state}|"


def answer_of(q: Question, ended: Ended, now_ns: int, foreseen: bool = False) -> Answer:
    """The answer to a question, in the world's words; the question has it as `chosen`."""
    choice = dict(ended.labels)
    action, target, emotion = (
        q.world.actions[choice["actions"]],
        choice["targets"],
        q.world.emotions[choice["emotions"]],
    )
    q.chosen = (action.word, target_word(target), emotion)
    return Answer(
        tail=q.tail,
        chosen=q.chosen,
        action=action.word,
        target=q.perception.percepts[target - 1].entity_id if target else "",
        emotion=emotion,
        bark="",
        confidence=q.confidence,
        speaks=action.speaks,
        at_ns=now_ns,
        foreseen=foreseen,
    )


def taker(q: Question) -> Callable[[Chunk], None]:
    """Notes how sure the model is of the first part of its answer."""
    first = True

    def take(chunk: Chunk) -> None:
        nonlocal first
        if first:
            first, q.confidence = False, chunk.confidence

    return take

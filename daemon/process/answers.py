"""Does a model choose? Twelve varied states, and the judgement of its answers to them. Decides only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from core.observation import Observation, Percept
from core.script import Section, SectionKind
from daemon.process.diagnosis import Check, ok, warn
from prompts.choices import ActionWord
from prompts.layout import world_sections

ALIKE_SHARE = 0.9  # of the states with one answer: the model does not look at them
ACTIONS = [
    ActionWord("wait"), ActionWord("work"), ActionWord("rest"), ActionWord("hide"), ActionWord("search"),
    ActionWord("flee", needs_target=True), ActionWord("attack", needs_target=True),
    ActionWord("greet", needs_target=True), ActionWord("trade", needs_target=True),
    ActionWord("help", needs_target=True),
]  # fmt: skip
EMOTIONS = ("calm", "happy", "afraid", "angry")
WORLD = (
    *world_sections("A village at the edge of a forest. Wolves and bandits come at night.", ACTIONS, EMOTIONS),
    Section(SectionKind.ARCHETYPE, "A villager works by day, sleeps at night and flees from danger.", "villager"),
)
PERSONA = Section(SectionKind.PERSONA, "A baker, friendly and careful.", "Mira")


def _state(time: str, place: str, *seen: tuple[str, str, float], event: str = "", health: float = 1.0) -> Observation:
    percepts = tuple(Percept(f"e{n}", *percept) for n, percept in enumerate(seen))
    return Observation(1, percepts, (event,) if event else (), time, place, health)


STATES = (
    _state("night", "forest", ("wolf", "hostile", 4.0), event="attacked", health=0.2),
    _state("day", "bakery"),
    _state("night", "home"),
    _state("day", "market", ("merchant", "friendly", 3.0), event="asked_to_trade"),
    _state("day", "road", ("friend", "friendly", 5.0)),
    _state("day", "mill", ("child", "friendly", 2.0), event="heard_cry"),
    _state("night", "gate", event="heard_noise"),
    _state("night", "road", ("bandit", "hostile", 3.0)),
    _state("day", "field", ("wolf", "hostile", 40.0)),
    _state("day", "tavern", ("player", "friendly", 2.0), event="spoken_to"),
    _state("night", "barn", ("rat", "hostile", 1.0)),
    _state("day", "road", ("soldier", "neutral", 12.0), health=0.3),
)


def judged(answers: Sequence[str]) -> Check:
    """The finding about the actions that a model chose in STATES."""
    word, times = Counter(answers).most_common(1)[0]
    says = f"{times} of {len(answers)} different situations were answered '{word}'"
    if times >= ALIKE_SHARE * len(answers):
        fix = (
            "let a model that was made for npcd choose (routes.intent.engine), take a larger one, or turn on "
            "caps.examples for a world whose policy rows were written as examples"
        )
        return warn("answers", f"{says}: the model hardly looks at what an NPC sees", fix)
    return ok("answers", f"{says}, {len(answers) - times} otherwise")


def not_asked(why: str) -> Check:
    """The model could not be asked; that alone keeps nothing from serving."""
    return ok("answers", f"not checked: {why}")

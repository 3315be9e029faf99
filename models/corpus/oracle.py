"""The acts of each archetype: ordered rules over the things that the intent tail shows. The first that matches decides.

A rule's condition returns a target (1..n: a percept), NOBODY (it matches, and no percept matters) or 0 (no match). Its
actions and emotions are in order of preference; the first that the world offers is taken. This is the teacher of the
shipped model's intents, so it may only look at things that the tokens show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.observation import Percept
from models.corpus import words
from prompts.choices import ActionWord
from prompts.sight import distance_word

NOBODY = -1
_LAST_RESORTS = ("guard", "hide", "wander", "rest", "idle")
_NAMES_THREAT = frozenset({"flee"})  # may name a target though it needs none

CLOSE, NEAR, AWAY, FAR = "close", "near", "away", "far"
HERE = (CLOSE, NEAR)
THERE = (AWAY, FAR)
ANYWHERE = (CLOSE, NEAR, AWAY, FAR)


@dataclass(frozen=True, slots=True)
class Scene:
    """An observation as the tokens show it: quantised words, and only the percepts that fitted the tail."""

    time: str
    place: str
    health: str
    events: tuple[str, ...]
    percepts: tuple[Percept, ...]

    def threat(self, within: Sequence[str]) -> int:
        """The first percept, if it is hostile and at one of these distances (hostile ones stand first, nearest first)."""
        if (
            self.percepts
            and self.percepts[0].stance == "hostile"
            and distance_word(self.percepts[0].distance_m) in within
        ):
            return 1
        return 0

    def one_of(
        self,
        kinds: Sequence[str],
        within: Sequence[str] = ANYWHERE,
        stances: Sequence[str] = ("", "neutral", "friendly"),
    ) -> int:
        """The first percept of these kinds, distances and stances."""
        for i, p in enumerate(self.percepts, 1):
            if p.kind in kinds and p.stance in stances and distance_word(p.distance_m) in within:
                return i
        return 0

    def friend(self, kinds: Sequence[str], within: Sequence[str] = ANYWHERE) -> int:
        """The first friendly percept of these kinds."""
        return self.one_of(kinds, within, ("friendly",))

    def other(self, kinds: Sequence[str], within: Sequence[str] = ANYWHERE) -> int:
        """The first percept of these kinds that is neither friend nor foe."""
        return self.one_of(kinds, within, ("", "neutral"))

    def after(self, *events: str) -> int:
        """NOBODY when one of these events happened."""
        return NOBODY if any(e in self.events for e in events) else 0

    def at(self, *times: str) -> int:
        """NOBODY at one of these times."""
        return NOBODY if self.time in times else 0

    @property
    def dying(self) -> int:
        """NOBODY when close to death."""
        return NOBODY if self.health == "dying" else 0

    @property
    def weak(self) -> int:
        """NOBODY when hurt or worse."""
        return NOBODY if self.health else 0


@dataclass(frozen=True, slots=True)
class Decision:
    """An intent: the action's word, the target (0: nobody) and the emotion's word."""

    action: str
    target: int
    emotion: str


_Rule = tuple[Callable[[Scene], int], str, str]

_PEOPLE = words.PEOPLE
_BEASTS = ("horse", "rat")
_UNDEAD = ("zombie", "ghoul", "vampire", "lich")

RULES: dict[str, tuple[_Rule, ...]] = {
    "villager": (
        (lambda s: s.weak and s.threat(ANYWHERE), "flee hide", "afraid sad"),
        (lambda s: s.threat((CLOSE,)), "flee hide attack", "afraid angry"),
        (lambda s: s.threat((NEAR,)), "hide flee", "afraid suspicious"),
        (lambda s: s.threat(THERE) and s.friend(_PEOPLE), "warn approach guard", "afraid suspicious"),
        (lambda s: s.threat(THERE), "guard hide", "suspicious afraid"),
        (lambda s: s.after("attacked", "threatened"), "flee hide", "afraid angry"),
        (lambda s: s.after("spoken_to") and s.one_of(_PEOPLE), "talk greet idle", "curious happy"),
        (lambda s: s.after("offered_trade") and s.one_of(_PEOPLE), "trade talk idle", "happy curious"),
        (lambda s: s.after("ally_hurt"), "search guard", "afraid sad"),
        (lambda s: s.one_of(words.MONSTERS, HERE), "hide flee", "afraid suspicious"),
        (lambda s: s.after("saw_blood", "smelled_blood"), "hide guard", "afraid suspicious"),
        (lambda s: s.dying, "rest hide", "sad afraid"),
        (lambda s: s.after("heard_noise") and s.at("night", "dusk"), "hide guard", "afraid suspicious"),
        (lambda s: s.after("heard_noise"), "search guard", "suspicious curious"),
        (lambda s: s.friend(_PEOPLE, HERE), "greet talk idle", "happy calm"),
        (lambda s: s.one_of(("corpse",), HERE), "pray hide", "sad afraid"),
        (lambda s: s.after("bell_rang"), "pray hide", "calm"),
        (lambda s: s.other(("merchant", "market stall"), HERE), "trade approach work", "happy calm"),
        (lambda s: s.other(("stranger",), HERE), "guard idle", "suspicious curious"),
        (lambda s: s.after("player_left"), "wander idle", "sad calm"),
        (lambda s: s.at("day"), "work wander", "calm"),
        (lambda s: s.at("dusk"), "wander idle", "calm"),
        (lambda s: s.at("dawn"), "pray work", "calm"),
        (lambda s: NOBODY, "rest idle", "calm"),
    ),
    "vampire": (
        (lambda s: s.dying and s.threat(ANYWHERE), "flee hide", "afraid angry"),
        (lambda s: s.threat((CLOSE,)), "attack guard", "angry suspicious"),
        (lambda s: s.threat((NEAR,)), "warn attack guard", "angry suspicious"),
        (lambda s: s.threat(THERE), "hide guard", "suspicious angry"),
        (lambda s: s.after("attacked", "threatened"), "search guard", "angry suspicious"),
        (lambda s: s.one_of(("altar",), HERE), "flee hide", "afraid angry"),
        (lambda s: s.after("spoken_to") and s.one_of(_PEOPLE), "talk greet idle", "curious calm"),
        (lambda s: s.after("offered_trade") and s.one_of(_PEOPLE), "trade talk idle", "calm"),
        (
            lambda s: s.after("saw_blood", "smelled_blood") and s.other(_PEOPLE),
            "approach follow search",
            "hungry curious",
        ),
        (lambda s: s.after("saw_blood", "smelled_blood"), "search wander", "hungry curious"),
        (lambda s: s.friend(_PEOPLE, HERE), "greet talk idle", "happy calm"),
        (lambda s: s.at("night", "dusk") and s.other(_PEOPLE, (CLOSE,)), "feed attack follow", "hungry calm"),
        (lambda s: s.at("night", "dusk") and s.other(_PEOPLE), "follow approach hide", "hungry curious"),
        (lambda s: s.weak, "hide rest", "hungry sad"),
        (lambda s: s.after("bell_rang"), "hide idle", "afraid suspicious"),
        (lambda s: s.after("heard_noise", "ally_hurt"), "search guard", "suspicious curious"),
        (lambda s: s.after("player_left"), "wander idle", "sad calm"),
        (lambda s: s.at("day"), "rest hide", "calm"),
        (lambda s: s.at("dawn"), "hide rest", "afraid calm"),
        (lambda s: s.at("dusk"), "wander idle", "hungry calm"),
        (lambda s: NOBODY, "search wander", "hungry calm"),
    ),
    "werewolf": (
        (lambda s: s.dying and s.threat(ANYWHERE), "flee hide", "afraid angry"),
        (lambda s: s.threat(HERE), "attack howl guard", "angry"),
        (lambda s: s.threat(THERE) and s.at("night", "dusk"), "howl guard", "angry suspicious"),
        (lambda s: s.threat(THERE), "guard hide", "suspicious angry"),
        (lambda s: s.after("attacked", "threatened"), "howl search", "angry"),
        (lambda s: s.one_of(("fire", "lantern"), (CLOSE,)), "flee hide", "afraid angry"),
        (lambda s: s.after("spoken_to") and s.one_of(_PEOPLE), "talk warn idle", "suspicious calm"),
        (lambda s: s.friend(("wolf", "werewolf")), "follow approach howl", "happy calm"),
        (lambda s: s.at("night") and s.other(_PEOPLE + _BEASTS, HERE), "attack follow howl", "hungry angry"),
        (lambda s: s.at("night") and s.other(_PEOPLE + _BEASTS), "follow approach wander", "hungry curious"),
        (lambda s: s.one_of(("corpse",), HERE), "feed search", "hungry"),
        (lambda s: s.after("saw_blood", "smelled_blood"), "search wander", "hungry curious"),
        (lambda s: s.friend(_PEOPLE, HERE), "greet talk idle", "happy calm"),
        (lambda s: s.after("offered_trade") and s.one_of(_PEOPLE), "trade talk idle", "suspicious curious"),
        (lambda s: s.weak, "rest hide", "sad angry"),
        (lambda s: s.after("bell_rang"), "howl hide", "angry"),
        (lambda s: s.after("ally_hurt"), "howl guard", "sad angry"),
        (lambda s: s.after("heard_noise"), "search guard", "curious suspicious"),
        (lambda s: s.at("day"), "rest hide", "calm"),
        (lambda s: s.at("dusk"), "wander search", "curious calm"),
        (lambda s: s.at("night"), "howl wander", "hungry calm"),
        (lambda s: NOBODY, "rest hide", "sad calm"),
    ),
    "zombie": (
        (lambda s: s.one_of(("fire",), (CLOSE,)), "flee wander", "afraid"),
        (lambda s: s.threat(HERE), "attack approach", "angry hungry"),
        (lambda s: s.threat(THERE), "approach follow wander", "angry hungry"),
        (lambda s: s.one_of(_PEOPLE + _BEASTS, (CLOSE,)), "attack feed", "hungry angry"),
        (lambda s: s.one_of(_PEOPLE + _BEASTS, (NEAR,)), "approach follow", "hungry"),
        (lambda s: s.one_of(("corpse",), HERE), "feed search", "hungry"),
        (lambda s: s.one_of(_PEOPLE + _BEASTS), "follow approach", "hungry"),
        (lambda s: s.after("smelled_blood", "saw_blood"), "search wander", "hungry"),
        (lambda s: s.after("heard_noise", "bell_rang", "spoken_to"), "search wander", "curious hungry"),
        (lambda s: s.after("attacked", "threatened"), "wander idle", "angry"),
        (lambda s: s.dying, "idle rest", "sad"),
        (lambda s: s.one_of(("grave",), HERE), "idle rest", "calm"),
        (lambda s: s.at("day"), "idle rest", "calm"),
        (lambda s: NOBODY, "wander idle", "hungry calm"),
    ),
    "ghoul": (
        (lambda s: s.weak and s.threat(ANYWHERE), "flee hide", "afraid"),
        (lambda s: s.threat((CLOSE,)), "attack flee", "afraid angry"),
        (lambda s: s.threat(ANYWHERE), "hide flee", "afraid suspicious"),
        (lambda s: s.after("attacked", "threatened"), "flee hide", "afraid"),
        (lambda s: s.one_of(("fire", "lantern"), HERE), "hide flee", "afraid"),
        (lambda s: s.one_of(("corpse",), HERE), "feed search", "hungry happy"),
        (lambda s: s.one_of(("corpse",)), "approach search", "hungry"),
        (lambda s: s.after("spoken_to") and s.one_of(_PEOPLE), "talk hide", "suspicious curious"),
        (lambda s: s.after("offered_trade") and s.one_of(_PEOPLE), "trade talk hide", "curious happy"),
        (lambda s: s.after("smelled_blood", "saw_blood"), "search wander", "hungry"),
        (lambda s: s.one_of(("rat",), HERE), "feed attack", "hungry"),
        (lambda s: s.one_of(("grave",)), "search work", "hungry curious"),
        (lambda s: s.after("bell_rang", "heard_noise", "ally_hurt"), "hide guard", "suspicious afraid"),
        (lambda s: s.friend(("ghoul", "zombie", "lich")), "follow approach", "calm happy"),
        (lambda s: s.at("night") and s.other(_PEOPLE), "follow hide", "hungry curious"),
        (lambda s: s.one_of(_PEOPLE, HERE), "hide idle", "suspicious afraid"),
        (lambda s: s.weak, "rest hide", "sad hungry"),
        (lambda s: s.at("day", "dawn"), "hide rest", "calm"),
        (lambda s: s.at("dusk"), "wander search", "hungry"),
        (lambda s: NOBODY, "search wander", "hungry"),
    ),
    "lich": (
        (lambda s: s.dying and s.threat(ANYWHERE), "hide guard", "angry"),
        (lambda s: s.threat(HERE), "attack warn guard", "angry calm"),
        (lambda s: s.threat(THERE), "warn guard", "suspicious angry"),
        (lambda s: s.after("attacked", "threatened"), "guard search", "angry"),
        (lambda s: s.after("spoken_to") and s.one_of(_PEOPLE), "talk greet idle", "calm curious"),
        (lambda s: s.after("offered_trade") and s.one_of(_PEOPLE), "trade talk idle", "curious calm"),
        (lambda s: s.one_of(("corpse",), HERE), "work search", "curious happy"),
        (lambda s: s.friend(_PEOPLE, HERE), "greet talk idle", "calm happy"),
        (lambda s: s.other(_PEOPLE, HERE), "warn guard", "suspicious calm"),
        (lambda s: s.one_of(("chest",), HERE), "guard hide", "suspicious calm"),
        (lambda s: s.one_of(("altar",), HERE), "pray work", "calm"),
        (lambda s: s.after("ally_hurt"), "search guard", "angry"),
        (lambda s: s.after("heard_noise", "bell_rang"), "guard search", "suspicious angry"),
        (lambda s: s.after("smelled_blood", "saw_blood"), "search work", "curious"),
        (lambda s: s.one_of(("grave",)), "work search", "curious calm"),
        (lambda s: s.friend(_UNDEAD), "guard work", "calm"),
        (lambda s: s.weak, "rest hide", "sad calm"),
        (lambda s: s.at("night"), "work search", "calm"),
        (lambda s: s.at("dusk"), "pray work", "calm"),
        (lambda s: s.at("dawn"), "guard rest", "calm"),
        (lambda s: NOBODY, "rest idle", "calm"),
    ),
}


def decide(archetype: str, scene: Scene, actions: Sequence[ActionWord], emotions: Sequence[str]) -> Decision:
    """The intent that the first matching rule asks for, in this world's words."""
    offered = {a.word: a for a in actions}
    found, wanted, feelings = next((t, a, e) for t, a, e in ((m(scene), a, e) for m, a, e in RULES[archetype]) if t)
    focus = 0 if found == NOBODY else found
    emotion = next((e for e in (*feelings.split(), "calm") if e in emotions), emotions[0])
    for word in (*wanted.split(), *_LAST_RESORTS, *offered):
        action = offered.get(word)
        if action and (focus or not action.needs_target):
            named = action.needs_target or word in _NAMES_THREAT
            return Decision(word, focus if named else 0, emotion)
    raise AssertionError("a world offers at least one action that needs no target")

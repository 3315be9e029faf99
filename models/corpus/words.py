"""The standard words, which the shipped model knows by heart. Worlds use subsets of them, in any order."""

from __future__ import annotations

from prompts.choices import ActionWord

_NEEDS_TARGET = frozenset("approach follow attack greet talk trade warn feed".split())
_SPEAKS = frozenset("greet talk warn trade attack howl".split())

ACTIONS: tuple[ActionWord, ...] = tuple(
    ActionWord(word, word in _NEEDS_TARGET, word in _SPEAKS)
    for word in (
        "idle wander approach follow flee attack guard hide greet talk trade warn howl feed work pray search rest".split()
    )
)
ACTION: dict[str, ActionWord] = {a.word: a for a in ACTIONS}
EMOTIONS: tuple[str, ...] = tuple("calm happy curious afraid angry sad hungry suspicious".split())

# A world without these words has no action that needs no target, or no emotion.
ALWAYS_ACTIONS = ("idle",)
ALWAYS_EMOTIONS = ("calm",)

ARCHETYPES = ("vampire", "werewolf", "zombie", "ghoul", "lich", "villager")
PEOPLE = ("player", "villager", "stranger", "child", "merchant")
MONSTERS = ("vampire", "werewolf", "zombie", "ghoul", "lich", "wolf")
ANIMALS = ("rat", "horse")
THINGS = ("corpse", "grave", "altar", "lantern", "fire", "door", "chest", "market stall", "well")
KINDS = PEOPLE + MONSTERS + ANIMALS + THINGS
STANCES = ("hostile", "friendly", "neutral")
EVENTS = (
    "attacked",
    "spoken_to",
    "heard_noise",
    "saw_blood",
    "smelled_blood",
    "bell_rang",
    "player_left",
    "ally_hurt",
    "offered_trade",
    "threatened",
)
TIMES = ("day", "dusk", "night", "dawn")
PLACES = tuple("tavern crypt forest market chapel graveyard road mill gate cellar castle swamp".split())

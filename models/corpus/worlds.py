"""Generated worlds: a town with a history, the words that it may act and feel with, and the people in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from models.corpus import words
from models.corpus.names import drawn, home_name, item_name, person_name, town_name
from models.corpus.spin import pick, spin
from prompts.choices import ActionWord

HAPPENINGS = (
    "great flood", "long winter", "red plague", "mill fire", "siege", "night of wolves", "hunger", "war of brothers",
    "fall of the bridge", "black rain", "burning of the chapel", "silent summer",
)  # fmt: skip
DANGERS = (
    "wolves", "grave robbers", "bandits", "the walking dead", "witch fires", "the pale count", "blood drinkers", "deep water",
    "ghouls", "the fog",
)  # fmt: skip
GOODS = ("salt", "wool", "honey", "iron", "candles", "ale", "timber", "fish", "silver", "bread")
TITLES = ("lady", "lord", "mayor", "abbot", "captain", "duke", "queen", "judge")
KIN = ("sister", "brother", "mother", "father", "daughter", "son", "cousin", "wife", "husband", "master")
FEARS = (
    "fire",
    "the bell",
    "deep water",
    "wolves",
    "the crypt",
    "silver",
    "the dark",
    "crows",
    "winter",
    "the sun",
    "mirrors",
    "hunger",
)
LOVES = (
    "old songs",
    "honey cake",
    "the rain",
    "chess",
    "horses",
    "red wine",
    "quiet",
    "roses",
    "the moon",
    "stories",
    "warm bread",
    "silence",
)

_TRADES: dict[str, tuple[str, ...]] = {
    "villager": (
        "baker",
        "smith",
        "miller",
        "weaver",
        "hunter",
        "healer",
        "shepherd",
        "carpenter",
        "guard",
        "cook",
        "fisher",
        "innkeeper",
    ),
    "vampire": (
        "count",
        "countess",
        "collector of books",
        "lord of the old house",
        "keeper of wine",
        "painter",
        "judge of the night",
    ),
    "werewolf": ("woodcutter", "hunter", "tracker", "trapper", "leader of the pack", "outcast", "tanner"),
    "zombie": ("dead soldier", "dead miller", "dead servant", "dead sailor", "dead farmer", "dead guard"),
    "ghoul": ("digger", "bone picker", "grave robber", "keeper of bones", "rag seller", "tomb sweeper"),
    "lich": (
        "scholar of death",
        "dead king",
        "master of the tower",
        "keeper of the seals",
        "necromancer",
        "astronomer",
    ),
}
_NATURE: dict[str, tuple[str, ...]] = {
    "villager": (
        "{Plain|Simple|Honest} folk. {Works by day|Works from dawn}, {sleeps at night|stays in at night}, {flees from monsters|hides from danger}, {greets friends|likes to talk}.",
        "{An ordinary person|A common soul} who {works|labours}, prays at dawn and {runs from|fears} {what hunts at night|monsters and blood}.",
    ),
    "vampire": (
        "{Proud|Noble|Elegant} {undead|night walker}. {Drinks|Lives on} blood, hunts {people|the living} after dusk, rests by day, {fears altars and dawn|flees altars}, {speaks formally|speaks with courtesy}.",
        "{An old|A cold} drinker of blood, {polite|courteous} and {cruel|patient}. {Sleeps by day, feeds at night|Hunts by night}; {altars and bells trouble it|it hates altars and bells}.",
    ),
    "werewolf": (
        "{Half man, half wolf|A man with a wolf inside}. {Gruff|Rough} and {proud|quick to anger}; hunts at night, howls, {follows its pack|runs with wolves}, {hates fire|fears fire}.",
        "{A wild|An angry} beast in {human|man's} shape. {Fights what comes close|Bites first}, rests by day, {eats what it finds|feeds on the dead}, {speaks little|growls}.",
    ),
    "zombie": (
        "{Slow|Rotten|Mindless} dead that {walk|wander}. {Attacks|Hunts} the living, eats corpses, {follows noise|goes to noise}, {moans|can hardly speak}.",
        "{A walking corpse|A dead body that walks}, always {hungry|hunting}. {Knows no fear but fire|Only fire scares it}. It {moans|speaks in pieces}.",
    ),
    "ghoul": (
        "{Sneaking|Crooked|Cowardly} eater of the dead. {Feeds on corpses|Eats corpses}, digs in graves, hides from light, {flees when hurt|fights when cornered}, {rasps|whispers}.",
        "{A thin|A pale} {thing|creature} of the graveyard. {Looks for|Smells out} corpses and graves, {hates lanterns|fears lamps and fire}, {trades in secrets|speaks in rasps}.",
    ),
    "lich": (
        "{Ancient|Cold|Deathless} {sorcerer|mage}. {Works on|Studies} corpses and graves, guards its {chests|treasure}, warns intruders, {fears nothing|never flees}, {speaks like old books|speaks in an old manner}.",
        "{A dead wizard|A king of bones} who {will not die|outlived death}. {Patient|Calm} and {proud|cruel}; strikes foes, warns strangers, prays to {dark gods|nameless gods} at dusk.",
    ),
}

_LORE: tuple[tuple[str, str], ...] = (
    ("town", "{<town> is a {small|poor|grey|quiet|walled} {town|village} {by the|near the} <landmark>.|The {town|village} of <town> {lies|stands} {by the|near the} <landmark>.}"),
    ("ruler", "{<title> <ruler> rules {here|the town|<town>}.|{The town|<town>} {is ruled by|obeys} <title> <ruler>.}"),
    ("item", "{The <item> {is hidden|lies|was lost|is buried} {in|under} the <itemplace>.|{Some say|They say|It is told that} the <item> {is|lies} {in|under} the <itemplace>.}"),
    ("event", "{<years> years ago {came|was} the <event>.|{The <event> {came|was} <years> years ago.|People still speak of the <event>, <years> years ago.}}"),
    ("danger", "{{People|Folk|All} {fear|speak of|are afraid of} <danger>.|At night {beware of|there are} <danger>.|The roads are full of <danger>.}"),
    ("goods", "{<town> {sells|trades|lives on} <goods>.|{The market sells|Merchants come for} <goods>.}"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class World:
    """One generated world. `facts` are those in its lore, by slot name; a fact that is not told is not in it.

    `unseen`: it is for the evaluation, and made of held-out words only.
    """

    lore: str
    facts: dict[str, str]
    unseen: bool
    actions: tuple[ActionWord, ...]
    emotions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Npc:
    """One generated NPC. `facts` are those in its persona, by slot name."""

    archetype: str
    nature: str
    name: str
    text: str
    facts: dict[str, str]


# Secrets in the persona's words. <i>, <my> and <me> become "you" there, and the speaker's own words in a reply.
_SECRETS = (
    "the <secretitem> {is|lies|is hidden} {in|under|behind} the <secretplace>",
    "<i> {hid|buried|stole|found|sold} the <secretitem> {in|at} the <secretplace>",
    "<my> <secretkin> <secretname> {hides|sleeps|is held} {in|under} the <secretplace>",
    "<secretname> {has|stole|keeps} the <secretitem>",
    "<i> {pay|serve|fear|betrayed|love|freed} <secretname>",
    "<secretname> {pays|serves|hunts|knows} <me>",
    "the <secretitem> {hangs|waits|stands|sleeps} {behind|beside|above|beneath} the <secretplace>",
    "<i> {let <secretname> in at night|never paid <secretname>|owe <secretname> gold|know where <secretname> hides}",
    "<my> <secretitem> is {false|cursed|stolen|not <my> own}",
    "a {door|tunnel|stair} leads from the <secretplace> to the <secondplace>",
)
_TOLD_BY = {"ghoul": ("we", "our", "us")}


def make_world(rng: Random, unseen: bool = False) -> World:
    """A world: three to six told facts in any order, 9 to all actions, 5 to all emotions, shuffled."""
    landmark, itemplace = rng.choice(words.PLACES), home_name(rng, unseen)
    slots = {
        "town": town_name(rng, unseen),
        "landmark": landmark,
        "title": rng.choice(TITLES).capitalize(),
        "ruler": person_name(rng, unseen),
        "item": item_name(rng, unseen),
        "itemplace": itemplace,
        "event": rng.choice(HAPPENINGS),
        "years": rng.choice(
            ("Three", "Seven", "Nine", "Ten", "Twelve", "Twenty", "Forty", "Sixty", "Ninety", "Hundred")
        ),
        "danger": rng.choice(DANGERS),
        "goods": rng.choice(GOODS),
    }
    told = [_LORE[0], *rng.sample(_LORE[1:], rng.randint(2, 4))]
    if rng.random() < 0.5:
        rng.shuffle(told)
    facts: dict[str, str] = {}
    sentences: list[str] = []
    for topic, line in told:
        sentences.append(spin(rng, line, slots))
        needs = {
            "town": ("town",),
            "ruler": ("title", "ruler"),
            "item": ("item", "itemplace"),
            "event": ("event", "years"),
        }
        facts |= {slot: slots[slot] for slot in needs.get(topic, (topic,))}
    if "years" in facts:
        facts["years"] = facts["years"].lower()
        sentences = [s.replace(f" {slots['years']} years", f" {facts['years']} years") for s in sentences]
    return World(" ".join(sentences), facts, unseen, _some_actions(rng, unseen), _some_emotions(rng))


def _some_actions(rng: Random, unseen: bool) -> tuple[ActionWord, ...]:
    order = drawn(lambda: " ".join(_some(rng, tuple(words.ACTION), words.ALWAYS_ACTIONS, 9)), unseen)
    return tuple(words.ACTION[w] for w in order.split())


def _some_emotions(rng: Random) -> tuple[str, ...]:
    return _some(rng, words.EMOTIONS, words.ALWAYS_EMOTIONS, 5)


def _some(rng: Random, all_words: Sequence[str], always: Sequence[str], least: int) -> tuple[str, ...]:
    """A shuffled subset with `always` in it; a third of the time it is everything."""
    count = len(all_words) if rng.random() < 0.33 else rng.randint(least, len(all_words))
    rest = [w for w in all_words if w not in always]
    chosen = [*always, *rng.sample(rest, count - len(always))]
    rng.shuffle(chosen)
    return tuple(chosen)


def make_npc(rng: Random, archetype: str, unseen: bool = False) -> Npc:
    """An NPC of this archetype: a home, a trade, one or two more facts, and mostly a secret."""
    name = person_name(rng, unseen)
    slots = {
        "home": home_name(rng, unseen),
        "trade": rng.choice(_TRADES[archetype]),
        "kin": rng.choice(KIN),
        "kinname": person_name(rng, unseen),
        "fear": rng.choice(FEARS),
        "love": rng.choice(LOVES),
        "lost": item_name(rng, unseen),
        "lostplace": home_name(rng, unseen),
    }
    lines: list[tuple[tuple[str, ...], str]] = [
        (("home", "trade"), "{A <trade> who {lives|dwells|sleeps} {at|by|in} the <home>.|{The|A} <trade> of the <home>.|<trade>. {Lives|Dwells} {at|by|in} the <home>.|<trade> of the <home>, where you live.}"),
    ]  # fmt: skip
    more: list[tuple[tuple[str, ...], str]] = [
        (
            ("kin", "kinname"),
            "{<kinname> is your <kin>.|Your <kin> is {called|named} <kinname>.|Your <kin> is <kinname>.}",
        ),
        (("fear",), "{Afraid of <fear>.|You fear <fear>.|Fears <fear>.}"),
        (("love",), "{Loves <love>.|You love <love>.|Fond of <love>.}"),
        (
            ("lost", "lostplace"),
            "{Lost a <lost> {in|at|near} the <lostplace>.|You lost a <lost> {in|at|near} the <lostplace>.}",
        ),
    ]
    lines += rng.sample(more, rng.choice((1, 1, 2, 2, 3)))
    facts = {slot: slots[slot] for names, _ in lines for slot in names} | {"name": name}
    sentences = [spin(rng, line, slots) for _, line in lines]
    if rng.random() < 0.6:
        secret, facts["secret"], keys = _secret(rng, archetype, unseen)
        facts |= keys
        sentences.append(f"Your secret: {secret}.")
    return Npc(archetype, pick(rng, _NATURE[archetype], {}), name, " ".join(sentences), facts)


def _secret(rng: Random, archetype: str, unseen: bool) -> tuple[str, str, dict[str, str]]:
    """A secret in the persona's words, in the NPC's words, and the slots in it."""
    slots = {
        "secretitem": item_name(rng, unseen),
        "secretplace": home_name(rng, unseen),
        "secondplace": home_name(rng, unseen),
        "secretkin": rng.choice(KIN),
        "secretname": person_name(rng, unseen),
    }
    line = spin(rng, rng.choice(_SECRETS), {k: f"<{k}>" for k in (*slots, "i", "my", "me")}, capitals=False)
    i, my, me = _TOLD_BY.get(archetype, ("I", "my", "me"))
    kept = spin(rng, line, {**slots, "i": "you", "my": "your", "me": "you"}, capitals=False)
    told = spin(rng, line, {**slots, "i": i, "my": my, "me": me}, capitals=False)
    return kept, told, {k: v for k, v in slots.items() if f"<{k}>" in line}

"""Conversations: a player asks, and an NPC answers from its persona, its world, its eyes and earlier lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from core.observation import Observation
from models.corpus import memories, speech
from models.corpus.intents import make_observation
from models.corpus.names import item_name, person_name
from models.corpus.spin import pick, slots_of
from models.corpus.worlds import HAPPENINGS, Npc, World
from prompts.layout import Layout, Perception
from prompts.sight import distance_word, health_word

# How often each topic comes up in a conversation.
_WEIGHTS: dict[str, int] = {
    "greet": 4, "name": 6, "home": 5, "trade": 4, "kin": 5, "fear": 3, "love": 3, "lost": 4, "town": 4, "ruler": 4, "item": 5,
    "event": 3, "danger": 2, "goods": 2, "barter": 3, "threat": 3, "insult": 2, "praise": 2, "thanks": 2, "bye": 2, "see": 5,
    "hour": 3, "where": 3, "health": 3, "mynameis": 4, "whoami": 4, "help": 3, "odd": 8, "secret": 4, "trust": 2,
    "tell": 16, "asktold": 16,
}  # fmt: skip
# How often each is asked on its own: facts to look up count more than facts known by heart.
QUESTIONS: dict[str, int] = {
    "name": 8, "home": 8, "trade": 4, "kin": 6, "fear": 3, "love": 3, "lost": 5, "town": 6, "ruler": 6, "item": 8, "event": 3,
    "danger": 2, "goods": 2, "secret": 5, "whoami": 3, "trust": 2, "asktold": 4, "see": 3, "hour": 2, "where": 2, "health": 1,
    "greet": 1, "threat": 1, "odd": 2, "bye": 1, "barter": 1,
}  # fmt: skip
REMEMBERED: dict[str, int] = {"asktold": 30, "whoami": 8, "secret": 10, "trust": 5, "greet": 2, "bye": 1, "name": 1}
# The same late in a training: slow lessons come more often.
REMEMBERED_LATE: dict[str, int] = REMEMBERED | {"whoami": 14, "secret": 25}
_PERSONA_TOPICS = frozenset({"name", "home", "trade", "kin", "fear", "love", "lost"})
_LORE_TOPICS = frozenset({"town", "ruler", "item", "event", "danger", "goods"})
_SIGHT_TOPICS = frozenset({"see", "hour", "where", "health"})
_DISTANCE = {"close": "very close", "near": "nearby", "away": "over there", "far": "far away"}
# Slots whose values can only come from the context: names, and combinations that no model knows by heart.
COPIED = (
    "name home kinname lost lostplace town ruler title item itemplace player secretitem secretplace secondplace secretname "
    "secretkin titem tplace ttown tname tkin sitem count pitem qitem rplace kin fear love trade danger goods years event"
).split()
_UNREPEATED_TURNS = 14
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[^.])")


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: the perception (None: nothing known), the player's line, the reply; and True when it is about
    sight.

    `found` are the words of the reply that had to be found in the context.
    """

    perception: Perception | None
    line: str
    reply: str
    sighted: bool
    found: frozenset[str] = frozenset()


@dataclass(slots=True)
class Known:
    """The knowledge of one NPC in a conversation: slots, trusted people, and told facts, by kind of memory."""

    facts: dict[str, str]
    player: str
    trusted: bool = False
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)  # sentences of the last turns, which must not be repeated
    topics: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory before a conversation, as texts that may be empty, and the facts in it."""

    summary: str
    card: str
    digest: str
    known: Known


@dataclass(frozen=True, slots=True)
class Talk:
    """One conversation, with the memory before it, the knowledge at its end, and a summary of it."""

    named: str  # the game sends this name with every line
    memory: Memory
    turns: tuple[Turn, ...]
    known: Known
    summary: str


_TRUST_NOTES = ("<player> is <trust>.", "{Friend|Known}: <player>, <trust>.", "<player>, <trust>.")
_SUMMARY_HEADS = (
    "{<player> {came and |}{talked|spoke} with <name>|<name> spoke with <player>}{| about the town| about old times| about the road}.",
)  # fmt: skip


def make_memory(rng: Random, world: World, npc: Npc, knows: float = 1.0) -> Memory:
    """An NPC's memory of a player: nothing, or a card, at times a summary and a digest."""
    known = Known(dict(npc.facts), person_name(rng, world.unseen))
    if rng.random() >= knows:
        return Memory("", "", "", known)
    known.facts["player"] = known.player
    slots = {"player": known.player, "name": npc.name}
    known.trusted = rng.random() < 0.5
    slots["trust"] = rng.choice(memories.TRUSTED if known.trusted else memories.WARY)
    places: dict[str, list[str]] = {"summary": [], "card": [], "digest": []}
    where = rng.choices(("card", "digest", "both"), (50, 30, 20))[0]
    for place in ("card", "digest"):
        if where in (place, "both") and (rng.random() < 0.8):
            places[place].append(pick(rng, _TRUST_NOTES, slots))
    if not places["card"] + places["digest"]:
        known.trusted = False
    for kind in rng.sample(list(memories.KINDS), rng.choice((1, 1, 2, 2, 3))):
        known.told[kind] = memories.make_memory(rng, kind, world.unseen)
        place = rng.choices(("card", "digest", "summary"), (55, 20, 25))[0]
        if place == "digest" and len(places["digest"]) > 1:
            place = "card"
        if place == "summary" and not places["summary"]:
            places["summary"].append(pick(rng, _SUMMARY_HEADS, slots))
        places[place].append(memories.note(rng, kind, {**slots, **known.told[kind]}))
    if not places["card"]:
        places["card"].append(f"{known.player}.")
    summary, card, digest = (" ".join(places[p]) for p in ("summary", "card", "digest"))
    return Memory(summary, card, digest, known)


def make_talk(rng: Random, layout: Layout, world: World, npc: Npc, turns: int) -> Talk:
    """A conversation of `turns` exchanges."""
    memory = make_memory(rng, world, npc, 0.3)
    known = memory.known
    start = Known(dict(known.facts), known.player, known.trusted, dict(known.told))
    named = known.player if rng.random() < 0.25 else ""  # the game sends the player's name with every line
    if named:
        known.facts["player"] = start.facts["player"] = named
    made: list[Turn] = []
    for topic in _topics(rng, turns):
        made.append(make_turn(rng, layout, world, npc, topic, known))
    return Talk(
        named, Memory(memory.summary, memory.card, memory.digest, start), tuple(made), known, _summary(rng, npc, known)
    )


def make_questions(
    rng: Random, layout: Layout, world: World, npc: Npc, known: Known, weights: Mapping[str, int], count: int
) -> list[Turn]:
    """Exchanges about different topics, each on its own: no exchange knows of the others."""
    left = dict(weights)
    made: list[Turn] = []
    while len(made) < count and left:
        topic = rng.choices(list(left), list(left.values()))[0]
        if topic != "asktold":
            del left[topic]
        made.append(make_turn(rng, layout, world, npc, topic, known, alone=True))
    return made


def _topics(rng: Random, count: int) -> list[str]:
    """Topics of a talk, rarely twice the same. A player who says their name is often asked for it later."""
    left = {k: float(v) for k, v in _WEIGHTS.items()}
    topics: list[str] = []
    while len(topics) < count:
        topic = rng.choices(list(left), list(left.values()))[0]
        topics.append(topic)
        left[topic] *= {"tell": 0.8, "asktold": 0.9, "odd": 0.7}.get(topic, 0.15)
        if topic == "mynameis":
            left["whoami"] *= 3
    return topics


def make_turn(
    rng: Random, layout: Layout, world: World, npc: Npc, topic: str, known: Known, alone: bool = False
) -> Turn:
    """One exchange about a topic. Unless `alone`, facts told in it are known afterwards."""
    seen = make_observation(rng) if rng.random() < (0.5 if alone else 0.85) else None
    line = reply = ""
    used: dict[str, str] = {}
    for _ in range(10):
        line, reply, used = _exchange(rng, layout, world, npc, topic, known, seen, alone)
        if not any(s in known.said for s in sentences(reply)):
            break
    if not alone:
        known.said = (known.said + sentences(reply))[-3 * _UNREPEATED_TURNS :]
        known.topics.append(topic)
    perception = layout.perceive(seen) if seen else None
    return Turn(perception, line, reply, seen is not None and topic in _SIGHT_TOPICS, _found(reply, used))


def sentences(text: str) -> list[str]:
    """The sentences of a reply. The trailing end of a moan belongs to its sentence."""
    return _SENTENCE_END.split(text)


def _found(reply: str, slots: Mapping[str, str]) -> frozenset[str]:
    values = {w for slot in COPIED if slot in slots for w in slots[slot].split() if slots[slot] in reply}
    if "secret" in slots and slots["secret"] in reply.replace(reply[:1], reply[:1].lower(), 1) + reply:
        values |= set(slots["secret"].split())
    return frozenset(values - {"the", "of", "a", "in"})


def _exchange(
    rng: Random,
    layout: Layout,
    world: World,
    npc: Npc,
    topic: str,
    known: Known,
    seen: Observation | None,
    alone: bool,
) -> tuple[str, str, dict[str, str]]:
    """The player's line, the reply, and the slots that it may have used."""
    kind = npc.archetype
    if topic == "tell":
        told = rng.choice(memories.SAID)
        slots = memories.make_memory(rng, told, world.unseen)
        known.told[told] = slots
        return memories.said(rng, told, slots), memories.noted(rng, kind), {}
    if topic == "asktold":
        pool = (
            list(known.told)
            if known.told and rng.random() < 0.75
            else [k for k in memories.KINDS if k not in known.told]
        )
        told = rng.choice(pool or list(known.told))
        slots = known.told.get(told, {})
        asked = pick(rng, (memories.KINDS[told].ask,), slots or memories.make_memory(rng, told, world.unseen))
        reply = memories.answer(rng, kind, told, slots) if slots else memories.untold(rng, kind)
        return _as_typed(rng, asked, bool(slots)), reply, slots
    if topic == "secret":
        return (
            _as_typed(rng, pick(rng, memories.SECRET_ASKED, {})),
            memories.secret(rng, kind, known.trusted, known.facts),
            known.facts,
        )
    if topic == "trust":
        return _as_typed(rng, pick(rng, memories.TRUST_ASKED, {})), memories.trust(rng, kind, known.trusted), {}
    return _told_by_heart(rng, layout, world, npc, topic, known, seen, alone)


def _told_by_heart(
    rng: Random,
    layout: Layout,
    world: World,
    npc: Npc,
    topic: str,
    known: Known,
    seen: Observation | None,
    alone: bool,
) -> tuple[str, str, dict[str, str]]:
    facts = known.facts
    slots = {**facts, **world.facts}
    wanted = _wanted_fact(rng, topic, world)
    asked = pick(rng, speech.PLAYER[topic], {**facts, **wanted, "player": known.player})
    if wanted and not any(w in asked for w in wanted.values()):
        wanted = {}
    lines = speech.REPLIES[npc.archetype]
    key = topic
    if topic == "mynameis":
        slots["player"] = known.player
        if not alone:
            facts["player"] = known.player
    elif (topic in _PERSONA_TOPICS and topic not in facts) or (topic == "whoami" and "player" not in facts):
        key = f"no_{topic}"
    elif topic in _LORE_TOPICS and (
        topic not in world.facts or any(world.facts.get(k) != v for k, v in wanted.items())
    ):
        key = "no_lore"
    elif topic == "health":
        key = "hurt" if seen and health_word(seen.health) else "well"
    elif topic in ("see", "hour", "where"):
        key = _from_sight(rng, layout, topic, seen, slots)
    reply = pick(rng, _fitting(lines[key], slots), slots)
    named = any(slots.get(k, "\0") in asked for k in ("name", "player")) or bool(wanted)
    return _as_typed(rng, asked, named), _closed(rng, npc.archetype, reply, slots), slots


def _closed(rng: Random, archetype: str, reply: str, slots: Mapping[str, str]) -> str:
    """The reply, at times with another last sentence that fits any answer."""
    closers = speech.CLOSERS.get(archetype)
    parts = sentences(reply)
    if closers is None or len(parts) < 2 or rng.random() > 0.4 or any(v in parts[-1] for v in slots.values()):
        return reply
    return " ".join([*parts[:-1], rng.choice(closers)])


def _wanted_fact(rng: Random, topic: str, world: World) -> dict[str, str]:
    """The fact that the player asks for by name: mostly one of the lore, at times one that the lore does not have."""
    if topic == "item":
        told = "item" in world.facts and rng.random() < 0.85
        return {"item": world.facts["item"] if told else item_name(rng, world.unseen)}
    if topic == "event":
        told = "event" in world.facts and rng.random() < 0.85
        return {"event": world.facts["event"] if told else rng.choice(HAPPENINGS)}
    return {}


def _from_sight(rng: Random, layout: Layout, topic: str, seen: Observation | None, slots: dict[str, str]) -> str:
    """Fills the slot for the seen thing. Returns the reply's key."""
    if topic == "hour" and seen and seen.time_of_day:
        slots["hour"] = seen.time_of_day
        return topic
    if topic == "where" and seen and seen.place:
        slots["place"] = seen.place
        return topic
    if topic != "see":
        return "no_lore"
    percepts = layout.perceive(seen).percepts if seen else ()
    if not percepts:
        return "no_see"
    first = percepts[0]
    where = _DISTANCE[distance_word(first.distance_m)]
    slots["seen"] = f"{'a hostile' if first.stance == 'hostile' else 'a'} {first.kind} {where}"
    if len(percepts) > 1 and rng.random() < 0.5:
        slots["seen"] = f"a {first.kind} and a {percepts[1].kind}"
    return topic


def _fitting(lines: tuple[str, ...], slots: dict[str, str]) -> list[str]:
    """The lines, with the optional pieces that need an unknown player's name taken out."""
    all_lines = list(lines)
    if "player" not in slots:
        all_lines = [s.replace("|, <player>", "").replace("|Of course, <player>", "") for s in all_lines]
    assert any(slots_of(s) <= slots.keys() for s in all_lines), f"no line fits: {lines}"
    return all_lines


def _as_typed(rng: Random, line: str, names: bool = False) -> str:
    """A line as players type: sometimes all small letters (never with a name in it), sometimes without the last
    sign."""
    if not names and rng.random() < 0.3:
        line = line.lower()
    return line.rstrip(".?!") if rng.random() < 0.25 else line


_THEMES = {
    "town": "the town", "ruler": "the ruler", "item": "treasure", "event": "the past", "danger": "the dangers", "goods": "the market",
    "barter": "trade", "threat": "a threat", "secret": "secrets", "kin": "family", "fear": "fears", "home": "home", "lost": "lost things",
    "trade": "work", "name": "names", "whoami": "names", "help": "help", "love": "joys", "see": "what is near",
}  # fmt: skip
_SUMMED = (
    "<player> {talked|spoke} with <name> about <themes>.",
    "<player> asked <name> about <themes>.",
    "<name> and <player> spoke about <themes>.",
)


def _summary(rng: Random, npc: Npc, known: Known) -> str:
    """One or two sentences: the speakers, the topic, and the facts that the player told."""
    slots = {"player": known.facts.get("player", "A traveller"), "name": npc.name}
    themes = list(dict.fromkeys(_THEMES[t] for t in known.topics if t in _THEMES))
    slots["themes"] = " and ".join(themes[:2]) or "little"
    parts = [pick(rng, _SUMMED, slots)]
    for kind in list(known.told)[:2]:
        parts.append(memories.note(rng, kind, {**slots, **known.told[kind]}))
    return " ".join(parts)


def summary_found(talk: Talk) -> frozenset[str]:
    """The words of a talk's summary that had to be found in it."""
    return _found(talk.summary, talk.known.facts) | frozenset(
        w for slots in talk.known.told.values() for v in slots.values() if v in talk.summary for w in v.split()
    )

"""Conversations: what a player asks and what an NPC answers, from its persona, its world, its eyes and what was said."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from core.observation import Observation
from daemon.prompt import Layout, Perception, distance_word, health_word
from models.corpus import speech
from models.corpus.intents import make_observation
from models.corpus.spin import pick, slots_of
from models.corpus.worlds import HAPPENINGS, ITEMS, Npc, World, person_name

# How often each topic comes up, and the facts that its answer needs: the persona's, then the world's.
_WEIGHTS: dict[str, int] = {
    "greet": 5, "name": 6, "home": 5, "trade": 5, "kin": 4, "fear": 4, "love": 4, "lost": 4, "town": 4, "ruler": 4, "item": 5,
    "event": 4, "danger": 4, "goods": 3, "barter": 3, "threat": 3, "insult": 2, "praise": 2, "thanks": 2, "bye": 2, "see": 7,
    "hour": 3, "where": 3, "health": 3, "mynameis": 4, "whoami": 5, "help": 3, "odd": 6,
}  # fmt: skip
_PERSONA_TOPICS = frozenset({"name", "home", "trade", "kin", "fear", "love", "lost"})
_LORE_TOPICS = frozenset({"town", "ruler", "item", "event", "danger", "goods"})
_SIGHT_TOPICS = frozenset({"see", "hour", "where", "health"})
_DISTANCE = {"close": "very close", "near": "nearby", "away": "over there", "far": "far away"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what is perceived (None: nothing known), the player's line, the reply; whether it tells of sight."""

    perception: Perception | None
    line: str
    reply: str
    sighted: bool


@dataclass(frozen=True, slots=True)
class Talk:
    """One conversation, with what was remembered before it (texts, empty when there is none)."""

    player: str
    summary: str
    card: str
    digest: str
    turns: tuple[Turn, ...]


def make_talk(rng: Random, layout: Layout, world: World, npc: Npc, turns: int) -> Talk:
    """A conversation of `turns` exchanges about different topics."""
    player = person_name(rng)
    known = rng.random() < 0.25  # the player's name stands on the card from earlier sessions
    named = rng.random() < 0.25  # the game sends the player's name with every line
    summary, card, digest = "", "", ""
    if known:
        card = pick(rng, _CARDS, {"player": player, "item": world.facts.get("item", "gold ring")})
        digest = pick(rng, _DIGESTS, {"player": player}) if rng.random() < 0.6 else ""
        summary = pick(rng, _SUMMARIES, {"player": player, "name": npc.name}) if rng.random() < 0.5 else ""
    facts = dict(npc.facts)
    if known or named:
        facts["player"] = player
    made: list[Turn] = []
    for topic in _topics(rng, turns):
        seen = make_observation(rng) if rng.random() < 0.85 else None
        line, reply = _exchange(rng, layout, world, npc, topic, facts, player, seen)
        sighted = seen is not None and topic in _SIGHT_TOPICS
        made.append(Turn(layout.perceive(seen) if seen else None, line, reply, sighted))
        if topic == "mynameis":
            facts["player"] = player
    return Talk(player if named else "", summary, card, digest, tuple(made))


_CARDS = (
    "<player>{ is a friend| is a stranger| is trusted| is not trusted}{.|. <player> {helped|paid|lied|brought news}.}",
    "{Knows <player>|Met <player> before}. {Friend|Neutral|Wary}{.|. <player> seeks the <item>.}",
)
_DIGESTS = ("<player>, {friend|trusted|stranger|not trusted}", "<player> {helped before|is known|lied once}")
_SUMMARIES = (
    "{<player> came and talked with <name>|<name> spoke with <player>}{| about the town| about old times| about the road}. {They parted as friends|<player> left in haste|Nothing was settled}.",
)  # fmt: skip


def _topics(rng: Random, count: int) -> list[str]:
    """Different topics; a talk that has both asks for the player's name after it was said."""
    left = dict(_WEIGHTS)
    topics: list[str] = []
    while len(topics) < count:
        topic = rng.choices(list(left), list(left.values()))[0]
        del left[topic]
        topics.append(topic)
        if topic == "mynameis" and "whoami" in left and len(topics) < count and rng.random() < 0.5:
            del left["whoami"]
            topics.append("whoami")
    return topics


def _exchange(
    rng: Random,
    layout: Layout,
    world: World,
    npc: Npc,
    topic: str,
    facts: dict[str, str],
    player: str,
    seen: Observation | None,
) -> tuple[str, str]:
    slots = {**facts, **world.facts}
    wanted = _wanted_fact(rng, topic, world)
    asked = pick(rng, speech.PLAYER[topic], {**facts, **wanted, "player": player})
    if wanted and not any(w in asked for w in wanted.values()):
        wanted = {}
    lines = speech.REPLIES[npc.archetype]
    key = topic
    if topic == "mynameis":
        slots["player"] = player
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
    return _as_typed(rng, asked), reply


def _wanted_fact(rng: Random, topic: str, world: World) -> dict[str, str]:
    """What the player asks after by name: mostly what the lore tells, at times something it does not."""
    if topic == "item":
        return {"item": world.facts["item"] if "item" in world.facts and rng.random() < 0.85 else rng.choice(ITEMS)}
    if topic == "event":
        return {
            "event": world.facts["event"] if "event" in world.facts and rng.random() < 0.85 else rng.choice(HAPPENINGS)
        }
    return {}


def _from_sight(rng: Random, layout: Layout, topic: str, seen: Observation | None, slots: dict[str, str]) -> str:
    """Fills the slot for what the eyes tell; answers with the reply's key."""
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


def _as_typed(rng: Random, line: str) -> str:
    """As players type: sometimes all small letters, sometimes without the last sign."""
    if rng.random() < 0.3:
        line = line.lower()
    return line.rstrip(".?!") if rng.random() < 0.25 else line

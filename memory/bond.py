"""A bond: all that one NPC remembers of one player, as a fold over the journal's records.

The same fold runs in the daemon (hot), in front of Redis (recent) and over save files, so they cannot differ. Decides
only: time comes in with the records, or as `now_ms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from core.errors import CallerError
from memory.cards import Quest, Relationship, check, quest_of, relationship_of, to_body
from memory.records import Body, Kind, Record

DAY_MS = 86_400_000
RECENT_MS = 30 * DAY_MS
FACTS_KEPT, FACTS_TOLD = 24, 8
SUMMARIES_KEPT = 4
MOODS_KEPT = 16
EXCHANGES_KEPT = 12  # of the session under way: the hot window of 20 utterances, and retries
FACT_HALF_LIFE_MS = 7 * DAY_MS
MOOD_HALF_LIFE_MS = 3_600_000
# Limits of from_json(): more than a bond ever has.
NAME_LEN_MAX, TEXT_LEN_MAX, LINE_LEN_MAX = 256, 4_096, 65_536


class Fact(NamedTuple):
    """Something worth knowing, as a sentence; importance is 0 to 1."""

    text: str
    importance: float
    at_ms: int


class Summary(NamedTuple):
    """The summary of one session."""

    text: str
    at_ms: int


class Mood(NamedTuple):
    """The NPC's emotion at one time."""

    emotion: str
    at_ms: int


class Exchange(NamedTuple):
    """A player's line and the NPC's reply. `finish` says how the reply was cut off; empty: it is whole."""

    turn_id: str
    line: str
    reply: str
    finish: str = ""


@dataclass(slots=True)
class OpenSession:
    """The conversation under way: its last exchanges, and how many there were."""

    session_id: str
    last_ms: int
    exchanges: list[Exchange] = field(default_factory=list)
    count: int = 0


@dataclass(slots=True)
class Bond:
    """An NPC's memory of a player. `name` is the player's name, empty while it is not known."""

    name: str = ""
    relationship: Relationship | None = None
    quest: Quest | None = None
    facts: list[Fact] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    moods: list[Mood] = field(default_factory=list)
    session: OpenSession | None = None

    @property
    def empty(self) -> bool:
        """True if there is nothing in it."""
        return self == Bond()

    @property
    def last_ms(self) -> int:
        """The time of its newest event; 0 when it is cards alone."""
        times = [x.at_ms for kept in (self.facts, self.summaries, self.moods) for x in kept]
        return max([*times, self.session.last_ms if self.session else 0])


def apply(bond: Bond, record: Record) -> None:
    """Takes one record about this NPC and player in. Records about other things change nothing."""
    body = record.body
    if record.kind is Kind.TURN:
        _turn(bond, record)
    elif record.kind is Kind.ENDED:
        if bond.session is not None and bond.session.session_id == body["session"]:
            bond.session = None
    elif record.kind is Kind.SUMMARY:
        bond.summaries = [*bond.summaries, Summary(body["text"], record.at_ms)][-SUMMARIES_KEPT:]
        _add_facts(bond, body, record.at_ms)
    elif record.kind is Kind.CARD:
        if "relationship" in body:
            bond.relationship = relationship_of(body["relationship"])
        if "quest" in body:
            bond.quest = quest_of(body["quest"])


def within(bond: Bond, now_ms: int, window_ms: int = RECENT_MS) -> Bond:
    """The bond without memories older than the window. Cards stay: they live as long as the NPC is registered."""
    if bond.last_ms and now_ms - bond.last_ms > window_ms:
        return cards_of(bond)
    young = now_ms - window_ms
    return Bond(
        bond.name,
        bond.relationship,
        bond.quest,
        [f for f in bond.facts if f.at_ms >= young],
        [s for s in bond.summaries if s.at_ms >= young],
        [m for m in bond.moods if m.at_ms >= young],
        bond.session,
    )


def cards_of(bond: Bond) -> Bond:
    """The bond's cards alone."""
    return Bond(relationship=bond.relationship, quest=bond.quest)


def without_cards(bond: Bond) -> Bond:
    """The bond without its cards; both share what is in them."""
    return replace(bond, relationship=None, quest=None)


def moved(bond: Bond, by_ms: int) -> Bond:
    """The bond with every time in it later by so much: as old then as it is now."""
    session = bond.session
    return Bond(
        bond.name,
        bond.relationship,
        bond.quest,
        [f._replace(at_ms=f.at_ms + by_ms) for f in bond.facts],
        [s._replace(at_ms=s.at_ms + by_ms) for s in bond.summaries],
        [m._replace(at_ms=m.at_ms + by_ms) for m in bond.moods],
        replace(session, last_ms=session.last_ms + by_ms, exchanges=list(session.exchanges)) if session else None,
    )


def salient(facts: Sequence[Fact], now_ms: int, count: int = FACTS_TOLD) -> list[Fact]:
    """The facts that matter most now: importance, halved with every week of age. The oldest of them first."""
    ranked = sorted(facts, key=lambda f: (_weight(f, now_ms), f.at_ms), reverse=True)
    return sorted(ranked[:count], key=lambda f: f.at_ms)


def mood(moods: Sequence[Mood], now_ms: int) -> str:
    """The NPC's overall feeling about the player; a mood weighs half after an hour. Empty if there is none."""
    weights: dict[str, float] = {}
    for m in moods:
        weights[m.emotion] = weights.get(m.emotion, 0.0) + 0.5 ** (max(0, now_ms - m.at_ms) / MOOD_HALF_LIFE_MS)
    return max(weights, key=lambda e: weights[e], default="")


def to_json(bond: Bond) -> Body:
    """A bond as stores and save files have it; from_json() takes it back."""
    out: dict[str, Any] = {}
    if bond.name:
        out["name"] = bond.name
    if bond.relationship is not None:
        out["relationship"] = to_body(bond.relationship)
    if bond.quest is not None:
        out["quest"] = to_body(bond.quest)
    for name in ("facts", "summaries", "moods"):
        if getattr(bond, name):
            out[name] = [list(x) for x in getattr(bond, name)]
    if bond.session is not None:
        s = bond.session
        exchanges = [list(e if e.finish else e[:3]) for e in s.exchanges]
        out["session"] = [s.session_id, s.last_ms, s.count, exchanges]
    return out


def from_json(said: Body) -> Bond:
    """The bond of to_json(). Raises ValueError when it is none, or larger than one becomes."""
    try:
        bond = Bond(
            _text(said.get("name", ""), NAME_LEN_MAX),
            relationship_of(said.get("relationship")),
            quest_of(said.get("quest")),
            [Fact(_text(t, TEXT_LEN_MAX), _share(i), _time(at)) for t, i, at in _few(said, "facts", FACTS_KEPT)],
            [Summary(_text(t, TEXT_LEN_MAX), _time(at)) for t, at in _few(said, "summaries", SUMMARIES_KEPT)],
            [Mood(_text(e, NAME_LEN_MAX), _time(at)) for e, at in _few(said, "moods", MOODS_KEPT)],
        )
        for name, card in (("relationship", bond.relationship), ("quest", bond.quest)):
            if card is not None:
                check(name, card)
        if "session" in said:
            session_id, last_ms, count, exchanges = said["session"]
            if len(exchanges) > EXCHANGES_KEPT:
                raise ValueError(f"{len(exchanges)} exchanges, at most {EXCHANGES_KEPT}")
            newest = [Exchange(*(_text(part, LINE_LEN_MAX) for part in e)) for e in exchanges]
            bond.session = OpenSession(_text(session_id, NAME_LEN_MAX), _time(last_ms), newest, _time(count))
    except (AttributeError, KeyError, TypeError, CallerError) as error:
        raise ValueError(f"not a bond: {error}") from error
    return bond


def _few(said: Body, name: str, most: int) -> list[Any]:
    values = said.get(name, [])
    if not isinstance(values, list) or len(values) > most:
        raise ValueError(f"{name}: must be a list of {most} at most")
    return values


def _text(value: object, len_max: int) -> str:
    if not isinstance(value, str) or len(value) > len_max:
        raise ValueError(f"must be a text of {len_max} characters at most")
    return value


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("must be 0 to 1")
    return value


def _time(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise ValueError("must be a whole number that fits")
    return value


def _turn(bond: Bond, record: Record) -> None:
    body = record.body
    session = bond.session
    if session is None or session.session_id != body["session"]:
        session = bond.session = OpenSession(body["session"], record.at_ms)
    session.last_ms = record.at_ms
    said = Exchange(body.get("turn_id", ""), body["line"], body["reply"], body.get("finish", ""))
    before = session.exchanges[-1] if session.exchanges else None
    if before is not None and before.finish and before.turn_id and before.turn_id == said.turn_id:
        session.exchanges[-1] = said  # the retry of a turn that was cut off takes its place
    else:
        session.count += 1
        session.exchanges.append(said)
    del session.exchanges[:-EXCHANGES_KEPT]
    bond.name = body.get("name") or bond.name
    if body.get("emotion"):
        bond.moods = [*bond.moods, Mood(body["emotion"], record.at_ms)][-MOODS_KEPT:]
    _add_facts(bond, body, record.at_ms)


def _add_facts(bond: Bond, body: Body, at_ms: int) -> None:
    """A fact that is said again has its newest time, and never less importance."""
    for text, importance in body.get("facts", ()):
        same = next((f for f in bond.facts if f.text.casefold() == text.casefold()), None)
        if same is not None:
            bond.facts.remove(same)
            importance = max(importance, same.importance)
        bond.facts.append(Fact(text, importance, at_ms))
    if len(bond.facts) > FACTS_KEPT:
        bond.facts = salient(bond.facts, at_ms, FACTS_KEPT)


def _weight(fact: Fact, now_ms: int) -> float:
    return float(fact.importance * 0.5 ** (max(0, now_ms - fact.at_ms) / FACT_HALF_LIFE_MS))

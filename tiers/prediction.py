"""Predicts an NPC's observations a few seconds ahead: positions by velocity, and simple events.

A percept gives a distance, no position; its last half second gives the speed at which it comes closer. Predictions
follow from the present alone: distances pass an edge, two percepts change places, something leaves hearing, health
falls past an edge, an event is no longer mentioned, the day goes on. New percepts, new events and changes of mind are
not predicted.

Predicted are *states* as the model distinguishes them. Each comes as an observation that has it, at the first moment
at which the game is likely to send it, so that the model can be asked about it like about any other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, sqrt

from core.observation import Observation, Percept

# Kinds of change that lead to another state; the sooner one is, the likelier it comes true. (chance at once, and the
# share of it that is left after a second), as measured on the demo's village; tiers/foresight.py learns better ones.
CHANCES = {
    "nearer": (0.6, 0.5),
    "farther": (0.5, 0.5),
    "order": (0.6, 0.5),
    "leaves": (0.5, 0.5),
    "health": (0.5, 0.7),
    "calm": (0.75, 0.9),
    "day": (0.8, 0.95),
}
LATER = " later"  # a state after a predicted state: chances multiply

SAMPLE_EVERY_MS = 180
SAMPLES = 6  # the last second
SLOPE_MS = 350  # the shortest time over which a speed is measured
GAP_MAX_MS = 2_000  # an NPC that was not observed for longer has no speeds
SPEED_MIN_MPS = 0.1  # slower is standing still
SPEED_MAX_MPS = 20.0  # faster is a teleport
TURN_MPS = 0.5  # after a larger change of its own speed an NPC measures the others anew
JUMP_M = 2.0  # a larger step is a correction of a position
PAST_S = 0.02  # an edge is passed when it is behind by that much
OBSERVED_EVERY_MS_MIN = 50
BEYOND = 3  # so many percepts after the notable ones may become notable
SIGHT_GAP_M = 1.0  # between the farthest in sight and the nearest that is not
RIM, RIM_MIN = 0.95, 200  # the farthest percept is the reach, once so many percepts were within this share of it
WORDS_MAX = 256


# Of a straight walk the squared distance is a parabola in time: d² + slope t + curve t².
Course = tuple[float, float]
Moment = tuple[float, str]  # in how many seconds what happens
STILL: Course = (0.0, 0.0)
CURVE_S = 0.3
BENT_MAX = 36.0


@dataclass(frozen=True, slots=True)
class Edges:
    """Where words change: distances in metres and health, rising; how many percepts and events a state has at most.

    `ordered`: which percept is nearer is part of a state also where their words are the same.
    """

    distances_m: tuple[float, ...]
    health: tuple[float, ...]
    percepts: int = 5
    events: int = 2
    ordered: bool = True


@dataclass(frozen=True, slots=True)
class PredictionSettings:
    """Look-ahead: on time to spare npcd asks the model about states that NPCs will probably be in soon, so that the
    answer is there when one comes true.
    """

    on: bool = False
    """Turns look-ahead on."""
    horizon_s: float = 4.0
    """How far ahead npcd looks, in seconds of the game's clock."""
    states_max: int = 2
    """States that one look predicts at most."""
    per_npc_max: int = 8
    """Predicted states of one NPC that are kept at the same time."""
    ttl_s: float = 8.0
    """A predicted state is kept for this time."""
    wasted_max: float = 0.5
    """Share of the tokens spent on predictions that may be wasted; npcd predicts less when more is wasted."""
    close_m: float = 4.0
    """A player within this distance is expected to speak, so first words are made ready."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A state that is likely to come: an observation that has it, in how much game time, how likely (0..1), and why."""

    observation: Observation
    in_ms: int
    chance: float
    kind: str


@dataclass(slots=True)
class Habits:
    """The habits of one world, learned from observations: how long events are mentioned, how the day goes, how far NPCs
    see and notice. All NPCs of a world share one.
    """

    event_ms: dict[str, float] = field(default_factory=dict)
    day: dict[str, tuple[str, int]] = field(default_factory=dict)  # word: the next one, and how long this one lasts
    day_word: str = ""
    day_since_ms: int = -1  # -1: it had begun before the first observation
    noticed_m: float = 0.0  # the farthest that anything was noticed,
    noticed_there: int = 0  # and how much was noticed nearly as far away
    seen_m: float = 0.0  # the farthest that anything was in sight,
    heard_m: float = inf  # and the nearest that it was not

    def mentioned(self, event: str, for_ms: int) -> None:
        """An event is no longer mentioned."""
        before = self.event_ms.get(event)
        if before is not None:
            # It is mentioned for longer when it happens again meanwhile.
            self.event_ms[event] = before + (0.05 if for_ms > before else 0.3) * (for_ms - before)
        elif len(self.event_ms) < WORDS_MAX:
            self.event_ms[event] = for_ms

    def daytime(self, word: str, at_ms: int) -> None:
        """The time of day is another one."""
        lasted_ms = at_ms - self.day_since_ms
        if self.day_since_ms >= 0:
            if -GAP_MAX_MS < lasted_ms < GAP_MAX_MS:
                return  # NPCs are told of it at different moments
            if lasted_ms > 0 and (len(self.day) < WORDS_MAX or self.day_word in self.day):
                self.day[self.day_word] = (word, lasted_ms)
        self.day_since_ms = at_ms if self.day_word else -1
        self.day_word = word

    @property
    def sight_m(self) -> float:
        """How far NPCs see, if that depends on nothing but the distance; else 0."""
        return (self.seen_m + self.heard_m) / 2 if 0.0 < self.heard_m - self.seen_m < SIGHT_GAP_M else 0.0

    @property
    def reach_m(self) -> float:
        """How far NPCs notice anything; infinite until it is known."""
        return self.noticed_m if self.noticed_there >= RIM_MIN else inf


class Motion:
    """One NPC's last second: a few of its observations, and what is mentioned since when. Give it every observation."""

    __slots__ = ("_events", "_habits", "_samples", "at_ms", "every_ms")

    def __init__(self, habits: Habits | None = None) -> None:
        self.at_ms = -1
        self.every_ms = 0  # between the last two observations
        self._habits = Habits() if habits is None else habits
        self._samples: list[tuple[int, Observation]] = []  # newest first
        self._events: dict[str, int] = {}

    def saw(self, seen: Observation, at_ms: int | None = None) -> None:
        """Takes in what the NPC sees now; `at_ms` is the game time, where the observation does not say it."""
        if at_ms is None:
            at_ms = seen.game_time_ms or seen.at_ns // 1_000_000
        passed_ms = at_ms - self.at_ms
        if not 0 < passed_ms <= GAP_MAX_MS:
            if passed_ms == 0:
                return
            self._samples.clear()
            self._events.clear()
            passed_ms = 0
        self.at_ms, self.every_ms = at_ms, passed_ms
        if seen.time_of_day != self._habits.day_word:
            self._habits.daytime(seen.time_of_day, at_ms)
        if self._events or seen.events:
            self._note_events(seen.events, at_ms)
        if self._samples:
            before_ms, before = self._samples[0]
            if _jumped(before, seen, at_ms - before_ms):
                self._samples.clear()
            elif at_ms - before_ms < SAMPLE_EVERY_MS and not _turned(before, seen):
                return
        self._note_reach(seen.percepts)
        self._samples.insert(0, (at_ms, seen))
        del self._samples[SAMPLES:]

    def _note_events(self, events: Sequence[str], at_ms: int) -> None:
        since = self._events
        for event in events:
            since.setdefault(event, at_ms)
        for event in [event for event in since if event not in events]:
            self._habits.mentioned(event, at_ms - since.pop(event))

    def _note_reach(self, percepts: Sequence[Percept]) -> None:
        habits = self._habits
        for percept in percepts:
            distance_m = percept.distance_m
            if distance_m > RIM * habits.noticed_m:
                if distance_m * RIM > habits.noticed_m:
                    habits.noticed_there = 0
                habits.noticed_there += 1
                habits.noticed_m = max(habits.noticed_m, distance_m)
            if percept.in_sight:
                if distance_m > habits.seen_m:
                    habits.seen_m = distance_m
            elif distance_m < habits.heard_m:
                habits.heard_m = distance_m

    def courses(self, seen: Observation, percepts: Sequence[Percept]) -> list[Course | None]:
        """How each of these moves, relative to the NPC; None for what stands still, is new or was not watched."""
        now_ms, middle, last = self.at_ms, None, None
        for sample in self._samples:
            if _turned(sample[1], seen):
                break
            if sample[0] < now_ms:
                last = sample
                if middle is None or now_ms - middle[0] < SLOPE_MS:
                    middle = sample
        if middle is None or last is None:
            return [None] * len(percepts)
        middle_s, last_s = (now_ms - middle[0]) / 1000, (now_ms - last[0]) / 1000
        middle_m = {p.entity_id: p.distance_m for p in middle[1].percepts}
        last_m: dict[str, float] | None = None
        courses: list[Course | None] = []
        for percept in percepts:
            now_m = percept.distance_m
            before_m = middle_m.get(percept.entity_id, now_m)
            speed_mps = (now_m - before_m) / middle_s
            if not SPEED_MIN_MPS < abs(speed_mps) < SPEED_MAX_MPS:
                courses.append(None)
                continue
            slope, curve = 2.0 * now_m * speed_mps, speed_mps * speed_mps
            if last_s - middle_s > CURVE_S:
                if last_m is None:
                    last_m = {p.entity_id: p.distance_m for p in last[1].percepts}
                far_m = last_m.get(percept.entity_id)
                if far_m is not None:
                    one = (now_m * now_m - before_m * before_m) / middle_s
                    two = (now_m * now_m - far_m * far_m) / last_s
                    bent = (one - two) / (last_s - middle_s)
                    # As straight as towards the NPC at least, and no faster than bodies are.
                    if curve < bent < BENT_MAX:
                        slope, curve = one + bent * middle_s, bent
            courses.append((slope, curve) if abs(slope) > 1e-6 else None)
        return courses

    def health_slope(self, seen: Observation) -> float:
        """How fast health changes, in shares a second."""
        if not self._samples:
            return 0.0
        since_ms, before = self._samples[-1]
        passed_ms = self.at_ms - since_ms
        return (seen.health - before.health) * 1000 / passed_ms if passed_ms > 0 else 0.0

    def events_left_ms(self, events: Sequence[str]) -> list[int | None]:
        """For how long each of these will still be mentioned, as far as that is known."""
        return [
            None if event not in self._habits.event_ms or event not in self._events
            else max(0, round(self._habits.event_ms[event]) - (self.at_ms - self._events[event]))
            for event in events
        ]  # fmt: skip

    def day_left(self, word: str) -> tuple[str, int] | None:
        """The time of day that follows this one, and in how many milliseconds, if that is known."""
        habits = self._habits
        if word != habits.day_word or word not in habits.day or habits.day_since_ms < 0:
            return None
        after, lasts_ms = habits.day[word]
        left_ms = habits.day_since_ms + lasts_ms - self.at_ms
        return (after, left_ms) if left_ms >= 0 else None

    @property
    def reach_m(self) -> tuple[float, float]:
        """How far NPCs of this world notice anything, and how far they see (0: that depends on more)."""
        return self._habits.reach_m, self._habits.sight_m


def expected(motion: Motion, seen: Observation, edges: Edges, settings: PredictionSettings) -> list[Expected]:
    """The next states that differ from the present one, likeliest first. `seen` is what the motion saw last."""
    horizon_s, count = settings.horizon_s, edges.percepts
    ranked = sorted(seen.percepts, key=_rank)[: count + BEYOND]
    courses = motion.courses(seen, ranked)
    health_slope = motion.health_slope(seen)
    noticed_m, sight_m = motion.reach_m
    events_left_ms = motion.events_left_ms(seen.events)
    day = motion.day_left(seen.time_of_day)

    moments = _crossings(ranked[:count], courses, edges.distances_m, noticed_m, sight_m)
    moments += _swaps(ranked, courses, 0 if edges.ordered else count - 1, count)
    moments += [(left_ms / 1000, "calm") for left_ms in events_left_ms[: edges.events] if left_ms is not None]
    if day is not None:
        moments.append((day[1] / 1000, "day"))
    if health_slope:
        moments += [((edge - seen.health) / health_slope, "health") for edge in edges.health]
    moments = sorted(m for m in moments if 0.0 <= m[0] <= horizon_s)

    found: list[Expected] = []
    known = {_state(seen, ranked, edges)} if moments else set()
    # A state between two observations is never seen.
    every_s = max(motion.every_ms, OBSERVED_EVERY_MS_MIN) / 1000
    then_s = 0.0
    for in_s, kind in moments:
        if in_s + PAST_S <= then_s:
            continue
        then_s = (int((in_s + PAST_S) / every_s) + 1) * every_s
        then_ms = round(then_s * 1000)
        percepts = _moved(ranked, courses, then_s, noticed_m, sight_m)
        then = Observation(
            tick=seen.tick,
            percepts=tuple(percepts),
            events=tuple(e for e, ms in zip(seen.events, events_left_ms, strict=True) if ms is None or ms > then_ms),
            time_of_day=day[0] if day is not None and day[1] <= then_ms else seen.time_of_day,
            place=seen.place,
            health=min(1.0, max(0.0, seen.health + health_slope * then_s)),
            position_m=seen.position_m,
            velocity_mps=seen.velocity_mps,
            game_time_ms=seen.game_time_ms + then_ms,
            at_ns=seen.at_ns,
            override=seen.override,
        )
        state = _state(then, percepts, edges)
        if state in known:
            continue
        known.add(state)
        at_once, after_a_second = CHANCES[kind]
        chance = at_once * after_a_second**in_s
        if found:
            kind, chance = kind + LATER, chance * found[-1].chance
        found.append(Expected(then, round(in_s * 1000), chance, kind))
        if len(found) == settings.states_max:
            break
    found.sort(key=lambda e: -e.chance)
    return found


def approaches(motion: Motion, seen: Observation, player: str, settings: PredictionSettings) -> int | None:
    """In how many milliseconds this player will be close, if they walk up to the NPC within the horizon; else None."""
    for percept in seen.percepts:
        if percept.entity_id == player and percept.distance_m > settings.close_m:
            (course,) = motion.courses(seen, (percept,))
            if course is not None and course[0] < 0.0:
                in_s = _reaches(percept.distance_m, course, settings.close_m)
                return round(in_s * 1000) if in_s <= settings.horizon_s else None
            return None
    return None


def _crossings(
    ranked: Sequence[Percept],
    courses: Sequence[Course | None],
    edges_m: Sequence[float],
    noticed_m: float,
    sight_m: float,
) -> list[Moment]:
    """When each of these passes the next edge on its way, goes in or out of sight, or leaves."""
    moments: list[Moment] = []
    for percept, course in zip(ranked, courses, strict=False):
        if course is None:
            continue
        distance_m = percept.distance_m
        nearer = course[0] < 0.0
        kind = "nearer" if nearer else "farther"
        at = bisect_right(edges_m, distance_m)
        if at > 0 if nearer else at < len(edges_m):
            moments.append((_reaches(distance_m, course, edges_m[at - 1 if nearer else at]), kind))
        if sight_m and percept.in_sight != nearer:
            moments.append((_reaches(distance_m, course, sight_m), kind))
        if not nearer and noticed_m < inf:
            moments.append((_reaches(distance_m, course, noticed_m), "leaves"))
    return moments


def _reaches(distance_m: float, course: Course, edge_m: float) -> float:
    """In how many seconds it is at a distance that lies on its way; infinite if it turns away before."""
    slope, curve = course
    gap = distance_m * distance_m - edge_m * edge_m
    under = slope * slope - 4.0 * curve * gap
    if under < 0.0:
        return inf
    return 2.0 * gap / (sqrt(under) - slope if slope < 0.0 else -sqrt(under) - slope)


def _swaps(ranked: Sequence[Percept], courses: Sequence[Course | None], first: int, count: int) -> list[Moment]:
    """When neighbours in the order of percepts change places, from the first-th to the first that is not notable."""
    moments: list[Moment] = []
    for i in range(first, min(count, len(ranked) - 1)):
        one, two = courses[i], courses[i + 1]
        if one is two:
            continue  # both stand still
        near, far = ranked[i], ranked[i + 1]
        if near.in_sight != far.in_sight or (near.stance == "hostile") != (far.stance == "hostile"):
            continue
        slope, curve = one or STILL
        slope2, curve2 = two or STILL
        slope, curve = slope2 - slope, curve2 - curve
        if slope >= 0.0 and curve >= 0.0:
            continue
        gap = far.distance_m * far.distance_m - near.distance_m * near.distance_m
        under = slope * slope - 4.0 * curve * gap
        if under >= 0.0 and (divisor := sqrt(under) - slope) > 0.0:
            moments.append((2.0 * gap / divisor, "order"))
    return moments


def _moved(
    ranked: Sequence[Percept], courses: Sequence[Course | None], in_s: float, noticed_m: float, sight_m: float
) -> list[Percept]:
    """The percepts where they will be, most notable first."""
    moved = []
    for percept, course in zip(ranked, courses, strict=True):
        if course is not None:
            slope, curve = course
            squared = percept.distance_m * percept.distance_m + (slope + curve * in_s) * in_s
            distance_m = sqrt(squared) if squared > 0.0 else 0.0
            if slope > 0.0 and distance_m > noticed_m:
                continue
            in_sight = distance_m <= sight_m if sight_m else percept.in_sight
            moved.append(Percept(percept.entity_id, percept.kind, percept.stance, distance_m, in_sight))
        else:
            moved.append(percept)
    moved.sort(key=_rank)
    return moved


def _jumped(before: Observation, seen: Observation, passed_ms: int) -> bool:
    (ax, ay, az), (bx, by, bz) = before.position_m, seen.position_m
    return abs(ax - bx) + abs(ay - by) + abs(az - bz) > JUMP_M + SPEED_MAX_MPS * passed_ms / 1000


def _turned(before: Observation, seen: Observation) -> bool:
    (ax, ay, az), (bx, by, bz) = before.velocity_mps, seen.velocity_mps
    return abs(ax - bx) + abs(ay - by) + abs(az - bz) > TURN_MPS


def _rank(p: Percept) -> tuple[bool, bool, float, str]:
    """As prompts/layout.py: hostile, in sight, nearest first."""
    return (p.stance != "hostile", not p.in_sight, p.distance_m, p.entity_id)


def _state(seen: Observation, ranked: Sequence[Percept], edges: Edges) -> tuple[object, ...]:
    """The parts of an observation that distinguish states of one NPC, as long as nothing unexpected happens."""
    kept = [(p.entity_id, p.in_sight, bisect_right(edges.distances_m, p.distance_m)) for p in ranked[: edges.percepts]]
    return (
        seen.time_of_day,
        bisect_right(edges.health, seen.health),
        seen.events[: edges.events],
        tuple(kept) if edges.ordered else frozenset(kept),
    )

"""What an NPC will probably see a few seconds from now: positions by velocity, and simple events.

A percept says how far away it is, not where; how fast it comes closer is read off its last half second. Only what
follows from the present is expected: distances pass an edge, two percepts change places, something leaves hearing,
health falls past an edge, an event is no longer mentioned, the day goes on. New percepts, new events and changes of
mind are not guessed.

Expected are *states* as the model tells them apart. Each comes as an observation that has it, at the first moment the
game is likely to tell it, so that it can be asked about like any other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, sqrt

from core.observation import Observation, Percept

# What makes the next state another one; the sooner it is, the likelier it comes true. (chance at once, and how much of
# it is left after a second), as measured on the demo's village; who keeps books learns better ones.
CHANCES = {
    "nearer": (0.6, 0.5),
    "farther": (0.5, 0.5),
    "order": (0.6, 0.5),
    "leaves": (0.5, 0.5),
    "health": (0.5, 0.7),
    "calm": (0.75, 0.9),
    "day": (0.8, 0.95),
}
LATER = " later"  # what follows upon an expected state: chances multiply

SAMPLE_EVERY_MS = 180
SAMPLES = 6  # the last second
SLOPE_MS = 350  # over how long a speed is measured, at least
GAP_MAX_MS = 2_000  # who was not observed for longer has no speeds
SPEED_MIN_MPS = 0.1  # slower is standing still
SPEED_MAX_MPS = 20.0  # faster is a teleport
TURN_MPS = 0.5  # whose own speed changed by more has to see anew how the others move
JUMP_M = 2.0  # a body that is set straight
PAST_S = 0.02  # an edge is passed when it is behind by that much
OBSERVED_EVERY_MS_MIN = 50
BEYOND = 3  # so many percepts after the notable ones may come to be among them
SIGHT_GAP_M = 1.0  # between the farthest in sight and the nearest that is not
RIM, RIM_MIN = 0.95, 20  # so much was noticed within that share of the farthest, until that counts as the reach
WORDS_MAX = 256


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
    """`horizon_s`: how far ahead is looked. `states_max` of one look; `per_npc_max` kept at once, each for `ttl_s`.

    What is offered wastes at most a share of `wasted_max` of its tokens. A player within `close_m` may speak.
    """

    on: bool = True
    horizon_s: float = 4.0
    states_max: int = 2
    per_npc_max: int = 8
    ttl_s: float = 8.0
    wasted_max: float = 0.5
    close_m: float = 4.0


@dataclass(frozen=True, slots=True)
class Expected:
    """A state that is likely to come: an observation that has it, in how much game time, how likely (0..1), and why."""

    observation: Observation
    in_ms: int
    chance: float
    kind: str


@dataclass(slots=True)
class Habits:
    """What one world does again and again, learned as it is seen: how long events are mentioned, how the day goes, how
    far NPCs see and notice. All NPCs of a world share one.
    """

    event_ms: dict[str, float] = field(default_factory=dict)
    day: dict[str, tuple[str, int]] = field(default_factory=dict)  # word: the next one, and how long this one lasts
    day_word: str = ""
    day_since_ms: int = -1  # -1: it had begun before anybody looked
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
                return  # not everybody hears of it at once
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

    def saw(self, seen: Observation) -> None:
        """Takes in what the NPC sees now."""
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

    def speeds(self, seen: Observation, percepts: Sequence[Percept]) -> list[float]:
        """How fast each of these goes away, in metres a second; 0 for what stands still or is new."""
        passed_ms, before = 0, None
        for since_ms, sample in self._samples:
            if _turned(sample, seen):
                break
            if since_ms < self.at_ms:
                passed_ms, before = self.at_ms - since_ms, sample
                if passed_ms >= SLOPE_MS:
                    break
        if before is None:
            return [0.0] * len(percepts)
        was = {p.entity_id: p.distance_m for p in before.percepts}
        speeds = []
        for percept in percepts:
            speed_mps = (percept.distance_m - was.get(percept.entity_id, percept.distance_m)) * 1000 / passed_ms
            speeds.append(speed_mps if SPEED_MIN_MPS < abs(speed_mps) < SPEED_MAX_MPS else 0.0)
        return speeds

    def distances(self, entity_id: str) -> list[tuple[float, float]]:
        """(seconds from now, metres) of one percept over the last second before now, newest first, up to a gap."""
        points = []
        for at_ms, sample in self._samples:
            if at_ms == self.at_ms:
                continue
            distance_m = next((p.distance_m for p in sample.percepts if p.entity_id == entity_id), None)
            if distance_m is None:
                break
            points.append(((at_ms - self.at_ms) / 1000, distance_m))
        return points

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
    speeds = motion.speeds(seen, ranked)
    health_slope = motion.health_slope(seen)
    noticed_m, sight_m = motion.reach_m
    events_left_ms = motion.events_left_ms(seen.events)
    day = motion.day_left(seen.time_of_day)

    moments = _crossings(ranked[:count], speeds, edges.distances_m, noticed_m, sight_m)
    moments += _swaps(ranked, speeds, 0 if edges.ordered else count - 1, count)
    moments += [(left_ms / 1000, "calm") for left_ms in events_left_ms[: edges.events] if left_ms is not None]
    if day is not None:
        moments.append((day[1] / 1000, "day"))
    if health_slope:
        moments += [((edge - seen.health) / health_slope, "health") for edge in edges.health]
    moments = sorted(m for m in moments if 0.0 <= m[0] <= horizon_s)

    found: list[Expected] = []
    known = {_state(seen, ranked, edges)} if moments else set()
    # What is between two observations nobody sees.
    every_s = max(motion.every_ms, OBSERVED_EVERY_MS_MIN) / 1000
    then_s = 0.0
    for in_s, kind in moments:
        if in_s + PAST_S <= then_s:
            continue
        then_s = (int((in_s + PAST_S) / every_s) + 1) * every_s
        then_ms = round(then_s * 1000)
        percepts = _moved(ranked, speeds, then_s, noticed_m, sight_m)
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
    """In how many milliseconds this player will be close, if they walk up to the NPC; None if not within the horizon.

    Of a straight walk the squared distance is a parabola in time; three distances give it, and its lowest point tells
    who walks up from who walks past.
    """
    now_m = next((p.distance_m for p in seen.percepts if p.entity_id == player), None)
    if now_m is None or now_m <= settings.close_m:
        return None
    points = motion.distances(player)
    if len(points) < 2:
        return None
    # d² + b t + a t², with now at t = 0; the two moments lie before it.
    (t1, mid), (t2, far), near = points[len(points) // 2 - 1], points[-1], now_m
    slope1, slope2 = (mid * mid - near * near) / t1, (far * far - near * near) / t2
    a = (slope1 - slope2) / (t1 - t2)
    b = slope1 - a * t1
    if b >= 0.0:
        return None
    a = max(a, 0.0)
    close = settings.close_m * settings.close_m
    gap = near * near - close
    if a < 1e-9:
        in_s = gap / -b
    else:
        under = b * b - 4 * a * gap
        if under < 0.0:
            return None  # past the NPC, not to it
        in_s = 2 * gap / (-b + sqrt(under))
    return round(in_s * 1000) if in_s <= settings.horizon_s else None


Moment = tuple[float, str]


def _crossings(
    ranked: Sequence[Percept], speeds: Sequence[float], edges_m: Sequence[float], noticed_m: float, sight_m: float
) -> list[Moment]:
    """When each of these passes the next edge on its way, or leaves."""
    moments: list[Moment] = []
    for percept, speed in zip(ranked, speeds, strict=False):
        if speed == 0.0:
            continue
        distance_m = percept.distance_m
        for edge_m in (*edges_m, sight_m):
            moments.append(((edge_m - distance_m) / speed, "nearer" if speed < 0 else "farther"))
        if speed > 0:
            moments.append(((noticed_m - distance_m) / speed, "leaves"))
    return moments


def _swaps(ranked: Sequence[Percept], speeds: Sequence[float], first: int, count: int) -> list[Moment]:
    """When neighbours in the order of percepts change places, from the first-th to the first that is not notable."""
    moments: list[Moment] = []
    for i, (a, b) in enumerate(pairwise(ranked[: count + 1])):
        closing = speeds[i] - speeds[i + 1]
        if (
            i >= first
            and closing > 0
            and a.in_sight == b.in_sight
            and (a.stance == "hostile") == (b.stance == "hostile")
        ):
            moments.append(((b.distance_m - a.distance_m) / closing, "order"))
    return moments


def _moved(
    ranked: Sequence[Percept], speeds: Sequence[float], in_s: float, noticed_m: float, sight_m: float
) -> list[Percept]:
    """The percepts where they will be, most notable first."""
    moved = []
    for percept, speed in zip(ranked, speeds, strict=True):
        if speed:
            distance_m = max(0.0, percept.distance_m + speed * in_s)
            if speed > 0 and distance_m > noticed_m:
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
    """As daemon/prompt.py: hostile, in sight, nearest first."""
    return (p.stance != "hostile", not p.in_sight, p.distance_m, p.entity_id)


def _state(seen: Observation, ranked: Sequence[Percept], edges: Edges) -> tuple[object, ...]:
    """What of an observation tells states of one NPC apart, for as long as nothing unexpected happens."""
    kept = [(p.entity_id, p.in_sight, bisect_right(edges.distances_m, p.distance_m)) for p in ranked[: edges.percepts]]
    return (
        seen.time_of_day,
        bisect_right(edges.health, seen.health),
        seen.events[: edges.events],
        tuple(kept) if edges.ordered else frozenset(kept),
    )

"""A crowd for loads: the sights of hundreds of NPCs while players walk among them, made before the run. Decides only.

Every NPC moves about near its home: it stands for a while, walks a few steps, stands again. Players walk from place to
place and stop at each. Nothing depends on npcd's answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from loadtests.recording import Recording, Sight, percept_bytes
from loadtests.scene import CrowdPlan, Point, Resident, Scene
from loadtests.slots import distance_word
from npcd_client.v1 import intents_pb2

STANDS_S = (6.0, 20.0)
WALKS_MPS = 1.2
STRAYS_M = 6.0  # farthest from its spot
LIVES_WITHIN_M = 14.0  # farthest from the place's middle
STOPS_S = 12.0  # a player's stop at each place
PLAYER_SEEN_M = 80.0  # a player is noticed within this distance, and in sight within the next one
PLAYER_SIGHT_M = 40.0
NOISE_EVERY_S = 2.0
NOISE_LASTS_S = 1.5
NOTABLE = 5  # percepts that reach the model at most, and the state

Floats = NDArray[np.float64]
Row = tuple[int, int, float, bool]  # entity, stance, metres, in sight
DISTANCE_EDGES_M = (2.0, 8.0, 20.0)
PERCEPT_STANCES = ("", "friendly", "neutral", "hostile")
_HOSTILE = PERCEPT_STANCES.index("hostile")


def record_crowd(
    scene: Scene, residents: Sequence[Resident], plan: CrowdPlan, seconds: float, rate_hz: float, seed: int
) -> Recording:
    """A crowd's recording, the same for the same seed."""
    return _Crowd(scene, residents, plan, seconds, rate_hz, seed).record()


class _Crowd:
    """The positions of all NPCs and players while the recording is made."""

    def __init__(
        self, scene: Scene, residents: Sequence[Resident], plan: CrowdPlan, seconds: float, rate_hz: float, seed: int
    ) -> None:
        self._residents = tuple(residents)
        self._scene = scene
        self._times = plan.times
        self._rate_hz = rate_hz
        self._rounds = math.ceil(seconds * rate_hz)
        self._chance = np.random.default_rng(seed)
        places = {name: (x * plan.spread, y * plan.spread) for name, (x, y) in scene.places.items()}
        self._place_names = list(places)
        self._places = np.array(list(places.values()))
        self._homes = np.array([places[r.home] for r in residents])
        self._things = np.array([_moved(t.at_m, scene, plan.spread) for t in scene.things]).reshape(-1, 2)
        self._entities = [(r.npc_id, r.archetype_id) for r in residents]
        self._entities += [(t.entity_id, t.kind) for t in scene.things]
        self._entities += [(player_id(n), "player") for n in range(plan.players)]
        ids = [entity_id for entity_id, _ in self._entities]
        self._ranks = np.argsort(np.argsort(np.array(ids)))  # of equally near ones the lower id comes first
        self._stances = self._all_stances()
        self._walks = [self._walk(n) for n in range(plan.players)]
        self._every = max(1, round(plan.change_every_s * rate_hz))
        self._percepts: dict[tuple[int, int, float, bool], bytes] = {}

    # -- how everybody moves ---------------------------------------------------------------------------------------

    def record(self) -> Recording:
        """Runs the time and records."""
        count, chance = len(self._residents), self._chance
        spots = self._homes + _around(chance, count, LIVES_WITHIN_M)
        at, goals = spots.copy(), spots.copy()
        until_s = chance.uniform(0, STANDS_S[1], count)
        dt_s = 1 / self._rate_hz
        senses = [_Senses(self._every) for _ in range(count)]
        noises: dict[int, float] = {}
        made = []
        for round_ in range(self._rounds):
            now_s = round_ * dt_s
            ahead = goals - at
            left_m = np.hypot(ahead[:, 0], ahead[:, 1])
            walking = (now_s >= until_s) & (left_m > 1e-6)
            step = np.where(walking, np.minimum(1.0, WALKS_MPS * dt_s / np.maximum(left_m, 1e-9)), 0.0)[:, None] * ahead
            at = at + step
            there = (now_s >= until_s) & (left_m <= WALKS_MPS * dt_s)
            until_s[there] = now_s + chance.uniform(*STANDS_S, int(there.sum()))
            goals[there] = spots[there] + _around(chance, int(there.sum()), STRAYS_M)
            if round_ % max(1, round(NOISE_EVERY_S * self._rate_hz)) == 0:
                noises[int(chance.integers(count))] = now_s + NOISE_LASTS_S
            made.append(
                self._round(round_, at, step / dt_s, senses, {n for n, end_s in noises.items() if end_s > now_s})
            )
        return Recording(self._residents, made, self._rate_hz)

    def _walk(self, number: int) -> list[tuple[float, Point]]:
        """A player's way through all places in a random order, for the whole run: (until when, where to)."""
        order = self._chance.permutation(len(self._places))
        here = self._places[order[0]]
        walk, now_s, stop = [(STOPS_S, (float(here[0]), float(here[1])))], STOPS_S, 0
        while now_s < self._rounds / self._rate_hz:
            stop += 1
            there = self._places[order[stop % len(order)]]
            now_s += math.dist(here, there) / self._scene.player.speed_mps
            walk.append((now_s, (float(there[0]), float(there[1]))))
            now_s += STOPS_S
            walk.append((now_s, (float(there[0]), float(there[1]))))
            here = there
        return walk

    def _players_at(self, now_s: float) -> Floats:
        at = []
        for walk in self._walks:
            leg = next((i for i, (until_s, _) in enumerate(walk) if now_s < until_s), len(walk) - 1)
            end_s, (x, y) = walk[leg]
            begin_s, (from_x, from_y) = walk[leg - 1] if leg else (0.0, (x, y))
            part = min(1.0, (now_s - begin_s) / max(1e-9, end_s - begin_s))
            at.append((from_x + (x - from_x) * part, from_y + (y - from_y) * part))
        return np.array(at).reshape(-1, 2)

    # -- what they see ---------------------------------------------------------------------------------------------

    def _all_stances(self) -> NDArray[np.int64]:
        """Each NPC's stance towards each entity, as an index of PERCEPT_STANCES."""
        kinds = [kind for _, kind in self._entities]
        first, last = len(self._residents), len(self._residents) + len(self._things)
        rows: dict[str, list[int]] = {}
        for archetype, given in self._scene.stances.items():
            rows[archetype] = [
                0 if first <= n < last else PERCEPT_STANCES.index(given.get(kind, "neutral"))
                for n, kind in enumerate(kinds)
            ]
        return np.array([rows[r.archetype_id] for r in self._residents])

    def _round(self, round_: int, at: Floats, speed: Floats, senses: list[_Senses], startled: set[int]) -> list[Sight]:
        scene, count = self._scene, len(self._residents)
        players = self._players_at(round_ / self._rate_hz)
        things = np.concatenate([at, self._things])
        away = np.hypot(things[None, :, 0] - at[:, None, 0], things[None, :, 1] - at[:, None, 1])
        away[np.arange(count), np.arange(count)] = np.inf
        nearest = np.argpartition(away, scene.percepts_max, axis=1)[:, : scene.percepts_max]
        distances = np.take_along_axis(away, nearest, axis=1)
        distances[distances > scene.see_m] = np.inf
        seen = distances <= scene.sight_m
        if len(players):
            to_player = np.hypot(players[None, :, 0] - at[:, None, 0], players[None, :, 1] - at[:, None, 1])
            which = np.argmin(to_player, axis=1)
            near = to_player[np.arange(count), which]
            near[near > PLAYER_SEEN_M] = np.inf
            nearest = np.concatenate([nearest, (which + len(things))[:, None]], axis=1)
            distances = np.concatenate([distances, near[:, None]], axis=1)
            seen = np.concatenate([seen, (near <= PLAYER_SIGHT_M)[:, None]], axis=1)
        stances = np.take_along_axis(self._stances, nearest, axis=1)
        distances = np.round(distances, 1)
        # In npcd's order: hostile ones first, then those in sight, then the nearest.
        rank = (stances != _HOSTILE) * 1e7 + ~seen * 1e6 + np.minimum(distances, 1e5) + self._ranks[nearest] * 1e-6
        order = np.argsort(rank, axis=1)
        columns = [np.take_along_axis(a, order, axis=1).tolist() for a in (nearest, stances, distances, seen)]
        home = np.hypot(self._places[None, :, 0] - at[:, None, 0], self._places[None, :, 1] - at[:, None, 1])
        place = np.where(home.min(axis=1) <= scene.place_m, home.argmin(axis=1), -1).tolist()
        time_of_day = self._times[round_ * len(self._times) // max(1, self._rounds)]
        positions, speeds = at.tolist(), speed.tolist()
        made = []
        for n, rows in enumerate(zip(*columns, strict=True)):
            percepts = [row for row in zip(*rows, strict=True) if row[2] < math.inf]
            where = self._place_names[place[n]] if place[n] >= 0 else ""
            events = ("heard_noise",) if n in startled else ()
            # The order of two entities at the same distance word changes nothing.
            words = sorted(self._word(*row) for row in percepts[:NOTABLE])
            state = "|".join((time_of_day, where, *events, *words))
            sense = senses[n]
            if sense.takes(state, round_):
                said = intents_pb2.Observation(time_of_day=time_of_day, place=where, events=events)
                sense.head, sense.percepts = said.SerializeToString(), percepts
                sense.body = sense.head + b"".join([self._percept(*row) for row in percepts])
            elif len(players):
                # A change that it has not noticed changes no word; within the words, distances go on changing.
                here = np.concatenate([away[n], to_player[n]])
                sense.body = sense.head + b"".join([self._percept(*_within_words(row, here)) for row in sense.percepts])
            (x_m, z_m), (vx_mps, vz_mps) = positions[n], speeds[n]
            moves = intents_pb2.Observation(
                npc_id=self._residents[n].npc_id,
                x_m=x_m, z_m=z_m, vx_mps=vx_mps, vz_mps=vz_mps, health=1.0, has_health=True,
            )  # fmt: skip
            made.append(Sight(moves.SerializeToString() + sense.body, sense.state))
        return made

    def _word(self, entity: int, stance: int, distance_m: float, in_sight: bool) -> str:
        return f"{self._entities[entity][0]}:{stance}:{distance_word(distance_m)}:{in_sight}"

    def _percept(self, entity: int, stance: int, distance_m: float, in_sight: bool) -> bytes:
        """A percept as an Observation without other fields."""
        key = (entity, stance, distance_m, in_sight)
        made = self._percepts.get(key)
        if made is None:
            entity_id, kind = self._entities[entity]
            made = self._percepts[key] = percept_bytes(entity_id, kind, PERCEPT_STANCES[stance], distance_m, in_sight)
        return made


class _Senses:
    """The changes that one NPC has noticed: always the newest sight, but never two meaningful changes within `every`
    rounds."""

    __slots__ = ("_changed", "_every", "body", "head", "percepts", "state")

    def __init__(self, every: int) -> None:
        self.body = self.head = b""
        self.percepts: list[Row] = []
        self.state = ""
        self._every = every
        self._changed = -every

    def takes(self, state: str, round_: int) -> bool:
        """Takes the present sight, unless it is too early for a change. Returns True when it was taken."""
        if state != self.state:
            if round_ - self._changed < self._every:
                return False
            self._changed, self.state = round_, state
        return True


def _within_words(row: Row, here: Floats) -> Row:
    """A percept at its present distance, as far as that distance has the same word."""
    entity, stance, distance_m, in_sight = row
    edges_m = (0.0, *DISTANCE_EDGES_M, PLAYER_SEEN_M)
    low_m, high_m = next((a, b) for a, b in pairwise(edges_m) if distance_m < b or b == edges_m[-1])
    return entity, stance, round(min(max(float(here[entity]), low_m), high_m - 0.1), 1), in_sight


def player_id(number: int) -> str:
    """The id of a walking player."""
    return f"walker-{number + 1}"


def _around(chance: np.random.Generator, count: int, radius_m: float) -> Floats:
    """Points spread evenly over a disc around the origin."""
    angle, distance_m = chance.uniform(0, math.tau, count), radius_m * np.sqrt(chance.uniform(0, 1, count))
    return np.stack([distance_m * np.cos(angle), distance_m * np.sin(angle)], axis=1)


def _moved(at_m: Point, scene: Scene, spread: float) -> Point:
    """A thing stays at its place when the places are moved apart."""
    x, y = min(scene.places.values(), key=lambda place: math.dist(place, at_m))
    return at_m[0] + x * (spread - 1), at_m[1] + y * (spread - 1)

"""The simulation that the demo plays: bodies that move by their intents, a player on a walk, random events.

Decides only: game time and intents come in, positions and observations come out. Random events depend on the seed and
on game time alone, so two runs differ only by the NPCs' intents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

from loadtests.scene import Point, Resident, Scene
from npcd_client import Activation, Observation, Percept

EVENT_LASTS_MS = 1_500
EVENTS_MAX = 3
GRUDGE_MS = 8_000
BLOW_EVERY_MS = 1_000
BLOW_COSTS = 0.08
HEAL_PER_S = 0.01
ALLY_M = 12.0
BELL_M = 60.0
BELL_EVERY_MS = 11_000
NOISE_EVERY_MS = 1_700
TURN_EVERY_MS = 2_500  # a roaming NPC takes a new direction that often
LEASH_M = 40.0  # no NPC strays farther from home, so that the village stays a village

PLAYER_ID = "player-1"

# action -> (its destination, speed, distance at which it stops)
MOVES: Mapping[str, tuple[str, float, float]] = {
    "approach": ("target", 1.8, 1.5),
    "attack": ("target", 2.4, 1.2),
    "follow": ("target", 2.2, 3.0),
    "feed": ("target", 1.2, 0.8),
    "greet": ("target", 1.0, 2.5),
    "talk": ("target", 1.0, 2.0),
    "trade": ("target", 1.0, 2.0),
    "warn": ("target", 1.2, 5.0),
    "flee": ("away", 3.0, 0.0),
    "wander": ("roam", 0.9, 0.0),
    "search": ("roam", 1.2, 0.0),
    "hide": ("home", 2.0, 1.0),
    "rest": ("home", 0.8, 2.0),
    "work": ("home", 0.8, 4.0),
    "pray": ("home", 0.8, 5.0),
}


class Body:
    """One NPC's position and occupation."""

    __slots__ = (
        "action", "emotion", "events", "grudges", "heading", "health", "home_m", "last_blow_ms", "number", "resident",
        "stances", "target", "turn", "vx", "vy", "x", "y",
    )  # fmt: skip

    def __init__(self, number: int, resident: Resident, stances: Mapping[str, str], home_m: Point, at_m: Point) -> None:
        self.number = number
        self.resident = resident
        self.stances = stances
        self.home_m = home_m
        self.x, self.y = at_m
        self.vx = self.vy = 0.0
        self.health = 1.0
        self.action = "idle"
        self.emotion = "calm"
        self.target = ""
        self.heading = 0.0
        self.turn = -1
        self.last_blow_ms = float(-BLOW_EVERY_MS)
        self.events: list[tuple[str, float]] = []  # newest first: word, game ms of its end
        self.grudges: dict[str, float] = {}  # entity -> game ms of its end


class Village:
    """The scene in motion. One owner steps it, and `game_time_ms` only grows."""

    def __init__(self, scene: Scene, count: int, seed: int) -> None:
        self.scene = scene
        self.game_time_ms = 0.0
        self.seed = seed
        chance = Random(seed)
        self.bodies = [self._settle(n, r, chance) for n, r in enumerate(scene.residents(count))]
        self.by_id = {body.resident.npc_id: body for body in self.bodies}
        self._things = {thing.entity_id: thing for thing in scene.things}
        self._walk = self._plan_walk(chance)
        self._walk_m = sum(math.dist(a, b) for a, b in zip(self._walk, self._walk[1:], strict=False))
        self.player_m: Point = self._walk[0]
        self._noise_chance = Random(seed + 1)
        self._next_noise_ms = NOISE_EVERY_MS / 2
        self._next_bell_ms = BELL_EVERY_MS / 2

    def _settle(self, number: int, resident: Resident, chance: Random) -> Body:
        home_m = self.scene.places[resident.home]
        angle, distance_m = chance.uniform(0, math.tau), chance.uniform(1, 7)
        at_m = (home_m[0] + distance_m * math.cos(angle), home_m[1] + distance_m * math.sin(angle))
        return Body(number, resident, self.scene.stances[resident.archetype_id], home_m, at_m)

    def _plan_walk(self, chance: Random) -> list[Point]:
        """A closed walk through every place: from a random one always to the nearest unvisited one."""
        left = dict(self.scene.places)
        here = left.pop(chance.choice(sorted(left)))
        walk = [here]
        while left:
            name = min(left, key=lambda n: (math.dist(left[n], here), n))
            here = left.pop(name)
            walk.append(here)
        return [*walk, walk[0]]

    # -- acts ------------------------------------------------------------------------------------------------------

    def intend(self, number: int, action: str, target: str, emotion: str) -> None:
        """Takes over an NPC's intent."""
        body = self.bodies[number]
        body.action, body.target, body.emotion = action, target, emotion

    def tell(self, npc_id: str, event: str) -> None:
        """One NPC notices an event."""
        self._happen(self.by_id[npc_id], event)

    def step(self, game_time_ms: float) -> None:
        """Moves everything on to this game time."""
        dt_s = (game_time_ms - self.game_time_ms) / 1000
        self.game_time_ms = game_time_ms
        self.player_m = self._player_at(game_time_ms)
        for body in self.bodies:
            self._move(body, dt_s)
        while game_time_ms >= self._next_noise_ms:
            self._next_noise_ms += NOISE_EVERY_MS
            self._happen(self.bodies[self._noise_chance.randrange(len(self.bodies))], "heard_noise")
        while game_time_ms >= self._next_bell_ms:
            self._next_bell_ms += BELL_EVERY_MS
            self._ring()

    def _player_at(self, game_time_ms: float) -> Point:
        left_m = (game_time_ms / 1000 * self.scene.player.speed_mps) % self._walk_m
        for a, b in zip(self._walk, self._walk[1:], strict=False):
            leg_m = math.dist(a, b)
            if left_m <= leg_m:
                part = left_m / leg_m
                return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part
            left_m -= leg_m
        return self._walk[-1]

    def _move(self, body: Body, dt_s: float) -> None:
        if body.health < 1.0:
            body.health = min(1.0, body.health + HEAL_PER_S * dt_s)
        vx = vy = 0.0
        move = MOVES.get(body.action)
        if move:
            heading_for, speed_mps, near_m = move
            if heading_for == "roam":
                angle = self._heading(body)
                vx, vy = speed_mps * math.cos(angle), speed_mps * math.sin(angle)
            else:
                goal = body.home_m if heading_for == "home" else self._place_of(body.target or PLAYER_ID)
                if goal:
                    dx, dy = goal[0] - body.x, goal[1] - body.y
                    distance_m = math.hypot(dx, dy) or 1e-9
                    if heading_for == "away":
                        vx, vy = -dx / distance_m * speed_mps, -dy / distance_m * speed_mps
                    elif distance_m > near_m:
                        vx, vy = dx / distance_m * speed_mps, dy / distance_m * speed_mps
                    elif body.action == "attack":
                        self._strike(body)
        # Beyond the leash only a move that leads home counts.
        away_x, away_y = body.x - body.home_m[0], body.y - body.home_m[1]
        if away_x * away_x + away_y * away_y > LEASH_M * LEASH_M and away_x * vx + away_y * vy > 0:
            vx = vy = 0.0
        body.vx, body.vy = vx, vy
        body.x += vx * dt_s
        body.y += vy * dt_s

    def _heading(self, body: Body) -> float:
        turn = int(self.game_time_ms // TURN_EVERY_MS)
        if turn != body.turn:
            body.turn = turn
            # From seed, NPC and time alone: the same turn leads the same way, whatever happened before.
            body.heading = Random(hash((self.seed, body.number, turn))).uniform(0, math.tau)
        return body.heading

    def _place_of(self, entity_id: str) -> Point | None:
        if entity_id == PLAYER_ID:
            return self.player_m
        body = self.by_id.get(entity_id)
        if body:
            return body.x, body.y
        thing = self._things.get(entity_id)
        return thing.at_m if thing else None

    def _strike(self, body: Body) -> None:
        struck = self.by_id.get(body.target)
        if struck is None or self.game_time_ms < body.last_blow_ms + BLOW_EVERY_MS:
            return
        body.last_blow_ms = self.game_time_ms
        struck.health = max(0.1, struck.health - BLOW_COSTS)
        struck.grudges[body.resident.npc_id] = self.game_time_ms + GRUDGE_MS
        self._happen(struck, "attacked")
        for other in self.bodies:
            if other is struck or other is body or math.dist((other.x, other.y), (struck.x, struck.y)) > ALLY_M:
                continue
            friends = other.stances.get(struck.resident.archetype_id) == "friendly"
            self._happen(other, "ally_hurt" if friends else "smelled_blood")

    def _ring(self) -> None:
        chapel_m = self.scene.places["chapel"]
        for body in self.bodies:
            if math.dist((body.x, body.y), chapel_m) <= BELL_M:
                self._happen(body, "bell_rang")

    def _happen(self, body: Body, event: str) -> None:
        body.events = [(word, until) for word, until in body.events if word != event][: EVENTS_MAX - 1]
        body.events.insert(0, (event, self.game_time_ms + EVENT_LASTS_MS))

    # -- sights ----------------------------------------------------------------------------------------------------

    @property
    def time_of_day(self) -> str:
        """Day, dusk, night or dawn."""
        times = self.scene.times
        return times[int(self.game_time_ms / 1000 / self.scene.phase_s) % len(times)]

    def place_at(self, x_m: float, y_m: float) -> str:
        """The place whose middle is nearest; empty when all are too far away."""
        reach = self.scene.place_m**2
        best = ""
        for name, (place_x, place_y) in self.scene.places.items():
            squared = (place_x - x_m) ** 2 + (place_y - y_m) ** 2
            if squared <= reach:
                best, reach = name, squared
        return best

    def observe(self, number: int, tick: int) -> Observation:
        """The things that one NPC sees, hears and has been through lately."""
        body = self.bodies[number]
        now_ms = self.game_time_ms
        body.events = [(word, until) for word, until in body.events if until > now_ms]
        return Observation(
            npc_id=body.resident.npc_id,
            tick=tick,
            position_m=(body.x, 0.0, body.y),
            velocity_mps=(body.vx, 0.0, body.vy),
            health=body.health,
            time_of_day=self.time_of_day,
            place=self.place_at(body.x, body.y),
            percepts=self._percepts(body),
            events=tuple(word for word, _ in body.events),
            # The demo measures every NPC at the full rate, so it asks for full attention instead of earning it.
            activation=Activation.ACTIVE,
        )

    def _percepts(self, body: Body) -> tuple[Percept, ...]:
        see_squared = self.scene.see_m**2
        x, y, stances = body.x, body.y, body.stances
        found: list[tuple[float, str, str, str]] = []
        squared = (self.player_m[0] - x) ** 2 + (self.player_m[1] - y) ** 2
        if squared <= see_squared:
            found.append((squared, PLAYER_ID, "player", stances.get("player", "neutral")))
        for other in self.bodies:
            squared = (other.x - x) ** 2 + (other.y - y) ** 2
            if squared <= see_squared and other is not body:
                resident = other.resident
                until = body.grudges.get(resident.npc_id, 0.0)
                stance = "hostile" if until > self.game_time_ms else stances.get(resident.archetype_id, "neutral")
                found.append((squared, resident.npc_id, resident.archetype_id, stance))
        for thing in self.scene.things:
            squared = (thing.at_m[0] - x) ** 2 + (thing.at_m[1] - y) ** 2
            if squared <= see_squared:
                found.append((squared, thing.entity_id, thing.kind, ""))
        found.sort()
        sight_squared = self.scene.sight_m**2
        return tuple(
            Percept(entity_id, kind, stance, round(math.sqrt(squared), 2), squared <= sight_squared)
            for squared, entity_id, kind, stance in found[: self.scene.percepts_max]
        )

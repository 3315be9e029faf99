"""A scene: the definition of a world for npcd, and the data of the simulation around it. One TOML file, checked
once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npcd_client import NpcSpec, World, world_from_toml
from npcd_client.world import toml_text

Point = tuple[float, float]

SCENES = Path(__file__).resolve().parent / "scenes"


@dataclass(frozen=True, slots=True)
class Thing:
    """An object that NPCs notice and that never moves."""

    entity_id: str
    kind: str
    at_m: Point


@dataclass(frozen=True, slots=True)
class Resident:
    """One NPC of the scene: its persona and its home."""

    npc_id: str
    persona_id: str
    name: str
    archetype_id: str
    home: str

    @property
    def spec(self) -> NpcSpec:
        """The NPC as Register takes it."""
        return NpcSpec(self.npc_id, self.archetype_id, self.persona_id)


@dataclass(frozen=True, slots=True)
class PlayerScript:
    """How the player of the scene walks and talks."""

    name: str
    speed_mps: float
    lines_per_talk: int
    line_every_s: float
    talk_within_m: float
    lines: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything of one scene file. `stances[archetype]` maps kinds to "friendly" or "hostile"."""

    world: World
    see_m: float
    sight_m: float
    place_m: float
    phase_s: float
    times: tuple[str, ...]
    percepts_max: int
    places: Mapping[str, Point]
    things: tuple[Thing, ...]
    stances: Mapping[str, Mapping[str, str]]
    homes: tuple[tuple[str, str, str], ...]  # persona, archetype, place
    player: PlayerScript

    def residents(self, count: int) -> tuple[Resident, ...]:
        """The first `count` NPCs; past the end the list begins again, under ids with a number."""
        names = {persona.persona_id: persona.name for persona in self.world.personas}
        made = []
        for number in range(count):
            persona_id, archetype_id, home = self.homes[number % len(self.homes)]
            again = number // len(self.homes)
            npc_id = persona_id if not again else f"{persona_id}-{again + 1}"
            made.append(Resident(npc_id, persona_id, names[persona_id], archetype_id, home))
        return tuple(made)


@dataclass(frozen=True, slots=True)
class CrowdPlan:
    """A crowd instead of the simulated village (see loadtests/crowd.py). `players` walk, places are `spread` times as
    far apart as in the scene, and no NPC's observations change meaningfully twice within `change_every_s`. `times` of
    day share the run's length equally; each new one is a change for all NPCs at the same moment.
    """

    players: int
    spread: float
    change_every_s: float
    times: tuple[str, ...] = ("dusk",)


@dataclass(frozen=True, slots=True)
class Plan:
    """A load: the number of game servers, of NPCs for each, and of players who talk.

    `fps` is a game server's tick, `rate_hz` observations per NPC and second. Each player says a line every
    `line_every_s` on average, even while the last answer is not complete. `max_tokens` 0 leaves a reply's length to
    npcd. Without a `crowd` every server plays the scene's village.
    """

    name: str
    scene: Scene
    seconds: float
    servers: int
    npcs: int
    conversations: int
    fps: int
    rate_hz: float
    line_every_s: float
    max_tokens: int
    seed: int
    crowd: CrowdPlan | None = None


def load_plan(path: Path) -> Plan:
    """Reads a load; its `scene` is a file beside it. Raises ValueError that names the fault."""
    try:
        given = tomllib.loads(toml_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    except FileNotFoundError:
        there = sorted(file.stem for file in path.parent.glob("*.toml") if file.name != "demo.toml")
        raise ValueError(f"no scene {path}; there are: {', '.join(there)}") from None
    crowd = given.pop("crowd", None)
    _check_keys(path, given, Plan, {"name", "crowd"})
    plan = Plan(name=path.stem, **given | {"scene": load_scene(path.parent / given["scene"])})
    if crowd is not None:
        _check_keys(path, crowd, CrowdPlan, set())
        plan = replace(plan, crowd=CrowdPlan(**crowd | {"times": tuple(crowd["times"])}))
        if plan.fps % plan.rate_hz:
            raise ValueError(f"{path}: fps must be a multiple of rate_hz, a crowd is observed in every so many frames")
    if min(plan.servers, plan.npcs, plan.fps, plan.rate_hz, plan.line_every_s, plan.seconds) <= 0:
        raise ValueError(f"{path}: servers, npcs, fps, rate_hz, line_every_s and seconds must be above 0")
    if plan.conversations > plan.servers * plan.npcs:
        raise ValueError(f"{path}: {plan.conversations} conversations need as many NPCs")
    return plan


def _check_keys(path: Path, given: Mapping[str, Any], kind: type[Plan] | type[CrowdPlan], apart: set[str]) -> None:
    wanted = set(kind.__dataclass_fields__) - apart
    if set(given) != wanted:
        raise ValueError(f"{path}: missing {sorted(wanted - set(given))}, unknown {sorted(set(given) - wanted)}")


def load_scene(path: Path = SCENES / "demo.toml") -> Scene:
    """Reads a scene. Raises ValueError that names the entries that do not fit together."""
    text = toml_text(path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    world = world_from_toml(text)
    ground = content["map"]
    places = {name: (float(x_m), float(y_m)) for name, (x_m, y_m) in ground["places"].items()}
    scene = Scene(
        world=world,
        see_m=float(ground["see_m"]),
        sight_m=float(ground["sight_m"]),
        place_m=float(ground["place_m"]),
        phase_s=float(ground["phase_s"]),
        times=tuple(ground["times"]),
        percepts_max=int(ground["percepts_max"]),
        places=places,
        things=tuple(_thing(number, thing, places) for number, thing in enumerate(ground["things"], 1)),
        stances={archetype: _stances(given) for archetype, given in content["stances"].items()},
        homes=tuple((npc["persona"], npc["archetype"], npc["home"]) for npc in content["npcs"]),
        player=_player(content["player"]),
    )
    _check(scene)
    return scene


def _thing(number: int, given: Mapping[str, Any], places: Mapping[str, Point]) -> Thing:
    x_m, y_m = places[given["place"]]
    dx_m, dy_m = given["offset_m"]
    return Thing(f"thing-{number}", given["kind"], (x_m + dx_m, y_m + dy_m))


def _stances(given: Mapping[str, list[str]]) -> dict[str, str]:
    return {kind: stance for stance in ("friendly", "hostile") for kind in given[stance]}


def _player(given: Mapping[str, Any]) -> PlayerScript:
    return PlayerScript(
        name=given["name"],
        speed_mps=float(given["speed_mps"]),
        lines_per_talk=int(given["lines_per_talk"]),
        line_every_s=float(given["line_every_s"]),
        talk_within_m=float(given["talk_within_m"]),
        lines={situation: tuple(lines) for situation, lines in given["lines"].items()},
    )


def _check(scene: Scene) -> None:
    personas = {persona.persona_id for persona in scene.world.personas}
    archetypes = {archetype.archetype_id for archetype in scene.world.archetypes}
    for persona_id, archetype_id, home in scene.homes:
        if persona_id not in personas or archetype_id not in archetypes or home not in scene.places:
            raise ValueError(f"[[npcs]] {persona_id}: unknown persona, archetype {archetype_id} or home {home}")
    actions = {action.word for action in scene.world.actions}
    for number, row in enumerate(scene.world.policy.rows, 1):
        if row.action not in actions or row.emotion not in scene.world.emotions:
            raise ValueError(f"[[policy]] number {number}: {row.action} or {row.emotion} is not a word of this world")
    if missing := archetypes - set(scene.stances):
        raise ValueError(f"[stances] is missing {', '.join(sorted(missing))}")

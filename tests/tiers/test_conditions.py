"""Rows of a route: the first one whose conditions all hold decides, and a faulty row is refused by its number."""

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from tiers.conditions import ACTIVATIONS, ANY, Facts, When, check_rows, first_that_holds
from tiers.promises import Promises
from tiers.routing import FOLLOWS, LLAMA, SILENT, Directions, Route, Routes, WorkKind, check_routes, serving

SCENES = (Path(__file__).parent / "conditions.txt").read_text().split("\n\n")[1:]
ENGINES = (LLAMA, "small", "big", "large")


def facts_of(text: str) -> Facts:
    """ "world=town context=5" as facts."""
    given = dict(pair.split("=", 1) for pair in text.split())
    context = int(given.pop("context", 0))
    return Facts(**given, context=context)


def row_of(text: str) -> When:
    """ "big: world=town|moor context_min=5" as a row."""
    engine, _, conditions = text.partition(": ")
    row = When(engine)
    for name, value in (pair.split("=", 1) for pair in conditions.split()):
        wanted: Any = int(value) if name.startswith("context") else tuple(value.split("|"))
        row = replace(row, **{name: wanted})
    return row


@pytest.mark.parametrize("scene", SCENES, ids=[scene.splitlines()[0] for scene in SCENES])
def test_scenes(scene: str) -> None:
    """Each NPC is served by the engine that its line names, for the reason that stands there."""
    rows, _, npcs = scene.partition("\n----\n")
    route = Route(Routes().reply.tier, "own", when=tuple(row_of(line) for line in rows.splitlines()[1:]))
    for line in npcs.strip().splitlines():
        who, _, expected = line.partition(" -> ")
        engine, row = serving(route, facts_of(who))
        assert (engine if row == ANY else f"{engine}, row {row + 1}") == expected, line


def plainly(rows: tuple[When, ...], facts: Facts) -> int:
    """The same decision, said as slowly as can be."""
    for number, row in enumerate(rows):
        checks = []
        if row.world:
            checks.append(any(world == facts.world for world in row.world))
        if row.archetype:
            checks.append(any(archetype == facts.archetype for archetype in row.archetype))
        if row.persona:
            checks.append(any(persona == facts.persona for persona in row.persona))
        if row.activation:
            checks.append(any(level == facts.activation for level in row.activation))
        checks.append(not facts.context < row.context_min)
        checks.append(row.context_max == 0 or not facts.context > row.context_max)
        if False not in checks:
            return number
    return ANY


@pytest.mark.parametrize("seed", range(20))
def test_random_rows_decide_as_a_dumb_version_does(seed: int) -> None:
    """Same row for any rows and facts. The row that decides has no broken condition, and each one before it has one."""
    rng = random.Random(seed)

    def some(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(rng.sample(names, rng.choice((0, 0, 1, 2))))

    ids = ("a", "b", "c")
    for _ in range(200):
        rows = tuple(
            When(
                rng.choice(ENGINES), some(ids), some(ids), some(ids), some(ACTIVATIONS),
                rng.choice((0, 0, 500, 1000)), rng.choice((0, 0, 1000, 1500)),
            )
            for _ in range(rng.randrange(5))
        )  # fmt: skip
        context = rng.choice((0, 500, 999, 1000, 1001, 1600))
        persona, activation = rng.choice(("", *ids)), rng.choice(ACTIVATIONS)
        facts = Facts(rng.choice(ids), rng.choice(ids), persona, activation, context)
        number = first_that_holds(rows, facts)
        assert number == plainly(rows, facts)
        before = rows if number == ANY else rows[:number]
        assert all(list(row.broken(facts)) for row in before)
        assert number == ANY or not list(rows[number].broken(facts))


@pytest.mark.parametrize("seed", range(10))
def test_directions_agree_with_the_routes(seed: int) -> None:
    """Each work's route differs from its kind's in nothing but the engine, which is one of the routes' engines. A trunk
    is made on the engine of the works that it is for.
    """
    rng = random.Random(seed)
    kinds = [kind for kind in WorkKind if kind not in SILENT]
    routes = Routes()
    for kind in rng.sample(kinds, 3):
        rows = tuple(When(rng.choice(ENGINES), world=(rng.choice("ab"),)) for _ in range(rng.randrange(3)))
        routes = replace(routes, **{kind.value: replace(routes.of(kind), engine=rng.choice(ENGINES), when=rows)})
    check_routes(routes, Promises(), 2048, ENGINES)
    directions = Directions(routes)
    for kind in WorkKind:
        for world in "abc":
            route = directions.of(kind, Facts(world))
            assert replace(route, engine="") == replace(routes.of(kind), engine="", when=())
            assert route.engine in routes.engines()
            if kind in SILENT:
                assert route.engine == directions.of(FOLLOWS[kind], Facts(world)).engine
        assert directions.own(kind).engine == routes.of(kind).engine


def test_a_kind_follows_the_one_that_it_belongs_to() -> None:
    """Replies take summaries along, with their rows; a summary with an engine of its own goes there."""
    rows = (When("big", world=("town",)),)
    routes = replace(Routes(), reply=replace(Routes().reply, engine="small", when=rows))
    summary = routes.of(WorkKind.SUMMARY)
    assert (summary.engine, summary.when, summary.tier) == ("small", rows, Routes().summary.tier)
    assert routes.of(WorkKind.INTENT).engine == routes.of(WorkKind.PREDICTION_BARK).engine == LLAMA
    assert Directions(routes).follows(WorkKind.SUMMARY) and not Directions(routes).follows(WorkKind.REPLY)
    routes = replace(routes, summary=replace(routes.summary, engine=LLAMA))
    assert (routes.of(WorkKind.SUMMARY).engine, routes.of(WorkKind.SUMMARY).when) == (LLAMA, ())
    assert not Directions(routes).follows(WorkKind.SUMMARY)
    assert routes.engines() == [LLAMA, "small", "big"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (When(world=("town",)), "routes.reply.when, row 1: engine is missing; there is: big, large, llama, small"),
        (
            When("bog", world=("town",)),
            "row 1: engine: there is no engine 'bog'; there is: big, large, llama, small; did",
        ),
        (When("big"), "row 1: it has no condition, so it holds always; give one of world, archetype"),
        (
            When("big", activation=("activ",)),
            "activation 'activ', must be active, warm, ambient; did you mean 'active'?",
        ),
        (When("big", context_min=-1), "context_min and context_max must be 0 or more"),
        (When("big", context_min=9, context_max=5), "context_max (5) is less than context_min (9)"),
    ],
)
def test_a_faulty_row_is_refused(row: When, said: str) -> None:
    """The error names the route, the row's number and the limit."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_rows("routes.reply", (row,), ENGINES)
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_routes(replace(Routes(), reply=replace(Routes().reply, when=(row,))), Promises(), 2048, ENGINES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"reply_trunk": {"when": (When("big", world=("a",)),)}},
            "routes.reply_trunk.when: it has the rows of routes.rep",
        ),
        ({"reply_trunk": {"engine": "big"}}, "'big' would make KV for routes.reply, which goes to 'llama'; leave"),
        (
            {"trunk": {"engine": LLAMA}, "intent": {"when": (When("big", world=("a",)),)}},
            "'llama' would make KV for routes.intent, which goes to 'llama' and by rows elsewhere; leave",
        ),
        ({"reply": {"engine": ""}}, "routes.reply.engine: is empty; name one of big, large, llama, small"),
    ],
)
def test_a_trunk_goes_where_its_works_go(change: dict[str, dict[str, object]], said: str) -> None:
    """KV on another engine would be of no use, so it is refused."""
    routes = Routes()
    for kind, fields in change.items():
        routes = replace(routes, **{kind: replace(getattr(routes, kind), **fields)})
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_routes(routes, Promises(), 2048, ENGINES)

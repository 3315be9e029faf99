"""Predictions follow from motion alone, and differ from the present in the words that the model reads."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from core.observation import Observation, Percept
from prompts.sight import distance_word, health_word, state_of
from tiers.prediction import Edges, Habits, Motion, PredictionSettings, approaches, expected

EDGES = Edges((2.0, 8.0, 20.0), (0.25, 0.7))
WORDS = Edges(EDGES.distances_m, EDGES.health, ordered=False)  # as the states of prompts/layout.py
SETTINGS = PredictionSettings(on=True)
HORIZON_MS = round(SETTINGS.horizon_s * 1000)

coordinates = st.floats(-30, 30, allow_nan=False)
speeds = st.floats(-4, 4, allow_nan=False)
walkers = st.lists(
    st.tuples(st.sampled_from(["hostile", "friendly", ""]), coordinates, coordinates, speeds, speeds), max_size=8
)


def walk(walkers: list[tuple[str, float, float, float, float]], tick: int, **more: object) -> Observation:
    """An NPC in the middle observes, every 100 ms, others who walk straight on."""
    t = tick / 10
    percepts = tuple(
        Percept(f"e{i}", "wolf", stance, math.hypot(x + vx * t, y + vy * t))
        for i, (stance, x, y, vx, vy) in enumerate(walkers)
    )
    return Observation(tick, percepts, game_time_ms=tick * 100, **more)  # type: ignore[arg-type]


def test_the_edges_are_those_of_the_words() -> None:
    """The model reads another word just below and at each edge."""
    for edge in EDGES.distances_m:
        assert distance_word(edge - 1e-6) != distance_word(edge)
    for edge in EDGES.health:
        assert health_word(edge - 1e-6) != health_word(edge)


@given(walkers, st.floats(0, 1), st.floats(-0.3, 0.3))
def test_predictions_are_other_states_soon_and_likeliest_first(
    walkers: list[tuple[str, float, float, float, float]], health: float, slope: float
) -> None:
    """There are at most states_max predictions, all different, none the present state, within the horizon. Asking
    changes nothing."""
    motion = Motion(Habits())
    for tick in range(1, 11):
        seen = walk(walkers, tick, health=min(1.0, max(0.0, health + slope * tick / 10)))
        motion.saw(seen)
    found = expected(motion, seen, WORDS, SETTINGS)
    states = [state_of(e.observation, EDGES.percepts) for e in found]
    assert len(found) <= SETTINGS.states_max
    assert len({state_of(seen, EDGES.percepts), *states}) == 1 + len(states)
    assert all(0 <= e.in_ms <= HORIZON_MS and 0.0 < e.chance <= 1.0 for e in found)
    assert [e.chance for e in found] == sorted((e.chance for e in found), reverse=True)
    assert all(e.observation.tick == seen.tick and e.observation.place == seen.place for e in found)
    assert expected(motion, seen, WORDS, SETTINGS) == found


@given(walkers)
def test_of_those_who_walk_straight_on_the_next_state_is_the_one_that_comes(
    walkers: list[tuple[str, float, float, float, float]],
) -> None:
    """Of walks that reach another state within the horizon, the predicted state is the one that comes. Grazing an edge,
    or standing almost still, is not predicted."""
    motion = Motion(Habits())
    for tick in range(1, 11):
        seen = walk(walkers, tick)
        motion.saw(seen)
    present = state_of(seen, EDGES.percepts)
    coming = [state_of(walk(walkers, tick), EDGES.percepts) for tick in range(11, 52)]
    changes = [s for s, before in zip(coming, [present, *coming], strict=False) if s != before]
    found = sorted(expected(motion, seen, EDGES, SETTINGS), key=lambda e: e.in_ms)
    slow = any(math.hypot(vx, vy) < 0.5 for _, _, _, vx, vy in walkers)
    if not slow and len(walkers) == 1 and changes:
        x, y, vx, vy = walkers[0][1:]
        nearest_m = abs(x * vy - y * vx) / math.hypot(vx, vy)
        along_m = abs(x * vx + y * vy) / math.hypot(vx, vy)
        if along_m > 6 and all(abs(nearest_m - edge) > 0.5 for edge in EDGES.distances_m):
            assert found and state_of(found[0].observation, EDGES.percepts) == changes[0]


@given(walkers)
def test_nothing_is_made_of_a_teleport(walkers: list[tuple[str, float, float, float, float]]) -> None:
    """After the NPC teleports, earlier positions give no speed."""
    motion = Motion(Habits())
    for tick in range(1, 11):
        motion.saw(walk(walkers, tick))
    seen = walk(walkers, 60, position_m=(900.0, 0.0, 0.0))._replace(game_time_ms=1100)
    motion.saw(seen)
    assert expected(motion, seen, EDGES, SETTINGS) == []


def test_a_game_that_tells_no_time_is_timed_by_the_arrival() -> None:
    """If game time is always 0, the times of arrival count."""
    motion = Motion()
    for tick in range(1, 11):
        seen = Observation(tick, (Percept("p", "player", "", 13.0 - 0.2 * tick),), at_ns=tick * 100_000_000)
        motion.saw(seen)
    (first,) = expected(motion, seen, EDGES, SETTINGS)
    assert first.kind == "nearer" and abs(first.in_ms - 1500) < 50


def test_paused_and_reloaded_games() -> None:
    """A second observation at the same game time changes nothing. An earlier game time starts the history anew."""
    motion = Motion()
    for tick in (1, 2, 3, 4, 5, 5, 5):
        seen = walk([("", 10.0, 0.0, -2.0, 0.0)], tick)
        motion.saw(seen)
    assert expected(motion, seen, EDGES, SETTINGS)
    seen = walk([("", 10.0, 0.0, -2.0, 0.0)], 1)
    motion.saw(seen)
    assert expected(motion, seen, EDGES, SETTINGS) == []


def test_only_a_player_who_walks_up_approaches() -> None:
    """A player approaches only by walking up: not by leaving, standing, being close already, walking past, or being
    absent."""

    def after_a_second(*at: float) -> int | None:
        motion = Motion()
        for tick in range(1, 11):
            seen = walk([("", *at)], tick)  # type: ignore[list-item]
            motion.saw(seen)
        return approaches(motion, seen, "e0", SETTINGS)

    assert after_a_second(11.0, 0.0, -2.0, 0.0) is not None
    assert after_a_second(11.0, 0.0, 2.0, 0.0) is None
    assert after_a_second(11.0, 0.0, 0.0, 0.0) is None
    assert after_a_second(3.0, 0.0, -2.0, 0.0) is None
    assert after_a_second(11.0, 7.0, -3.0, 0.0) is None
    assert after_a_second(30.0, 0.0, -2.0, 0.0) is None
    assert approaches(Motion(), Observation(1), "e0", SETTINGS) is None


def test_in_and_out_of_sight_follow_from_the_distance_where_they_do() -> None:
    """A player who is seen up to 12 m and heard beyond is expected to be heard after walking out of 12 m."""
    habits = Habits()
    other = Motion(habits)
    there = (Percept("a", "cow", "", 11.9), Percept("b", "cow", "", 12.1, False), Percept("c", "cow", "", 60.0, False))
    for tick in range(1, 20):
        other.saw(Observation(tick, there, game_time_ms=tick * 200))
    motion = Motion(habits)
    for tick in range(1, 11):
        seen = walk([("", 9.0, 0.0, 1.5, 0.0)], tick)
        motion.saw(seen)
    (first,) = expected(motion, seen, EDGES, SETTINGS)
    assert state_of(first.observation, 5) == "| wolf away heard@e0" and abs(first.in_ms - 1000) < 100


def test_where_the_order_does_not_count_two_who_change_places_are_the_same_state() -> None:
    """Unordered edges predict only changes of a word, or of the set of notable entities."""
    motion = Motion()
    for tick in range(1, 11):
        seen = walk([("", 16.0, 0.0, -2.5, 0.0), ("", 0.0, 12.5, 0.0, 0.0)], tick)
        motion.saw(seen)
    assert [e.kind for e in expected(motion, seen, EDGES, SETTINGS)] == ["order", "nearer later"]
    unordered = Edges(EDGES.distances_m, EDGES.health, ordered=False)
    assert [e.kind for e in expected(motion, seen, unordered, SETTINGS)] == ["nearer"]
    alone = Edges(EDGES.distances_m, EDGES.health, percepts=1, ordered=False)
    assert [e.kind for e in expected(motion, seen, alone, SETTINGS)] == ["order"]


def test_a_world_has_a_bound_of_habits() -> None:
    """Of events and times of day with ever new names only a bounded number is kept."""
    habits = Habits()
    for n in range(1000):
        habits.mentioned(f"event{n}", 1500)
        habits.daytime(f"day{n}", n * 5000)
    assert len(habits.event_ms) == len(habits.day) == 256

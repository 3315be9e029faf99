"""What is expected follows from motion alone, differs from the present in the model's own words, and is asked about as
long as it comes true often enough."""

from __future__ import annotations

from core.observation import Observation, Percept
from daemon.prompt import distance_word, health_word, state_of
from tiers.prediction import Edges, Habits, Motion, PredictionSettings, approaches, expected

EDGES = Edges((2.0, 8.0, 20.0), (0.25, 0.7))
SETTINGS = PredictionSettings()


def at(tick: int, *percepts: Percept, **more: object) -> Observation:
    """An observation of a game that tells ten a second."""
    return Observation(tick, percepts, game_time_ms=tick * 100, **more)  # type: ignore[arg-type]


def test_a_player_who_walks_up_is_expected_nearer_and_close() -> None:
    """From 11 m at 2 m/s: near after 1.5 s, within 4 m after 3.5 s."""
    motion = Motion(Habits())
    for tick in range(1, 11):
        seen = at(tick, Percept("p", "player", "", 13.0 - 0.2 * tick))
        motion.saw(seen)
    (first,) = expected(motion, seen, EDGES, SETTINGS)
    assert first.kind == "nearer" and abs(first.in_ms - 1500) < 100
    assert state_of(first.observation, 5) == "| player near@p"
    in_ms = approaches(motion, seen, "p", SETTINGS)
    assert in_ms is not None and abs(in_ms - 3500) < 100


def test_the_edges_are_those_of_the_words() -> None:
    """Just below and at each edge the model reads another word."""
    for edge in EDGES.distances_m:
        assert distance_word(edge - 1e-6) != distance_word(edge)
    for edge in EDGES.health:
        assert health_word(edge - 1e-6) != health_word(edge)

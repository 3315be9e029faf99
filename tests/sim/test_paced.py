"""On engines of any speed, and while one becomes slower, what is promised is kept and what is covered shrinks."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import pytest

from core.clock import S
from tests.sim.paced import Paced

PHASE_S = 60.0


@dataclass
class Phase:
    """The results while the engine had one speed."""

    intents_per_s: float
    covered: tuple[int, int]
    answered: int
    first_ns: int  # the longest, without a conversation's first
    reply_per_s: float  # tokens, of half of the replies at least
    turned: int
    fell_within_ns: int


def phases(token_ms: float, npcs: int, speeds: tuple[float, ...]) -> list[Phase]:
    """Plays a minute at each speed. One player talks all the time."""
    game = Paced(token_ms, npcs, 1)
    player, found = game.players[0], []
    game.run(10.0)
    for times in speeds:
        game.slow(times)
        since_ns, answered, replies = game.clock(), len(game.answers), len(player.firsts_ns)
        before = game.history[-1][1].intents_per_s
        game.run(PHASE_S)
        carried = game.history[-1][1]
        fell = [at_ns for at_ns, c in game.history if at_ns > since_ns and c.intents_per_s < 0.9 * before]
        found.append(
            Phase(
                carried.intents_per_s, game.covered(), len(game.answers) - answered, max(player.firsts_ns[replies:]),
                median(player.rates[replies:]), game.turned(since_ns), fell[0] - since_ns if fell else 0,
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("token_ms", [0.3, 3.0, 12.0, 40.0])
def test_promises_are_kept_and_coverage_shrinks(token_ms: float) -> None:
    """At full, half and quarter speed a conversation has its first text and its reading speed as promised, or nearly as
    without NPCs. Fewer intents are carried, at least one NPC is active, and the pace turns round once at most.
    """
    speeds = (1.0, 2.0, 4.0)
    alone, beside = phases(token_ms, 0, speeds), phases(token_ms, 40, speeds)
    for one, two in zip(alone, beside, strict=True):
        assert two.first_ns <= max(0.25 * S, 2.2 * one.first_ns), (one, two)
        assert two.reply_per_s >= min(8.0, 0.5 * one.reply_per_s), (one, two)
        assert two.covered[0] >= 1 and two.answered >= 1
        assert two.turned <= 1, two
    full, half, quarter = beside
    assert full.intents_per_s > quarter.intents_per_s
    if token_ms in (3.0, 12.0):  # the faster one has time left, and a few steps of the slower one take a second
        assert 0 < half.fell_within_ns <= 1.1 * S


def test_a_fast_engine_covers_all() -> None:
    """At 0.03 ms a token 40 NPCs are active and nothing gives way."""
    game = Paced(0.03, 40, 1)
    game.run(20.0)
    carried = game.history[-1][1]
    assert game.covered() == (40, 0) and not carried.gives_way
    assert game.by_rule == 0 or game.by_rule < len(game.answers) / 20

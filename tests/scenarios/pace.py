"""The pace in text.

token MS [talk]           a model that takes so long for a token; an intent is 25 tokens, prefilling is 2.5 times faster
wanted ACTIVE WARM
round [xN] [slow=X] [gold=SHARE] [talk=SHARE] [late=N/M] [late_text] [talks=N]     N rounds of 250 ms
"""

from __future__ import annotations

from core.clock import MS
from tests.scenarios.attention import arguments
from tiers.cadence import CadenceSettings
from tiers.pace import Measured, Pace, PaceSettings, Wanted

ROUND_NS = 250 * MS


class PaceScenario:
    """One backend. Each answer is what it carries, and the last thing that gives way."""

    def __init__(self) -> None:
        self.pace = Pace(PaceSettings(), CadenceSettings(), 200, 400)
        self.costs = Measured()
        self.wanted = Wanted()
        self.now_ns = 0

    def run(self, lines: list[str]) -> str:
        """The share-out after the command."""
        (verb, *words), given = arguments(lines[0])
        if verb == "token":
            token_ns = float(words[0]) * MS
            self.costs = Measured(25 * token_ns, 28 * token_ns, 0.4 * token_ns, token_ns)
            self.pace = Pace(PaceSettings(), CadenceSettings(), 200, 400)
            return "set"
        if verb == "wanted":
            self.wanted = Wanted(int(words[0]), int(words[1]))
            return "set"
        assert verb == "round", verb
        rounds = next((int(word[1:]) for word in words if word[0] == "x"), 1)
        late, _, answered = given.get("late", "0/0").partition("/")
        measured = self.costs._replace(
            slow_x=float(given.get("slow", 1)), gold_share=float(given.get("gold", 0.8)),
            silver_share=float(given.get("talk", 0)), answered=int(answered), late=int(late),
            texts=1, late_texts="late_text" in words, talks=int(given.get("talks", 0)),
        )  # fmt: skip
        for _ in range(rounds):
            c = self.pace.decide(measured, self.wanted, self.now_ns)
            self.now_ns += ROUND_NS
        active, warm = min(self.wanted.active, c.active_max), min(self.wanted.warm, c.warm_max)
        return (
            f"{c.intents_per_s:.1f} intents/s: {active} active at {c.active_hz:.2f} Hz, {warm} warm at {c.warm_hz:.2f} "
            f"Hz, {c.conversations_max} conversations\n"
            f"gives way: {', '.join(c.gives_way) or 'nothing'}"
        )

"""The pace of each backend, kept up to date: measures what tiers/pace.py decides about, and says what is carried now.

On the event loop. It owns no task: whoever needs what is carried calls look(), which decides anew every 250 ms. It
owns the list of the conversations under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

import structlog

from core.clock import MS, Clock, S
from core.errors import Overloaded
from core.words import Activation, NpcKey, Tier
from core.work import Timings
from engines.backend import Snapshot
from scheduler.ticket import Door
from tiers.activation import ActivationSettings
from tiers.cadence import CadenceSettings
from tiers.pace import Carried, Measured, Pace, PaceSettings, Wanted
from tiers.pace_words import shortfalls
from tiers.promises import RETRY_MAX_NS, Promises
from tiers.routing import Routes, WorkKind

EVERY_NS = 250 * MS
SLOW_WITHIN_NS = S  # the time over which it is measured how slow steps are, and the least of it that is in steps
SLOW_BUSY_NS = S // 2
TOLD_EVERY_NS = 5 * S  # a log line about one backend at most

log = structlog.get_logger("npcd")


@dataclass(slots=True)
class Kept:
    """One backend's pace, and what was measured since it was decided last."""

    pace: Pace
    carried: Carried
    measured: Measured = Measured()
    before: Snapshot | None = None
    at_ns: int = 0
    steps: deque[tuple[int, int, int]] = field(default_factory=deque)  # moment, busy and expected time until then
    answered: int = 0
    late: int = 0
    texts: int = 0
    late_texts: int = 0
    talks: dict[tuple[NpcKey, str], int] = field(default_factory=dict)  # conversations, and when they ended if silent
    refused: int = 0
    told_ns: int = 0
    told: tuple[str, ...] = ()


class Pacing:
    """The pace of all backends. `wanted` is set by whoever knows which NPCs should be active and warm. The `golden`
    backends make intents or barks; the others are there for conversations alone.
    """

    def __init__(
        self,
        door: Door,
        promises: Promises,
        routes: Routes,
        settings: PaceSettings,
        golden: Collection[str],
        cadence: CadenceSettings,
        activation: ActivationSettings,
        answer_within_ms: int,
        clock: Clock,
    ) -> None:
        self.wanted = Wanted()
        self._door = door
        self._promises = promises
        self._settings = settings
        self._within_ns = answer_within_ms * MS
        self._first_ns = promises.silver.first_ms * MS
        self._clock = clock
        self._intent = routes.of(WorkKind.INTENT).engine
        self._bark = routes.of(WorkKind.BARK).engine
        self._ahead = routes.of(WorkKind.PREDICTION).engine
        self._trunk = routes.of(WorkKind.TRUNK).engine
        self._reply = routes.of(WorkKind.REPLY).engine
        self._kept: dict[str, Kept] = {}
        now_ns = clock()
        for name in door.backends:
            talk_share = settings.talk_share if name in golden else settings.busy_share
            own = replace(settings, talk_share=talk_share)
            pace = Pace(own, cadence, activation.active_max, activation.warm_max)
            kept = self._kept[name] = Kept(pace, pace.decide(self._costs(name, now_ns), Wanted(), now_ns), at_ns=now_ns)
            kept.measured = self._costs(name, now_ns)
            for said in self.shortfalls(name):
                log.warning("promise not kept here", engine=name, says=said)

    # -- what is carried ---------------------------------------------------------------------------------------

    @property
    def all(self) -> Iterable[tuple[str, Kept]]:
        """Every backend's name and pace, to look at."""
        self.look()
        return self._kept.items()

    @property
    def intents(self) -> Carried:
        """The share-out of the backend of intents."""
        self.look()
        return self._kept[self._intent].carried

    def allows_barks(self, activation: Activation) -> bool:
        """True if an NPC at that level may bark now."""
        self.look()
        carried, intents = self._kept[self._bark].carried, self._kept[self._intent].carried
        return carried.barks and (activation is Activation.ACTIVE or intents.warm_barks)

    def allows_loads(self) -> bool:
        """True if KV may be computed before anybody is asked."""
        self.look()
        return self._kept[self._trunk].carried.loads_ahead

    def allows_look_ahead(self) -> bool:
        """True if NPCs may be asked about what they will see."""
        self.look()
        return self._kept[self._ahead].carried.look_ahead

    def shortfalls(self, name: str) -> list[str]:
        """A line for each promise that a backend cannot keep here at all, with numbers and what helps."""
        kept = self._kept[name]
        does = {kind for kind, engine in (("intent", self._intent), ("reply", self._reply)) if engine == name}
        return shortfalls(kept.measured, self._promises, kept.carried.intents_per_s, frozenset(does))

    # -- what is measured --------------------------------------------------------------------------------------

    def answered(self, timings: Timings, tail_len: int, now_ns: int) -> None:
        """An intent was answered. Its wait in the line, before it was handed to the engine, does not count."""
        kept = self._kept[self._intent]
        kept.answered += 1
        trunk_len = max(0, timings.prefilled_tokens - tail_len)
        kept.late += now_ns - timings.submitted_ns > kept.pace.late_ns(kept.measured, trunk_len)

    def overdue(self, count: int) -> None:
        """So many NPCs have waited for an answer for as long as an answer may take, and still do."""
        kept = self._kept[self._intent]
        if kept.pace.late_ns(kept.measured) <= self._within_ns:
            kept.answered += count
            kept.late += count

    def first_text(self, since_ns: int, timings: Timings) -> None:
        """A turn that could begin at that moment is over."""
        if timings.first_ns:
            kept = self._kept[self._reply]
            kept.texts += 1
            bound_ns = kept.pace.first_text_ns(kept.measured, timings.prefilled_tokens, self._first_ns)
            kept.late_texts += timings.first_ns - since_ns > bound_ns

    # -- conversations -----------------------------------------------------------------------------------------

    def admit(self, npc: NpcKey, player: str) -> None:
        """A line was said: its conversation is under way from now on. Raises Overloaded, with a retry time, for a new
        conversation when as many as the engine carries are under way.
        """
        self.look()
        now_ns, kept, key = self._clock(), self._kept[self._reply], (npc, player)
        self._drop_silent(kept, now_ns)
        most = kept.carried.conversations_max
        if key not in kept.talks and len(kept.talks) >= most:
            kept.refused += 1
            first_ns = next(iter(kept.talks.values())) + round(self._settings.conversation_s * S) - now_ns
            retry_ms = max(1, round(min(max(first_ns, S), RETRY_MAX_NS) / MS))
            m = kept.measured
            raise Overloaded(
                f"{len(kept.talks)} conversations are under way and the engine carries {most} "
                f"({m.token_ns / MS:.3g} ms a token, {m.prefill_ns / MS:.3g} ms a token of a prompt)",
                retry_ms,
            )
        kept.talks.pop(key, None)
        kept.talks[key] = now_ns

    # -- deciding ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Decides anew, if that is due."""
        now_ns = self._clock()
        for name, kept in self._kept.items():
            if now_ns - kept.at_ns < EVERY_NS:
                continue
            self._drop_silent(kept, now_ns)
            kept.measured = self._measure(name, kept, now_ns)
            wanted = self.wanted if name == self._intent else Wanted()
            kept.carried = kept.pace.decide(kept.measured, wanted, now_ns)
            kept.at_ns = now_ns
            self._tell(name, kept, now_ns)

    def _measure(self, name: str, kept: Kept, now_ns: int) -> Measured:
        snapshot, before = self._door.backends[name].snapshot, kept.before
        passed_ns = max(1, now_ns - kept.at_ns)
        kept.before = snapshot
        steps = kept.steps
        if not steps or snapshot.busy_ns != steps[-1][1]:
            steps.append((now_ns, snapshot.busy_ns, snapshot.expected_ns))
        # A slow engine makes few steps in that time: then it is as many seconds as have enough of them.
        while len(steps) > 2 and steps[1][0] <= now_ns - SLOW_WITHIN_NS and steps[-1][1] - steps[1][1] >= SLOW_BUSY_NS:
            steps.popleft()
        busy_ns, expected_ns = steps[-1][1] - steps[0][1], steps[-1][2] - steps[0][2]
        slow_x = busy_ns / expected_ns if expected_ns > 0 else 1.0
        spent_before = before.spent_ns if before is not None else snapshot.spent_ns
        trunks_ns = snapshot.trunks_ns - (before.trunks_ns if before is not None else snapshot.trunks_ns)
        gold_ns, silver_ns = (snapshot.spent_ns[tier] - spent_before[tier] for tier in (Tier.GOLD, Tier.SILVER))
        measured = self._costs(name, now_ns)._replace(
            slow_x=slow_x, gold_share=gold_ns / passed_ns, silver_share=silver_ns / passed_ns,
            trunks_share=trunks_ns / passed_ns,
            answered=kept.answered, late=kept.late, texts=kept.texts, late_texts=kept.late_texts,
            talks=len(kept.talks),
        )  # fmt: skip
        kept.answered = kept.late = kept.texts = kept.late_texts = 0
        return measured

    def _costs(self, name: str, now_ns: int) -> Measured:
        """The unit costs; of a backend that has none, the time from one end of a Gold work to the next."""
        costs = self._door.backends[name].snapshot.costs
        if costs.intent_ns:
            return Measured(costs.intent_ns, costs.alone_ns, costs.prefill_ns, costs.token_ns)
        return Measured(intent_ns=self._door.permits[name].each_ns(Tier.GOLD, now_ns) or 0.0)

    def _drop_silent(self, kept: Kept, now_ns: int) -> None:
        silent_ns = now_ns - round(self._settings.conversation_s * S)
        while kept.talks and next(iter(kept.talks.values())) <= silent_ns:
            del kept.talks[next(iter(kept.talks))]

    def _tell(self, name: str, kept: Kept, now_ns: int) -> None:
        c = kept.carried
        if c.gives_way == kept.told or now_ns - kept.told_ns < TOLD_EVERY_NS:
            return
        kept.told, kept.told_ns = c.gives_way, now_ns
        log.info(
            "pace changed", engine=name, intents_per_s=round(c.intents_per_s, 1), active_max=c.active_max,
            active_hz=round(c.active_hz, 2), warm_max=c.warm_max, warm_hz=round(c.warm_hz, 3),
            conversations=len(kept.talks), conversations_max=c.conversations_max, gives_way=", ".join(c.gives_way),
        )  # fmt: skip

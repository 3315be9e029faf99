"""Composes the next step of the works that run: asks for drafts, has the planner share the step out, and repeats the
last step as long as everybody in it just decodes.

Runs on the engine thread between steps; owns the last step that was composed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from core.choice import Tokens
from core.clock import MS
from core.words import Tier
from engines.base import Slice, StepEngine, StepPlan
from scheduler.costs import Costs, Features, features
from scheduler.planner import Candidate, PlannerSettings, compose
from scheduler.running import Running
from scheduler.speculation import Speculation
from tiers.promises import Promises

SAME_STEPS_MAX = 16  # then it is looked at anew: budgets, ages and trust have moved


@dataclass(slots=True)
class Planned:
    """One step to run, who gets what of it, and what it should take. `wake_ns`: with no step, when to plan again."""

    step: StepPlan | None
    wake_ns: int | None = None
    runners: list[Running] = field(default_factory=list)
    budget_ns: int = 0
    features: Features = (0.0, 0.0, 0.0, 0.0, 0.0)
    gold: bool = False
    changes: int = -1
    """With `changes` >= 0 everybody who ran then got one token: the same step again is the right one while the
    scheduler's count is still that, which starts and ends of works move.
    """
    again: int = 0
    picked: Tokens | None = None  # the tokens of all works, when all of them just decoded
    passed_over: bool = False  # nothing of the highest tier is in it
    plain_ns: float = 0.0  # with drafts: the predicted time of the step without them


class Composer:
    """Composes steps of one engine. Changes nothing but what it remembers of the last one."""

    def __init__(
        self,
        engine: StepEngine,
        costs: Costs,
        promises: Promises,
        settings: PlannerSettings,
        speculation: Speculation | None,
    ) -> None:
        self._engine = engine
        self._costs = costs
        self._settings = settings
        self.speculation = speculation
        self._wait_max_ns = [promises.overdue_ns(tier, 0) for tier in Tier]
        self._last = Planned(None)

    def compose(self, running: Mapping[int, Running], gold: bool, changes: int, now_ns: int) -> Planned:
        """The next step of what runs. `gold`: Gold waits or came lately; `changes` counts starts and ends of works."""
        speculation = self.speculation
        drafts: dict[int, Tokens] = {}
        if speculation is not None and now_ns >= speculation.sleeps_until_ns:
            speculation.measuring = False
            if 0 < len(running) <= speculation.settings.works_max:
                planner = self._settings
                room_ns = 0.5 * MS * (planner.gold_step_ms if gold else planner.step_ms)
                drafts = speculation.drafts(list(running.values()), room_ns, now_ns)
        if drafts:
            self._last = self._compose_anew(running, gold, changes, drafts, now_ns)
        else:
            self._last = self._same_again(self._last, gold, changes) or self._compose_anew(
                running, gold, changes, drafts, now_ns
            )
        return self._last

    def _compose_anew(
        self, running: Mapping[int, Running], gold: bool, changes: int, drafts: dict[int, Tokens], now_ns: int
    ) -> Planned:
        runners = list(running.values())
        candidates = []
        for number, r in enumerate(runners):
            work, place = r.work, r.place
            wanted = len(r.wanted())
            assert wanted, f"ticket {r.ticket_id} runs and wants nothing"
            guessed = len(drafts[number]) if number in drafts else 0
            wait_ns = self._wait_max_ns[work.tier]
            deadline_ns = work.deadline_ns if r.hurried is None else min(work.deadline_ns, r.hurried.deadline_ns)
            candidates.append(
                Candidate(
                    number,
                    r.tier,
                    r.decoding,
                    place.seq,
                    place.pos,
                    wanted + guessed,
                    deadline_ns,
                    work.due_ns + wait_ns,
                    r.last_step_ns,
                    r.last_step_ns + wait_ns,
                    place.adapter,
                    guessed,
                )
            )
        geometry = self._engine.geometry
        adapter_before = self._last.step.adapter if self._last.step is not None else ""
        draft_ns = self.speculation.spent_ns if self.speculation is not None and self.speculation.measuring else 0
        composed = compose(
            candidates,
            self._costs,
            self._settings,
            now_ns,
            gold,
            geometry.batch_len,
            adapter_before,
            draft_ns,
            self._last.passed_over,
        )
        if not composed.portions:
            return Planned(None)
        step = StepPlan(adapter=composed.adapter)
        chosen: list[Running] = []
        for portion in composed.portions:
            r = runners[portion.number]
            wanted_tokens = r.wanted()
            guessed = max(0, portion.tokens - len(wanted_tokens))
            if guessed:
                wanted_tokens = np.concatenate([wanted_tokens, drafts[portion.number]])
            elif portion.tokens < len(wanted_tokens):
                wanted_tokens = wanted_tokens[: portion.tokens]
            pos = candidates[portion.number].pos
            step.slices.append(Slice(portion.seq, pos, wanted_tokens, r.pick(portion.tokens), guessed))
            chosen.append(r)
        planned = Planned(step, None, chosen, composed.budget_ns, features(step.slices, geometry.micro_len), gold)
        planned.passed_over = composed.passed_over
        if drafts:
            plain = [Slice(s.seq, s.pos, s.tokens[: len(s.tokens) - s.drafts]) for s in step.slices]
            planned.plain_ns = self._costs.predict_ns(features(plain, geometry.micro_len))
        if len(chosen) == len(runners) == step.tokens and all(r.decoding and r.node is None for r in chosen):
            planned.changes = changes
        return planned

    def _same_again(self, last: Planned, gold: bool, changes: int) -> Planned | None:
        """The step after `last` when all that ran in it just decodes on; None when it must be composed anew."""
        if last.changes != changes or last.gold != gold or last.again >= SAME_STEPS_MAX:
            return None
        assert last.step is not None and last.picked is not None
        slices, picked = last.step.slices, last.picked
        for i, s in enumerate(slices):
            s.pos += 1
            s.tokens = picked[i : i + 1]
        x = features(slices, self._engine.geometry.micro_len)
        if self._costs.predict_ns(x) > last.budget_ns * self._costs.trust:
            return None
        step = StepPlan(slices, last.step.adapter, picked)
        return Planned(step, None, last.runners, last.budget_ns, x, gold, changes, last.again + 1)

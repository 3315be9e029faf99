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
from core.work import Work
from engines.base import Slice, StepEngine, StepPlan, StepResult
from scheduler.costs import Costs, Features, features
from scheduler.filling import Candidate
from scheduler.planner import PlannerSettings, compose
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
        self._applied_ns = 0  # when the last step was taken in

    def learn(self, planned: Planned, result: StepResult, now_ns: int) -> None:
        """Tells the drafter which of its guesses in a step were right, and what the step took with all around it."""
        speculation = self.speculation
        if speculation is None:
            return
        if speculation.measuring:
            assert planned.step is not None
            slices = planned.step.slices
            given = [
                (planned.runners[i].work.tier, slices[i].drafts, len(tokens) - 1)
                for i, tokens in result.verified.items()
            ]
            plain_ns = planned.plain_ns or self._costs.predict_ns(planned.features)
            speculation.learn(given, len(slices), plain_ns, now_ns - self._applied_ns, now_ns)
        self._applied_ns = now_ns

    def compose(
        self, running: Mapping[int, Running], gold: bool, changes: int, talked_enough: bool, now_ns: int
    ) -> Planned:
        """The next step of what runs. `gold`: Gold waits or came lately; `changes` counts starts and ends of works;
        `talked_enough`: conversations had their share of the engine.
        """
        speculation = self.speculation
        drafts: dict[int, Tokens] = {}
        if speculation is not None and now_ns >= speculation.sleeps_until_ns:
            speculation.measuring = False
            if 0 < len(running) <= speculation.settings.works_max:
                planner = self._settings
                room_ns = 0.5 * MS * (planner.gold_step_ms if gold else planner.step_ms)
                drafts = speculation.drafts(list(running.values()), room_ns, now_ns)
        if drafts:
            self._last = self._compose_anew(running, gold, changes, talked_enough, drafts, now_ns)
        else:
            self._last = self._same_again(self._last, gold, changes) or self._compose_anew(
                running, gold, changes, talked_enough, drafts, now_ns
            )
        return self._last

    def _compose_anew(
        self,
        running: Mapping[int, Running],
        gold: bool,
        changes: int,
        talked_enough: bool,
        drafts: dict[int, Tokens],
        now_ns: int,
    ) -> Planned:
        runners = list(running.values())
        candidates = []
        for number, r in enumerate(runners):
            work, place = r.work, r.place
            wanted = len(r.wanted())
            assert wanted, f"ticket {r.ticket_id} runs and wants nothing"
            guessed = len(drafts[number]) if number in drafts else 0
            wait_ns = self._wait_max_ns[work.tier]
            deadline_ns = self._deadline_ns(work, r.timings.taken_ns)
            if r.hurried is not None:
                deadline_ns = min(deadline_ns, self._deadline_ns(r.hurried, now_ns))
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
                    0 if r.decoding else r.left + r.timings.prefilled_tokens,
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
            talked_enough,
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

    def _deadline_ns(self, work: Work, taken_ns: int) -> int:
        """The moment by which a work's prefill should be done. Gold's is the moment from which the rule's answer
        stands. Gold that was taken later than that has as much time again: its NPC has an answer meanwhile.
        """
        if work.tier is not Tier.GOLD:
            return work.deadline_ns
        wait_ns = self._wait_max_ns[Tier.GOLD]
        answered_ns = work.due_ns + wait_ns
        return answered_ns if taken_ns < answered_ns else taken_ns + wait_ns

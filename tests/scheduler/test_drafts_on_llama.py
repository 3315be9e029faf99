"""Drafts with the shipped model: the text equals that of plain decoding, in fewer steps."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.clock import now_ns
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Sampling, Work
from daemon.config import SHIPPED_MODEL
from engines.base import Drafter, tokens_of
from engines.draft import ModelDrafts
from engines.llama import LlamaEngine, LlamaSettings, open_draft
from scheduler.composing import Planned
from scheduler.drafts import Ngrams
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.speculation import Speculation, SpeculationSettings
from tiers.promises import Promises

# The model continues this text with many repetitions.
SAID = "The village of Ravenmere lies by the old road. Mayor Greta rules here, and strangers are"
ON = SpeculationSettings(drafts="ngram", tokens_max=3, trial_steps=10**9)


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    """A small engine."""
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=24, context_len=512, threads=1))
    yield engine
    engine.close()


class Run:
    """A scheduler on emptied sequences of the engine, with drafts or without. Use one at a time."""

    def __init__(self, engine: LlamaEngine, drafts: bool, drafter: Drafter = Ngrams(2, 4)) -> None:
        for seq in range(engine.geometry.sequences):
            engine.trim(seq, 0)
        self.engine = engine
        self.speculation = Speculation(ON, drafter, engine.vocab.eog_ids) if drafts else None
        settings = SchedulerSettings(kv=KvSettings(prefixes=2, lanes=6, ram_mib=8))
        self.scheduler = Scheduler(engine, Promises(), settings, self.speculation)
        self.made: dict[int, list[int]] = {}
        self.ended: dict[int, Finish] = {}

    def submit(self, work: Work) -> int:
        ticket = len(self.made) + 1
        self.made[ticket] = []
        self.scheduler.submit(ticket, work, now_ns())
        return ticket

    def step(self) -> Planned:
        """Runs one step, if one is due."""
        planned = self.scheduler.plan(now_ns())
        if planned.step is not None:
            began = now_ns()
            result = self.engine.step(planned.step)
            self.scheduler.apply(planned, result, now_ns() - began, now_ns())
        self.collect()
        return planned

    def collect(self) -> None:
        for ticket, what in self.scheduler.take_deliveries():
            if isinstance(what, Chunk):
                self.made[ticket] += what.tokens
            elif isinstance(what, Ended):
                self.ended[ticket] = what.finish

    def all_of(self, work: Work) -> tuple[list[int], Finish]:
        """A work's tokens and its end."""
        ticket = self.submit(work)
        while not self.scheduler.idle:
            self.step()
        return self.made[ticket], self.ended[ticket]


def work(engine: LlamaEngine, text: str = SAID, tier: Tier = Tier.SILVER, max_tokens: int = 40) -> Work:
    tokens = tokens_of(engine.vocab.markup(text))
    return Work(tier, TrunkKey(NpcKey("", "w", "npc"), "p"), tokens[:-4], tokens[-4:], max_tokens)


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.3, repeat_penalty=1.0, seed=3)])
def test_the_text_is_that_of_plain_decoding(engine: LlamaEngine, tier: Tier, sampling: Sampling) -> None:
    """On a lane or on the trunk's own sequence, greedy or drawn with a seed, the text is the same, and right drafts
    save steps."""
    asked = work(engine, tier=tier)
    asked.sampling = sampling
    plain = Run(engine, drafts=False)
    wanted = plain.all_of(asked), plain.all_of(asked)
    drafted = Run(engine, drafts=True)
    # The second work on the same trunk finds no rest of the first one's branch.
    assert (drafted.all_of(asked), drafted.all_of(asked)) == wanted
    assert drafted.speculation is not None
    t = drafted.speculation.tiers[tier]
    assert t.offered > 0
    assert plain.scheduler.meter.steps - drafted.scheduler.meter.steps == t.accepted
    if sampling.greedy:
        assert t.accepted > 20


def test_limits_and_stops_inside_right_guesses(engine: LlamaEngine) -> None:
    """Each token limit and each stop token ends the text at the same place as without drafts."""
    asked = work(engine)
    text, _ = Run(engine, drafts=False).all_of(asked)
    run = Run(engine, drafts=True)
    for count in range(1, len(text)):
        asked.max_tokens = count
        assert run.all_of(asked) == (text[:count], Finish.LENGTH)
    asked.max_tokens = 40
    for stop in set(text):
        asked.stop_ids = frozenset({stop})
        assert run.all_of(asked) == (text[: text.index(stop)], Finish.STOP)
    assert run.speculation is not None and run.speculation.tiers[Tier.SILVER].accepted > 50


def test_a_cancel_in_the_middle_of_a_drafted_step(engine: LlamaEngine) -> None:
    """The lane is free at once, and the next work on the trunk gets the tokens that it gets alone."""
    asked = work(engine)
    wanted = Run(engine, drafts=False).all_of(asked)[0]
    for tier in (Tier.GOLD, Tier.SILVER):
        asked.tier = tier
        run = Run(engine, drafts=True)
        ticket = run.submit(asked)
        while not run.scheduler.idle:
            planned = run.scheduler.plan(now_ns())
            if planned.step is None:
                continue
            result = engine.step(planned.step)
            run.scheduler.apply(planned, result, 1_000_000, now_ns())
            if result.verified:
                break
        assert not run.scheduler.idle, "no step had drafts"
        run.scheduler.cancel(ticket, now_ns())
        run.collect()
        assert run.ended[ticket] is Finish.CANCELLED
        assert run.scheduler.placer.lanes.leased == 0
        for trunk in run.scheduler.placer.homes.residents:
            assert engine.length(trunk.seq) == trunk.held
        assert run.all_of(asked)[0] == wanted


@pytest.mark.parametrize(("draft", "share"), [("npcd-demo-draft.gguf", 0.01), ("npcd-demo.gguf", 0.95)])
def test_a_draft_model_changes_no_text(engine: LlamaEngine, draft: str, share: float) -> None:
    """With the shipped draft model, and with the model as its own draft, the texts are the same, and the stated share
    of guesses is right."""
    texts = [
        SAID,
        "The wolf goes to the old mill and",
        "My name is Greta. I sell bread at the market. My name is Greta. I",
    ]
    plain = Run(engine, drafts=False)
    wanted = [plain.all_of(work(engine, text)) for text in texts]
    drafter = ModelDrafts(open_draft(SHIPPED_MODEL.with_name(draft), engine, 2), now_ns)
    run = Run(engine, drafts=True, drafter=drafter)
    # Enough time for drafting on any machine.
    planner = replace(run.scheduler.settings.planner, step_ms=10_000.0)
    run.scheduler.settings = replace(run.scheduler.settings, planner=planner)
    assert [run.all_of(work(engine, text)) for text in texts] == wanted
    assert run.speculation is not None
    t = run.speculation.tiers[Tier.SILVER]
    drafter.close()
    assert t.offered > 20
    assert t.accepted >= share * t.offered, f"{t.accepted} of {t.offered}"

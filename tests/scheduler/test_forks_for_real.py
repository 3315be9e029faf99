"""Forks on llama.cpp: the bytes of the trunk, and its replies afterwards."""

from collections.abc import Iterator

import numpy as np
import pytest

from core.choice import Tokens
from core.clock import now_ns
from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Work
from daemon.config import SHIPPED_MODEL
from engines.base import tokens_of
from engines.llama import LlamaEngine, LlamaSettings
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tiers.promises import Promises

STORY = "Mayor Greta rules the village of Ravenmere, and strangers are watched. Mira keeps the tavern by the old road."
MIRA, TWIN = (TrunkKey(NpcKey("", "w", name), "player") for name in ("mira", "twin"))
WHAT_IF = MIRA._replace(fork="what if")


class Told:
    """A scheduler on the shipped model that runs one work after another."""

    def __init__(self) -> None:
        self.engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, 24, 512, 512, 128, flash_attention="off"))
        self.scheduler = Scheduler(self.engine, Promises(), SchedulerSettings(kv=KvSettings(2, 6)))
        self.story = tokens_of(self.engine.vocab.encode(STORY))
        self._tickets = 0

    def tell(self, key: TrunkKey, trunk: Tokens, text: str = "", count: int = 16, keep: bool = False) -> Tokens:
        """The reply to a text. Without a text the trunk is only brought into a sequence."""
        self._tickets += 1
        tail = tokens_of(self.engine.vocab.encode(text))
        work = Work(Tier.SILVER, key, trunk, tail, count if text else 0, keep=keep)
        self.scheduler.submit(self._tickets, work, now_ns())
        made: list[int] = []
        while not self.scheduler.idle:
            planned = self.scheduler.plan(now_ns())
            if planned.step is not None:
                result = self.engine.step(planned.step)
                self.scheduler.apply(planned, result, 0, now_ns())
            for _, what in self.scheduler.take_deliveries():
                made += what.tokens if isinstance(what, Chunk) else ()
        return np.concatenate([trunk, tail, tokens_of(made)])

    def kv(self, key: TrunkKey) -> bytes:
        """A trunk's KV as llama.cpp writes it."""
        trunk = self.scheduler.placer.homes.find(key)
        assert trunk is not None
        return self.engine.store(trunk.seq)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    told = Told()
    yield told
    told.engine.close()


def test_a_trunks_bytes_are_the_same_before_a_fork_and_after_its_discard(told: Told) -> None:
    """The trunk's bytes are equal after any replies on the fork and on forks of other tiers."""
    told.tell(MIRA, told.story)
    before = told.kv(MIRA)
    first = told.tell(WHAT_IF, told.story, " A wolf comes and", keep=True)
    told.tell(WHAT_IF, first, " Then the count", keep=True)
    assert told.kv(WHAT_IF) != before
    told.scheduler.forget(WHAT_IF)
    assert told.scheduler.placer.homes.find(WHAT_IF) is None
    assert told.kv(MIRA) == before


def test_a_committed_fork_says_what_a_trunk_says_that_was_told_the_same(told: Told) -> None:
    """Without flash attention the replies are equal to the token."""
    told.tell(MIRA, told.story)
    tried = told.tell(WHAT_IF, told.story, " A wolf comes and", keep=True)
    told.scheduler.commit(WHAT_IF)
    held = told.scheduler.placer.homes.find(MIRA)
    assert held is not None
    assert held.held >= len(tried) - 1
    after = told.tell(MIRA, tried, " Then the count", 24)
    assert np.array_equal(after, told.tell(TWIN, tried, " Then the count", 24))

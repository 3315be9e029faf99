"""A backend without tokens keeps every law of the port."""

import pytest

from core.words import Tier, TrunkKey
from core.work import Chunk, Work
from engines.base import tokens_of
from tests.engines.conformance import LAWS, PROMISES, Gate, Law, OnTrial, on_trial
from tests.engines.text_backend import TextBackend


def text_backend() -> OnTrial:
    """One that says three pieces to everything."""
    gate = Gate()
    backend = TextBackend(lambda work: [Chunk((n,), 0) for n in range(3)], PROMISES, 2, gate.step)
    return OnTrial(backend, gate, work)


def work(key: TrunkKey, tier: Tier, supersede: object, speaks: bool, due_ns: int) -> Work:
    """A work without a word in it."""
    nothing = tokens_of([])
    return Work(tier, key, nothing, nothing, 3 if speaks else 0, due_ns=due_ns, supersede=supersede)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_it_keeps_every_law_of_the_port(law: Law) -> None:
    """Each on a backend of its own."""
    with on_trial(text_backend()) as trial:
        law(trial)

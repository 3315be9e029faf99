"""A backend without tokens keeps every law of the port, and answers from a script alone."""

import pytest

from core.choice import Choice, Option
from core.script import Script, Section, SectionKind
from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Work
from engines.base import tokens_of
from tests.engines.conformance import LAWS, PROMISES, Gate, Law, OnTrial, Trial, on_trial
from tests.engines.text_backend import TextBackend, in_plain_words

NOTHING = tokens_of([])
SCRIPT = Script(
    (Section(SectionKind.PERSONA, "Mira bakes bread."),), 0, (Section(SectionKind.PLAYER, "Where is the mill?"),)
)


def text_backend() -> OnTrial:
    """One that says three pieces or more to everything."""
    gate = Gate()
    return OnTrial(TextBackend(in_plain_words, PROMISES, 2, gate.step), gate, work)


def work(key: TrunkKey, tier: Tier, supersede: object, speaks: bool, due_ns: int) -> Work:
    """A work of text, without a token in it."""
    return Work(tier, key, NOTHING, NOTHING, 3 if speaks else 0, due_ns=due_ns, supersede=supersede, script=SCRIPT)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_it_keeps_every_law_of_the_port(law: Law) -> None:
    """Each law runs on a backend of its own."""
    with on_trial(text_backend()) as trial:
        law(trial)


def test_it_answers_with_pieces_of_text() -> None:
    """In order, without tokens; a choice also with the labels of its options, which the end repeats."""
    feel = Choice("emotions", (Option(0, "calm", None), Option(1, "afraid", None)))
    act = Choice("actions", (Option(0, "idle", feel), Option(4, "flee", feel)))
    seen = Script(SCRIPT.sections, 0, (Section(SectionKind.SIGHT, "a wolf, flee or be afraid"),))
    key = TrunkKey(NpcKey("", "vale", "mira"), "")
    with on_trial(text_backend()) as trial:
        says, chooses = trial.submit(
            Work(Tier.SILVER, key, NOTHING, NOTHING, 9, script=SCRIPT),
            Work(Tier.GOLD, key, NOTHING, NOTHING, 9, script=seen, options=act),
        )
        assert b"".join(c.text for c in _chunks(trial, says)) == b"You said: Where is the mill? "
        assert [c.text for c in _chunks(trial, chooses)] == [b"flee", b"afraid"]
        assert trial.ended(chooses).labels == (("actions", 4), ("emotions", 1))
        assert not any(c.tokens for ticket in (says, chooses) for c in trial.chunks(ticket))


def _chunks(trial: Trial, ticket: int) -> list[Chunk]:
    trial.ended(ticket)
    return trial.chunks(ticket)

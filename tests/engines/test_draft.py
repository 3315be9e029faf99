"""A draft model follows the texts of the works, guesses their next tokens, and never blocks them."""

import random
from pathlib import Path
from typing import cast

import pytest

from core.clock import MS, now_ns
from core.errors import ConfigError
from engines.base import Asked, Geometry, tokens_of
from engines.draft import ModelDrafts
from engines.llama import LlamaEngine, LlamaSettings, open_draft
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock, next_token
from tests.engines.conftest import MODEL
from tests.engines.shapes import Shape, byte_level, qwen2_like, write

DRAFT = MODEL.with_name("npcd-demo-draft.gguf")
VOCAB = SimVocab(["<|end|>"], size=500)


def small(sequences: int = 3, fail_at: frozenset[int] = frozenset(), cost: SimCost = SimCost()) -> ModelDrafts:
    """A simulated draft model with a few sequences of 200 tokens."""
    clock = VirtualClock()
    engine = SimEngine(Geometry(sequences, 200, 64, 16, VOCAB.size), VOCAB, clock, cost, fail_at=fail_at)
    return ModelDrafts(engine, clock)


def likely(text: list[int], count: int) -> list[int]:
    """The tokens with which the simulated model would continue."""
    made: list[int] = []
    while len(made) < count:
        made.append(next_token([*text, *made], None, 0, VOCAB, 0)[0])
    return made


def engine_of(drafts: ModelDrafts) -> SimEngine:
    """The simulated draft model."""
    return cast(SimEngine, drafts.engine)


def held(drafts: ModelDrafts) -> list[list[int]]:
    """The contents of the draft engine's sequences."""
    engine = engine_of(drafts)
    return [engine.tokens(seq) for seq in range(engine.geometry.sequences)]


def test_guesses_are_what_the_draft_model_would_say_however_the_texts_go_on() -> None:
    """That holds for accepted and refused guesses, for more works than sequences, in turns and side by side: its
    sequences never mix up."""
    rng = random.Random(1)
    drafts = small()
    texts = {n: [rng.randrange(1, 500) for _ in range(rng.randrange(2, 40))] for n in range(7)}
    given = 0
    for _ in range(400):
        who = rng.sample(sorted(texts), rng.randrange(1, 4))
        asked = [Asked(n, tokens_of(texts[n]), rng.randrange(1, 6)) for n in who]
        for a, guess in zip(asked, drafts.draft(asked, 50.0 * MS), strict=True):
            wanted = likely(texts[a.number], a.most)
            assert guess.tolist() == wanted[: len(guess)]
            given += len(guess) == a.most
            right = rng.randrange(len(guess) + 1)
            texts[a.number] += [*guess.tolist()[:right], rng.randrange(1, 500)]
            if len(texts[a.number]) > 150:
                texts[a.number] = texts[a.number][:5]  # a second work of that number would be a bug
                texts[a.number + 100] = texts.pop(a.number)
    assert given > 200


def test_a_text_that_goes_on_is_not_taken_in_again() -> None:
    """After its first guess a work costs the draft model its new tokens and the guesses."""
    drafts = small()
    text = list(range(1, 60))
    drafts.draft([Asked(1, tokens_of(text), 3)], 50.0 * MS)
    guess = likely(text, 3)
    assert held(drafts)[0] == [*text, *guess[:2]]
    engine = engine_of(drafts)
    text += [*guess, 7]
    steps = engine.steps
    assert drafts.draft([Asked(1, tokens_of(text), 2)], 50.0 * MS)[0].tolist() == likely(text, 2)
    assert engine.steps - steps == 2


def test_a_long_text_is_taken_in_by_and_by() -> None:
    """Until its end was read there are no guesses, and no call takes much longer than allowed."""
    drafts = small(cost=SimCost(token_us=100.0))
    text = [1 + n % 400 for n in range(150)]
    calls = 0
    guess: list[int] = []
    while not guess:
        guess = drafts.draft([Asked(1, tokens_of(text), 2)], 3.0 * MS)[0].tolist()
        calls += 1
        assert calls < 12
    assert guess == likely(text, 2)[: len(guess)]
    assert calls >= 3
    drafts.draft([Asked(1, tokens_of([*text, 9]), 16)], 3.0 * MS)
    assert drafts.took_ns <= 3.5 * MS


def test_a_draft_model_that_fails_gives_no_guesses_and_goes_on() -> None:
    """It is rebuilt, and the next guesses are right again."""
    drafts = small(fail_at=frozenset({0}))
    text = [5, 6, 7]
    assert not len(drafts.draft([Asked(1, tokens_of(text), 3)], 50.0 * MS)[0])
    assert drafts.failures == 1
    assert drafts.draft([Asked(1, tokens_of(text), 3)], 50.0 * MS)[0].tolist() == likely(text, 3)


def test_texts_longer_than_its_context_and_too_many_works_get_none() -> None:
    """They are left out silently."""
    drafts = small()
    asked = [Asked(n, tokens_of([n + 1] * 4), 2) for n in range(5)] + [Asked(9, tokens_of([1] * 199), 2)]
    lengths = [len(g) for g in drafts.draft(asked, 50.0 * MS)]
    assert lengths == [2, 2, 2, 0, 0, 0]
    assert [len(g) for g in drafts.draft(asked[-1:], 50.0 * MS)] == [0]


@pytest.fixture(scope="module")
def target() -> LlamaEngine:
    """The shipped model."""
    return LlamaEngine(LlamaSettings(MODEL, sequences=4, context_len=256, threads=1))


def test_the_shipped_draft_guesses_for_the_shipped_model(target: LlamaEngine) -> None:
    """It has the same vocabulary, and guesses the tokens that it generates alone."""
    engine = open_draft(DRAFT, target, 3)
    drafts = ModelDrafts(engine, now_ns)
    text = target.vocab.encode("The village of Ravenmere lies by the old road. Mayor")
    guess = drafts.draft([Asked(1, tokens_of(text), 4)], 1000.0 * MS)[0].tolist()
    assert len(guess) == 4
    again = drafts.draft([Asked(2, tokens_of([*text, *guess[:2]]), 2)], 1000.0 * MS)[0].tolist()
    assert again == guess[2:]
    drafts.close()


def test_a_draft_with_another_vocabulary_is_refused(target: LlamaEngine, tmp_path: Path) -> None:
    """For another size, another special token or another word, the error names the setting and the difference."""
    with pytest.raises(ConfigError, match=r"speculation\.draft_model: .* has another vocabulary .* tokens, the model"):
        open_draft(qwen2_like(tmp_path / "a.gguf"), target, 3)
    words = byte_level("gpt-2", ["<|x|>", "<|y|>"], "<|x|>")
    model = write(tmp_path / "m.gguf", Shape("llama"), words, "")
    engine = LlamaEngine(LlamaSettings(model, sequences=2, context_len=256, threads=1))
    open_draft(model, engine, 2).close()
    other = byte_level("gpt-2", ["<|x|>", "<|y|>"], "<|y|>")
    with pytest.raises(ConfigError, match="special tokens"):
        open_draft(write(tmp_path / "b.gguf", Shape("llama"), other, ""), engine, 2)
    swapped = byte_level("gpt-2", ["<|x|>", "<|y|>"], "<|x|>")
    swapped.texts[300], swapped.texts[301] = swapped.texts[301], swapped.texts[300]
    with pytest.raises(ConfigError, match="token 300 is"):
        open_draft(write(tmp_path / "c.gguf", Shape("llama"), swapped, ""), engine, 2)
    engine.close()

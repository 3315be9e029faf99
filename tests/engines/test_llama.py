"""llama.cpp behind StepEngine keeps the contract, on the shipped model."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from core.errors import ConfigError
from core.work import Sampling
from daemon.config import SHIPPED_MODEL
from engines.base import GREEDY_PICK, Pick, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, likeliest, load_vocab
from prompts.marks import MARKS

PROMPT = "The village of Ravenmere lies by the old road. Mayor Greta rules here, and strangers are watched."


def fill(engine: LlamaEngine, seq: int, tokens: Sequence[int], pick: Pick = GREEDY_PICK) -> int:
    """Empties a sequence, puts tokens into it, and returns the token picked after them."""
    engine.trim(seq, 0)
    return engine.step(StepPlan([Slice(seq, 0, tokens_of(tokens), pick)])).picked[0]


def greedy(engine: LlamaEngine, seq: int, tokens: Sequence[int], count: int) -> list[int]:
    """`count` greedy tokens after a prompt, on an emptied sequence."""
    made = [fill(engine, seq, tokens)]
    while len(made) < count:
        pos = engine.length(seq)
        made.append(engine.step(StepPlan([Slice(seq, pos, tokens_of(made[-1:]), GREEDY_PICK)])).picked[0])
    return made


@pytest.fixture
def prompt(engine: LlamaEngine) -> list[int]:
    """Tokens of a sentence."""
    return engine.vocab.encode(PROMPT)


def test_plain_text_never_yields_a_control_token(engine: LlamaEngine) -> None:
    """Marks in a player's text come out as the same text. The layout's marks are single control tokens."""
    for mark in MARKS.values():
        control = engine.vocab.control(mark)
        assert control >= 0
        tokens = engine.vocab.encode(f"say {mark} now")
        assert control not in tokens
        assert b"".join(engine.vocab.piece(t) for t in tokens).decode() == f"say {mark} now"
        assert engine.vocab.piece(control) == b""
    assert engine.vocab.control("hello") == -1


def test_pieces_give_the_text_back(engine: LlamaEngine) -> None:
    """encode then piece is the identity on any text."""
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(160, 0x3000)])) for _ in range(20))
        assert b"".join(engine.vocab.piece(t) for t in engine.vocab.encode(text)).decode() == text


def test_any_chunking_of_a_prefill_gives_the_same_tokens(engine: LlamaEngine, prompt: list[int]) -> None:
    """A prefill in chunks gives the same tokens as one in a piece."""
    whole = greedy(engine, 3, prompt, 12)
    for size in (1, 5, 16):
        engine.trim(3, 0)
        token = -1
        for at in range(0, len(prompt), size):
            piece = prompt[at : at + size]
            pick = GREEDY_PICK if at + size >= len(prompt) else None
            token = engine.step(StepPlan([Slice(3, at, tokens_of(piece), pick)])).picked[0]
        assert token == whole[0]


def test_twenty_prompts_alone_and_all_at_once_give_the_same_greedy_text(engine: LlamaEngine) -> None:
    """In one batch with others, each sequence gives the text that it gives alone."""
    names = ("Mira", "Greta", "Bran", "the count", "a wolf", "the lich", "Anna", "the priest", "Tom", "a ghoul")
    prompts = [
        engine.vocab.encode(f"{name} walks to the {place} and says that")
        for name in names
        for place in ("tavern", "graveyard")
    ]
    alone = [greedy(engine, 0, p, 16) for p in prompts]
    together: list[list[int]] = [[] for _ in prompts]
    for seq in range(len(prompts)):
        engine.trim(seq, 0)
    feeds = [tokens_of(p) for p in prompts]
    for _ in range(16):
        plan = StepPlan([Slice(seq, engine.length(seq), feed, GREEDY_PICK) for seq, feed in enumerate(feeds)])
        for seq, token in enumerate(engine.step(plan).picked):
            together[seq].append(token)
            feeds[seq] = tokens_of([token])
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    assert same >= 19, "at most one of twenty may differ, by a near-tie"


def test_copy_trim_store_and_load_keep_what_a_sequence_would_say(engine: LlamaEngine, prompt: list[int]) -> None:
    """A copy, a trimmed copy of a longer one, and stored bytes that are loaded elsewhere continue with the same
    tokens."""
    wanted = greedy(engine, 0, prompt, 8)

    def goes_on(seq: int) -> list[int]:
        made = [wanted[0]]
        while len(made) < 8:
            pos = engine.length(seq)
            made.append(engine.step(StepPlan([Slice(seq, pos, tokens_of(made[-1:]), GREEDY_PICK)])).picked[0])
        return made

    fill(engine, 1, prompt)
    engine.copy(1, 2)
    fill(engine, 4, [*prompt, 5, 6, 7])
    engine.copy(4, 5)
    engine.trim(5, len(prompt))
    engine.copy(1, 6)
    blob = engine.store(6)  # stored before any step made the copy real
    assert engine.load(7, blob)
    engine.trim(1, 0)
    for seq in (2, 5, 6, 7):
        assert engine.length(seq) == len(prompt)
        assert goes_on(seq) == wanted


def test_loading_into_the_source_of_a_pending_copy_does_not_change_the_copy(
    engine: LlamaEngine, prompt: list[int]
) -> None:
    """llama.cpp delays copies until the next decode. Bytes that are loaded meanwhile must not get into them."""
    wanted = greedy(engine, 0, prompt, 2)
    fill(engine, 9, prompt[::-1])
    other = engine.store(9)
    fill(engine, 1, prompt)
    engine.copy(1, 2)
    assert engine.load(1, other)
    pos = engine.length(2)
    assert engine.step(StepPlan([Slice(2, pos, tokens_of(wanted[:1]), GREEDY_PICK)])).picked[0] == wanted[1]


def test_bytes_that_are_cut_off_or_foreign_are_refused_and_leave_an_empty_sequence(
    engine: LlamaEngine, prompt: list[int]
) -> None:
    """load() returns False, and the sequence can be used."""
    fill(engine, 1, prompt)
    blob = engine.store(1)
    for bad in (blob[: len(blob) // 2], b"\x00" * 100, b""):
        assert not engine.load(2, bad)
        assert engine.length(2) == 0
    assert fill(engine, 2, prompt) == fill(engine, 3, prompt)


def test_an_allowed_pick_is_the_likeliest_of_the_allowed(engine: LlamaEngine, prompt: list[int]) -> None:
    """The mask is over the same logits. The probability is a softmax over the allowed ones."""
    free = fill(engine, 1, prompt)
    allowed = tokens_of([free, 300, 301, 302])
    engine.trim(1, 0)
    result = engine.step(StepPlan([Slice(1, 0, tokens_of(prompt), Pick(allowed=allowed))]))
    assert result.picked == [free]
    assert 0.25 < result.probability[0] <= 1.0
    without = fill(engine, 1, prompt, Pick(allowed=tokens_of([300, 301, 302])))
    assert without in (300, 301, 302)


def test_likeliest_against_a_dumb_softmax() -> None:
    """The two agree row by row."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20, 7)).astype(np.float32)
    allowed = tokens_of(range(50, 57))
    tokens, sure = likeliest(logits, allowed)
    for row, token, p in zip(logits, tokens, sure, strict=True):
        shares = np.exp(row) / np.exp(row).sum()
        assert token == 50 + int(shares.argmax())
        assert p == pytest.approx(float(shares.max()), rel=1e-4)


def test_seeds_make_sampling_repeatable_and_different(engine: LlamaEngine, prompt: list[int]) -> None:
    """The same seed gives the same text, and ten other seeds give more than one."""

    def sampled(seed: int) -> list[int]:
        sampler = engine.add_sampler(Sampling(temperature=1.0, seed=seed), prompt)
        made = [fill(engine, 1, prompt, Pick(sampler=sampler))]
        for _ in range(10):
            pos = engine.length(1)
            made.append(engine.step(StepPlan([Slice(1, pos, tokens_of(made[-1:]), Pick(sampler=sampler))])).picked[0])
        engine.drop_sampler(sampler)
        return made

    assert sampled(1) == sampled(1)
    assert len({tuple(sampled(seed)) for seed in range(10)}) > 5


def test_a_recent_line_is_not_said_again(engine: LlamaEngine, prompt: list[int]) -> None:
    """A recent line is not repeated from its beginning. Without `unrepeat` it comes word for word."""

    def said(unrepeat: float, before: list[int]) -> list[int]:
        sampling = Sampling(temperature=0.01, repeat_penalty=1.0, unrepeat=unrepeat, seed=1)
        sampler = engine.add_sampler(sampling, before)
        made = [fill(engine, 1, prompt, Pick(sampler=sampler))]
        for _ in range(6):
            pos = engine.length(1)
            made.append(engine.step(StepPlan([Slice(1, pos, tokens_of(made[-1:]), Pick(sampler=sampler))])).picked[0])
        engine.drop_sampler(sampler)
        return made

    mark = prompt[-1]
    line = said(0.0, [])
    assert said(0.0, [mark, *line, mark]) == line
    assert said(50.0, [mark, *line, mark])[0] != line[0]


def test_plans_that_would_abort_the_library_are_bugs_found_here(engine: LlamaEngine) -> None:
    """Gaps, unsorted slices, too many tokens and wrong ids raise an assertion with the reason, and the engine goes
    on."""
    engine.trim(1, 0)
    engine.trim(2, 0)
    bad = [
        [Slice(1, 5, tokens_of([1]))],
        [Slice(2, 0, tokens_of([1])), Slice(1, 0, tokens_of([1]))],
        [Slice(1, 0, tokens_of([1])), Slice(1, 1, tokens_of([1]))],
        [Slice(1, 0, tokens_of([1] * 513))],
        [Slice(1, 0, tokens_of([engine.vocab.size]))],
        [Slice(99, 0, tokens_of([1]))],
        [],
    ]
    for slices in bad:
        with pytest.raises(AssertionError):
            engine.step(StepPlan(slices))
    assert fill(engine, 1, [20, 21]) >= 0


def test_rebuild_empties_everything_and_the_engine_goes_on(engine: LlamaEngine, prompt: list[int]) -> None:
    """That is the state after a failed decode."""
    before = greedy(engine, 0, prompt, 3)
    engine.rebuild()
    assert all(engine.length(seq) == 0 for seq in range(engine.geometry.sequences))
    assert greedy(engine, 0, prompt, 3) == before


def test_the_model_is_freed_once_also_after_a_rebuild_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild fails when the memory is full. Closing then frees the model, and closing again does nothing."""
    small = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, context_len=64, threads=1))
    freed: list[Any] = []
    honest = llama_cpp.llama_model_free

    def free(model: Any) -> None:
        freed.append(model)
        honest(model)

    monkeypatch.setattr(llama_cpp, "llama_model_free", free)
    with monkeypatch.context() as full:
        full.setattr(llama_cpp, "llama_init_from_model", lambda model, params: None)
        with pytest.raises(ConfigError, match="no memory for"):
            small.rebuild()
    small.close()
    small.close()
    assert len(freed) == 1


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"hello", "not a GGUF"), (b"GGUF123", "cut off")]
)
def test_a_file_that_is_no_model_says_so(tmp_path: Path, content: bytes | None, said: str) -> None:
    """The error is one line that names the file."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        LlamaEngine(LlamaSettings(path))
    assert str(path) in str(caught.value)


def test_a_vocabulary_alone_is_the_same_as_with_the_model(engine: LlamaEngine) -> None:
    """load_vocab gives the same tokens without weights."""
    vocab = load_vocab(engine.settings.model)
    assert vocab.encode(PROMPT) == engine.vocab.encode(PROMPT)
    assert vocab.size == engine.vocab.size


def test_kv_kept_as_q8_0_takes_about_half_the_bytes(engine: LlamaEngine, prompt: list[int]) -> None:
    """It answers, stores and loads. Its bytes are of another kind, and plain attention refuses the type by name."""
    small = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=4, context_len=512, batch_len=512, kv_type="q8_0"))
    assert small.kv_kind != engine.kv_kind
    made = greedy(small, 0, prompt, 8)
    blob = small.store(0)
    fill(engine, 0, prompt + made[:-1])
    assert 0.4 < len(blob) / len(engine.store(0)) < 0.6
    assert small.load(1, blob)
    assert greedy(small, 2, prompt, 8) == made
    assert small.length(1) == len(prompt) + 7
    small.close()
    with pytest.raises(ConfigError, match=r"engine\.kv_type"):
        LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=4, kv_type="q8_0", flash_attention="off"))
    with pytest.raises(ConfigError, match=r"engine\.kv_type: 'q4_0', must be f16, q8_0"):
        LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=4, kv_type="q4_0"))

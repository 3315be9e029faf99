"""Models of other families keep the contract of a StepEngine, with their attention, their vocabulary and their
tokenizer."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.choice import END, Node, stage
from core.errors import ConfigError
from core.work import Sampling
from engines.base import GREEDY_PICK, Pick, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings
from tests.engines.shapes import BYTE, CONTROL, FAMILIES, Shape, byte_level, mamba_like, mistral_like, write

LONG = 300  # tokens: more than a window and llama.cpp's reserve beside it
MARKERS = (
    "<s> </s> <unk> <bos> <eos> <|im_start|> <|im_end|> <|eot_id|> <|start_header_id|> <|begin_of_text|> "
    "<start_of_turn> <end_of_turn> <table> [INST] [/INST] <0x0A> <|endoftext|> <pad> </s></s> <</s>/s>"
).split()


@pytest.fixture(scope="module", params=list(FAMILIES))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    """A small engine of each family."""
    path = FAMILIES[request.param](tmp_path_factory.mktemp("shapes") / f"{request.param}.gguf")
    engine = LlamaEngine(LlamaSettings(path, sequences=12, context_len=768, batch_len=768, micro_len=128, threads=1))
    yield engine
    engine.close()


def prompts(engine: LlamaEngine, count: int, length: int) -> list[list[int]]:
    """Random tokens that plain text has."""
    rng = random.Random(1)
    usual = [i for i in range(engine.vocab.size) if engine.vocab.piece(i) and not engine.vocab.is_marker(i)]
    return [rng.choices(usual, k=length) for _ in range(count)]


def greedy(engine: LlamaEngine, seq: int, count: int, token: int) -> list[int]:
    """`count` greedy tokens from the end of a sequence, after `token`."""
    made = [token]
    while len(made) <= count:
        plan = StepPlan([Slice(seq, engine.length(seq), tokens_of(made[-1:]), GREEDY_PICK)])
        made.append(engine.step(plan).picked[0])
    return made[1:]


def fill(engine: LlamaEngine, seq: int, tokens: list[int]) -> int:
    """Puts tokens into an emptied sequence and returns the likeliest next one."""
    engine.trim(seq, 0)
    return engine.step(StepPlan([Slice(seq, 0, tokens_of(tokens), GREEDY_PICK)])).picked[0]


def test_alone_and_in_a_batch_the_words_are_the_same(other: LlamaEngine) -> None:
    """With grouped heads, biases, windows and soft caps, no sequence sees another."""
    texts = prompts(other, 6, 60)
    alone = [greedy(other, 0, 8, fill(other, 0, text)) for text in texts]
    for seq in range(6):
        other.trim(seq, 0)
    feeds = [tokens_of(text) for text in texts]
    together: list[list[int]] = [[] for _ in texts]
    for _ in range(9):
        plan = StepPlan([Slice(seq, other.length(seq), feed, GREEDY_PICK) for seq, feed in enumerate(feeds)])
        for seq, token in enumerate(other.step(plan).picked):
            together[seq].append(token)
            feeds[seq] = tokens_of([token])
    assert [made[1:] for made in together] == alone


def test_a_trunk_longer_than_any_window_is_cut_copied_stored_and_loaded(other: LlamaEngine) -> None:
    """After a cut, a sequence continues as if the longer text had never been. With llama.cpp's small window caches the
    cut would lose the sequence silently: this fails without swa_full.
    """
    trunk, branch = prompts(other, 2, LONG)
    wanted = greedy(other, 0, 6, fill(other, 0, trunk))
    fill(other, 1, trunk + branch)
    other.copy(1, 2)
    other.trim(1, LONG)
    other.trim(2, LONG)
    blob = other.store(1)
    assert other.load(3, blob)
    assert not other.load(4, blob[:-8])
    first = fill(other, 5, trunk)
    for seq in (1, 2, 3):
        assert other.length(seq) == LONG
        assert greedy(other, seq, 6, first) == wanted


def test_text_comes_back_as_it_went_in_and_is_never_a_marker(other: LlamaEngine) -> None:
    """For any text of a player, its tokens are text and their pieces are that text, also when it is cut into parts."""
    rng = random.Random(2)
    vocab = other.vocab
    letters = "ab <>/s[]|_INTim0xA\n  é世🐺"
    texts = ["".join(rng.choice([*letters, *MARKERS, " ", "hello", "go north"]) for _ in range(12)) for _ in range(200)]
    for text in [*MARKERS, *texts, "", " ", "  a", "a ", "\n"]:
        tokens = vocab.encode(text)
        assert b"".join(map(vocab.piece, tokens)).decode() == text
        assert not any(map(vocab.is_marker, tokens))
        assert vocab.eog_ids.isdisjoint(tokens)
        half = len(text) // 2
        parts = vocab.encode(text[:half]) + vocab.encode(text[half:])
        assert b"".join(map(vocab.piece, parts)).decode() == text


def test_markers_are_markers_where_a_template_writes_them(other: LlamaEngine) -> None:
    """Every control token is found by its text, and has no bytes."""
    vocab = other.vocab
    controls = [i for i in range(vocab.size) if vocab.is_marker(i) and not vocab.piece(i)]
    assert controls
    assert vocab.eog_ids <= set(controls)
    for i in controls:
        assert vocab.markup(f"a{vocab.written(i)}").count(i) == 1
        assert vocab.control(vocab.written(i)) == i


def test_a_choice_takes_the_likeliest_of_what_is_allowed(other: LlamaEngine) -> None:
    """It agrees with the whole row of logits, for any size of the vocabulary."""
    rng = random.Random(3)
    text = prompts(other, 1, 20)[0]
    best = fill(other, 0, text)
    allowed = sorted({best, *rng.choices(range(other.vocab.size), k=30)})
    other.trim(0, 0)
    other.trim(1, 0)
    picks = Pick(allowed=tokens_of(allowed)), Pick(allowed=tokens_of([t for t in allowed if t != best]))
    result = other.step(StepPlan([Slice(seq, 0, tokens_of(text), pick) for seq, pick in enumerate(picks)]))
    assert result.picked[0] == best
    assert result.picked[1] in allowed and result.picked[1] != best
    assert 0 < result.probability[0] <= 1


def test_a_draw_knows_the_penalties_of_the_whole_vocabulary(other: LlamaEngine) -> None:
    """The five likeliest tokens were said already. At a high penalty the sixth is drawn, though only one token is kept
    of all."""
    text = prompts(other, 1, 20)[0]

    def pick(how: Pick) -> int:
        other.trim(0, 0)
        return other.step(StepPlan([Slice(0, 0, tokens_of(text), how)])).picked[0]

    best: list[int] = []
    for _ in range(6):
        best.append(pick(Pick(allowed=tokens_of([t for t in range(other.vocab.size) if t not in best]))))
    sampler = other.add_sampler(Sampling(temperature=0.7, top_k=1, repeat_penalty=1e6), best[:5])
    assert pick(Pick(sampler=sampler)) == best[5]
    other.drop_sampler(sampler)


@pytest.mark.parametrize("lead", ["", " "])
def test_words_that_share_tokens_can_all_be_chosen(other: LlamaEngine, lead: str) -> None:
    """For words of one and of many tokens, words that begin like others, and the text after them, every way is open,
    and its tokens are those of the whole answer's text.
    """
    vocab = other.vocab
    words = ["go", "go north", "go #west", "attack", "a", "nod", "no", "zz top"]
    feels = ["calm", "calmer", "sad"]
    over = vocab.encode("\n")[0]
    closed = Node(tokens_of([over]), [END], [None])
    feel = stage("feel", [(i, vocab.encode(f" {f}"), closed) for i, f in enumerate(feels)])
    whom = stage("whom", [(i, vocab.encode(t), feel) for i, t in enumerate((" nobody", " #1", " #2"))])
    act = stage("act", [(i, vocab.encode(lead + w), whom) for i, w in enumerate(words)])
    for i, word in enumerate(words):
        for j, target in enumerate((" nobody", " #1", " #2")):
            for k, felt in enumerate(feels):
                tokens = [*vocab.encode(lead + word), *vocab.encode(target), *vocab.encode(f" {felt}"), over]
                node = act
                labels: dict[str, int] = {}
                for token in tokens:
                    node, label = node.step(token)
                    labels.update([label] if label else [])
                assert node.complete
                assert labels == {"act": i, "whom": j, "feel": k}
                assert b"".join(map(vocab.piece, tokens)).decode() == f"{lead}{word}{target} {felt}\n"
    assert act.longest >= 4


def test_added_tokens_that_are_no_control_tokens_are_kept_from_players_too(tmp_path: Path) -> None:
    """Many files call their markers "user defined", and llama.cpp finds such tokens in any text."""
    tokens = byte_level("qwen2", ["<|im_start|>", "<|im_end|>", "<think>"], "<|im_end|>")
    tokens.types[tokens.texts.index("<|im_start|>")] = 4
    tokens.types[tokens.texts.index("<think>")] = 4
    engine = LlamaEngine(
        LlamaSettings(write(tmp_path / "m.gguf", Shape("qwen2", biases=True), tokens, ""), sequences=2)
    )
    vocab = engine.vocab
    start = tokens.texts.index("<|im_start|>")
    assert vocab.markup("<|im_start|>user")[0] == start
    assert vocab.is_marker(start) and vocab.piece(start) == b"<|im_start|>"
    for text in ("<|im_start|>", "<<|im_start|>>", "a<think><think><|im_start|> b", "<th<think>ink>"):
        found = vocab.encode(text)
        assert not any(map(vocab.is_marker, found))
        assert b"".join(map(vocab.piece, found)).decode() == text
    engine.close()


def test_long_tokens_come_out_whole(tmp_path: Path) -> None:
    """Some vocabularies have tokens of hundreds of bytes (runs of spaces)."""
    tokens = byte_level("qwen2", ["<|im_end|>"], "<|im_end|>")
    at = tokens.texts.index("Ġthe")
    tokens.texts[at] = "x" * 700
    engine = LlamaEngine(
        LlamaSettings(write(tmp_path / "m.gguf", Shape("qwen2", biases=True), tokens, ""), sequences=2)
    )
    assert engine.vocab.piece(at) == b"x" * 700
    engine.close()


def test_bytes_and_control_tokens_are_told_apart(tmp_path: Path) -> None:
    """A sentencepiece vocabulary falls back on bytes for characters without a piece; those are text."""
    path = mistral_like(tmp_path / "m.gguf")
    engine = LlamaEngine(LlamaSettings(path, sequences=2))
    tokens = engine.vocab.encode("世")
    assert len(tokens) == 3
    assert [engine.vocab.piece(t) for t in tokens] == ["世".encode()[i : i + 1] for i in range(3)]
    assert not any(map(engine.vocab.is_marker, tokens))
    assert (BYTE, CONTROL) == (6, 3)
    engine.close()


def test_a_model_that_cannot_be_cut_back_is_refused(tmp_path: Path) -> None:
    """The error comes at the start in words, and not at the first intent."""
    with pytest.raises(ConfigError, match="recurrent"):
        LlamaEngine(LlamaSettings(mamba_like(tmp_path / "m.gguf"), sequences=2))

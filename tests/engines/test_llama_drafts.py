"""Drafts on llama.cpp are verified in one step, and drawn tokens keep the model's distribution."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from core.choice import Tokens
from core.work import Sampling
from engines.base import GREEDY_PICK, Pick, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, step
from models.play import Played
from tests.engines.conftest import MODEL

PROMPT = (
    "<|world|>The wolf goes to the old mill and the priest goes to the old mill and the count<|player|>"
    "Tell me about the mill and the road.<|say|>"
)
SAMPLING = Sampling(temperature=1.1, top_k=12, top_p=0.9, min_p=0.02, repeat_penalty=1.0)
DRAWS = 4800
LIKELY = tuple[int, ...]


def greedy(engine: LlamaEngine, seq: int, tokens: Sequence[int], count: int) -> list[int]:
    """`count` greedy tokens after a prompt, one a step, on an emptied sequence."""
    engine.trim(seq, 0)
    made = [engine.step(StepPlan([Slice(seq, 0, tokens_of(tokens), GREEDY_PICK)])).picked[0]]
    while len(made) < count:
        pos = engine.length(seq)
        made.append(engine.step(StepPlan([Slice(seq, pos, tokens_of(made[-1:]), GREEDY_PICK)])).picked[0])
    return made


def test_right_guesses_and_wrong_ones_give_the_greedy_text(engine: LlamaEngine) -> None:
    """In one step, beside works with other samplers, wrong guesses are cut off and the text goes on."""
    prompt = engine.vocab.markup(PROMPT)
    wanted = greedy(engine, 0, prompt, 12)
    assert len(set(wanted[:6])) == 6
    allowed = tokens_of([wanted[1], wanted[0]])
    for right in range(5):
        guesses = [*wanted[1 : 1 + right], *([(wanted[1 + right] + 1) % engine.vocab.size] if right < 4 else [])]
        for seq in (3, 4, 5, 9):
            engine.trim(seq, 0)
        engine.step(StepPlan([Slice(seq, 0, tokens_of(prompt)) for seq in (3, 4, 5, 9)]))
        result = engine.step(
            StepPlan(
                [
                    Slice(3, len(prompt), tokens_of(wanted[:1]), GREEDY_PICK),
                    Slice(4, len(prompt), tokens_of([wanted[0], *guesses]), GREEDY_PICK, len(guesses)),
                    Slice(5, len(prompt), tokens_of(wanted[:1]), Pick(allowed=allowed)),
                    Slice(9, len(prompt), tokens_of([wanted[0], *guesses[::-1]]), GREEDY_PICK, len(guesses)),
                ]
            )
        )
        assert result.verified[1] == wanted[1 : 2 + right]
        assert result.picked == [wanted[1], wanted[1], wanted[1], wanted[1]]
        assert result.probability[2] > 0.5
        engine.trim(4, len(prompt) + 1 + right)
        more = engine.step(StepPlan([Slice(4, len(prompt) + 1 + right, tokens_of([wanted[1 + right]]), GREEDY_PICK)]))
        assert more.picked == [wanted[2 + right]]


@pytest.fixture
def exact() -> Iterator[LlamaEngine]:
    """Alone and in a slice a token's logits differ by up to 0.03 with the file's bf16 weights, and by 0.004 with
    f16."""
    settings = LlamaSettings(MODEL, sequences=4, context_len=256, flash_attention="off", weights="f16")
    engine = LlamaEngine(settings)
    yield engine
    engine.close()


def test_a_seeded_chain_draws_what_it_would_without_guesses(exact: LlamaEngine) -> None:
    """With all penalties, each token costs one draw, in order, so guesses change only the number of steps."""
    engine = exact
    prompt = engine.vocab.markup(PROMPT)
    longest = same = 0
    for seed in range(30):
        sampling = Sampling(temperature=0.8, unrepeat=1.0, seed=seed)

        def drawn(guess: Sequence[int], seed: Sampling = sampling) -> tuple[list[int], int]:
            sampler = engine.add_sampler(seed, prompt)
            engine.trim(2, 0)
            made = [engine.step(StepPlan([Slice(2, 0, tokens_of(prompt), Pick(sampler=sampler))])).picked[0]]
            most = 1
            while len(made) < 12:
                pos, drafts = len(prompt) + len(made) - 1, list(guess[len(made) : len(made) + 3])
                step = StepPlan([Slice(2, pos, tokens_of([made[-1], *drafts]), Pick(sampler=sampler), len(drafts))])
                result = engine.step(step)
                made += result.verified[0] if drafts else result.picked
                most = max(most, len(result.verified.get(0, ())))
                engine.trim(2, len(prompt) + len(made) - 1)
            engine.drop_sampler(sampler)
            return made[:12], most

        plain, _ = drawn([])
        wrong = [(t + 1) % engine.vocab.size if i % 3 == 0 else t for i, t in enumerate(plain)]
        for guess in (plain, wrong):
            again, most = drawn(guess)
            same += again == plain
            longest = max(longest, most)
    assert longest == 4
    assert same >= 56, f"{same} of 60: hardly ever is a draw on the edge between two tokens"


def shares(scores: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
    """The probability of each token under top-k, top-p, min-p and temperature, written a second time."""
    order = np.argsort(-scores)[: sampling.top_k]
    p = np.exp(scores[order] - scores[order[0]])
    p /= p.sum()
    kept = int(np.searchsorted(p.cumsum(), sampling.top_p) + 1)
    order, p = order[:kept], p[:kept]
    order = order[p >= sampling.min_p * p[0]]
    p = np.exp((scores[order] - scores[order[0]]) / sampling.temperature)
    return dict(zip(order.tolist(), (p / p.sum()).tolist(), strict=True))


def expected(prompt: list[int], drafts: list[int]) -> dict[LIKELY, float]:
    """The expected frequency of each answer of a drafted step: it ends at a wrong token, or with one more after all
    guesses."""
    out: dict[LIKELY, float] = {}
    with Played(str(MODEL), context_len=512, threads=1) as alone:
        sure, before = 1.0, list(prompt)
        for n in range(len(drafts) + 1):
            here = shares(alone.logits(before)[0], SAMPLING)
            for token, p in here.items():
                if n == len(drafts) or token != drafts[n]:
                    out[(*drafts[:n], token)] = sure * p
            if n < len(drafts):
                sure *= here.get(drafts[n], 0.0)
                before.append(drafts[n])
    return out


def draw(engine: LlamaEngine, prompt: list[int], drafts: list[int]) -> Counter[LIKELY]:
    """The answers of many seeds to one drafted step, 24 sequences at a time."""
    count = engine.geometry.sequences
    for seq in range(count):
        engine.trim(seq, 0)
    engine.step(StepPlan([Slice(0, 0, tokens_of(prompt[:-1]))]))
    for seq in range(1, count):
        engine.copy(0, seq)
    answers: Counter[LIKELY] = Counter()
    tokens = tokens_of([prompt[-1], *drafts])
    for turn in range(DRAWS // count):
        chains = [engine.add_sampler(Sampling(*_fields(turn * count + seq)), []) for seq in range(count)]
        plan = [Slice(seq, len(prompt) - 1, tokens, Pick(sampler=chains[seq]), len(drafts)) for seq in range(count)]
        answers.update(tuple(made) for made in engine.step(StepPlan(plan)).verified.values())
        for seq in range(count):
            engine.trim(seq, len(prompt) - 1)
            engine.drop_sampler(chains[seq])
    return answers


def _fields(seed: int) -> tuple[float, int, float, float, float, int, float, float, int, int]:
    s = SAMPLING
    return s.temperature, s.top_k, s.top_p, s.min_p, s.repeat_penalty, 0, 0.0, 2.0, 0, seed * 7919 + 1


def chi_square(answers: Counter[LIKELY], wanted: dict[LIKELY, float]) -> tuple[float, float]:
    """Pearson's statistic with rare answers taken together, and the value that it exceeds once in 10,000 times."""
    assert answers.keys() <= wanted.keys(), f"drawn against the filters: {answers.keys() - wanted.keys()}"
    total = answers.total()
    often = {a: p for a, p in wanted.items() if p * total >= 5}
    pairs = [(answers[a], p * total) for a, p in often.items()]
    rest = 1.0 - sum(often.values())
    if rest * total >= 1:
        pairs.append((total - sum(answers[a] for a in often), rest * total))
    df = len(pairs) - 1
    # Wilson and Hilferty's approximation of the quantile.
    bound = df * (1 - 2 / (9 * df) + 3.719 * (2 / (9 * df)) ** 0.5) ** 3
    return sum((seen - p) ** 2 / p for seen, p in pairs), bound


def accept_likely(drafts: Sequence[int] | Tokens, pick: Callable[[int], int]) -> list[int]:
    """A fault: a guess that was not drawn is tried a second time."""
    tokens = [pick(0)]
    for right, guess in enumerate(drafts, 1):
        if tokens[-1] != guess:
            tokens[-1] = pick(right - 1)
        if tokens[-1] != guess:
            break
        tokens.append(pick(right))
    return tokens


@pytest.mark.parametrize("likely", [0, 2])
def test_tokens_drawn_with_guesses_have_the_models_distribution(engine: LlamaEngine, likely: int) -> None:
    """4,800 seeds answer one drafted step with the frequencies of the filtered logits, for likely and for other
    guesses."""
    prompt = engine.vocab.markup(PROMPT)
    drafts = guesses(prompt, likely)
    wanted = expected(prompt, drafts)
    assert sum(wanted.values()) == pytest.approx(1.0)
    answers = draw(engine, prompt, drafts)
    assert len({len(a) for a in answers}) == 3, "every number of right guesses comes up"
    found, bound = chi_square(answers, wanted)
    assert found < bound, f"chi-square {found:.1f} > {bound:.1f}"


def test_a_biased_verification_is_found(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution test can fail: guesses with a second chance come too often."""
    prompt = engine.vocab.markup(PROMPT)
    drafts = guesses(prompt, 0)
    monkeypatch.setattr(step, "verify", accept_likely)
    found, bound = chi_square(draw(engine, prompt, drafts), expected(prompt, drafts))
    assert found > bound


def guesses(prompt: list[int], likely: int) -> list[int]:
    """Two guesses: each is the likeliest token but for `likely` others."""
    drafts: list[int] = []
    with Played(str(MODEL), context_len=512, threads=1) as alone:
        for _ in range(2):
            drafts.append(
                sorted((p, t) for t, p in shares(alone.logits([*prompt, *drafts])[0], SAMPLING).items())[-1 - likely][1]
            )
    return drafts

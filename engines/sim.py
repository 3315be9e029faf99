"""A StepEngine without a model: a stated cost per step on a virtual clock, for tests and capacity planning.

The next token of a sequence is a pure function of all tokens in it and of what they were computed with, so a scheduler
that mixes up two sequences or adapters, trims one too far or prefills one twice changes what comes out. The cost has
the terms that were measured on llama.cpp: micro-batches (split as llama.cpp splits them), tokens, and tokens times
context.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np

from core.choice import Tokens
from core.clock import US
from core.errors import EngineFailed
from core.work import Sampling
from engines.base import Asked, Geometry, KvKind, Pick, StepPlan, StepResult, invoked_at, micro_batches, verify


class VirtualClock:
    """Time that only moves when told to."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def __call__(self) -> int:
        return self._now_ns

    def advance(self, by_ns: int) -> None:
        """Moves time forward."""
        assert by_ns >= 0, "time does not go back"
        self._now_ns += by_ns


@dataclass(frozen=True, slots=True)
class SimCost:
    """The time of a step in microseconds: fixed, per micro-batch, per token, per 1,000 token x context products.

    `pass_us`: a micro-batch reads the weights while it computes its tokens; the longer of the two counts. With
    `one_pass` all sequences of a step share one micro-batch, as with paged attention. `slice_us` is for each sequence
    in the step, `kilo_read_us` for each 1,000 tokens of its context that are read. `copy_...` is one sequence made
    equal to another, `move_...` one stored or loaded, and for each token of it.
    """

    step_us: float = 200.0
    micro_us: float = 250.0
    token_us: float = 45.0
    kilo_context_us: float = 40.0 / 1000.0
    pass_us: float = 0.0
    one_pass: bool = False
    slice_us: float = 0.0
    kilo_read_us: float = 0.0
    copy_us: float = 0.0
    copy_token_us: float = 0.0
    move_us: float = 0.0
    move_token_us: float = 0.0

    def step_ns(self, micros: Sequence[tuple[int, int]], slices: int = 0, read: int = 0) -> int:
        """Cost of a step whose micro-batches are (tokens, padded context), of so many sequences, whose contexts are
        `read` tokens together.
        """
        us = self.step_us + self.slice_us * slices + self.kilo_read_us * read / 1000.0
        for tokens, context in micros:
            us += self.kilo_context_us * tokens * context / 1000.0
        if self.one_pass and micros:
            micros = [(sum(tokens for tokens, _ in micros), 0)]
        for tokens, _ in micros:
            us += self.micro_us + max(self.pass_us, self.token_us * tokens)
        return round(us * US)

    def copy_ns(self, tokens: int) -> int:
        """Cost of making a sequence equal to one of so many tokens."""
        return round((self.copy_us + self.copy_token_us * tokens) * US)

    def move_ns(self, tokens: int) -> int:
        """Cost of storing or loading a sequence of so many tokens."""
        return round((self.move_us + self.move_token_us * tokens) * US)


class SimVocab:
    """Words as tokens, numbered as they are first seen. Control tokens are those of npcd's own layout."""

    def __init__(self, controls: Sequence[str], size: int = 4096, end: str = "<|end|>") -> None:
        self.size = size
        self.controls = {text: i for i, text in enumerate(controls)}
        self.eog_ids = frozenset({self.controls[end]} if end in self.controls else ())
        self.bos_id = -1
        self.bos_text = self.eos_text = ""
        self._written = {i: text for text, i in self.controls.items()}
        self._markup = re.compile("|".join(map(re.escape, controls))) if controls else None
        self._words: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """One token per word; when numbers run out, words share them."""
        with self._lock:
            return [self._number(word) for word in text.split()]

    def markup(self, text: str) -> list[int]:
        """One token per word and control token."""
        if self._markup is None:
            return self.encode(text)
        out, at = [], 0
        for found in self._markup.finditer(text):
            out += [*self.encode(text[at : found.start()]), self.controls[found.group()]]
            at = found.end()
        return out + self.encode(text[at:])

    def written(self, token: int) -> str:
        """A control token's text."""
        return self._written.get(token, "")

    def is_marker(self, token: int) -> bool:
        """True if it is a control token."""
        return token in self._written

    def whole(self, text: str) -> int:
        """The same as control(): words are never markers."""
        return self.controls.get(text, -1)

    def adopt(self, texts: Sequence[str]) -> None:
        """Changes nothing: words are never markers."""

    def control(self, text: str) -> int:
        """The id of a control token, or -1."""
        return self.controls.get(text, -1)

    def piece(self, token: int) -> bytes:
        """The word with a leading space."""
        if token < len(self.controls):
            return b""
        return f" {self._texts.get(token, f'w{token}')}".encode()

    def _number(self, word: str) -> int:
        number = self._words.get(word)
        if number is None:
            free = self.size - len(self.controls)
            at = len(self._words) if len(self._words) < free else crc32(word.encode()) % free
            number = len(self.controls) + at
            self._words[word] = number
            self._texts.setdefault(number, word)
        return number


class SimEngine:
    """Sequences as rows of one array. `fail_at` names steps (from 0) that raise EngineFailed instead."""

    def __init__(
        self,
        geometry: Geometry,
        vocab: SimVocab,
        clock: VirtualClock,
        cost: SimCost = SimCost(),
        end_every: int = 0,
        fail_at: frozenset[int] = frozenset(),
    ) -> None:
        assert geometry.vocab_len == vocab.size <= 1 << 16, "geometry and vocabulary must agree"
        self.geometry = geometry
        self.vocab = vocab
        self.cost = cost
        self.steps = 0
        self.adapters: deque[str] = deque(maxlen=1000)  # of the last steps
        self.invocations: dict[str, tuple[int, ...]] = {}  # by adapter
        self._clock = clock
        self._end_every = end_every
        self._fail_at = fail_at
        # Row s holds lengths[s] tokens. Rows in one array, because a hash of a whole sequence is then a hash of bytes
        # that lie there already.
        self._held = np.zeros((geometry.sequences, geometry.context_len), np.int32)
        self.lengths = [0] * geometry.sequences
        self._samplers: dict[int, int] = {}
        self._next_sampler = 0

    @property
    def name(self) -> str:
        """Says what it is."""
        return "sim"

    @property
    def kv_kind(self) -> KvKind:
        """Tokens are all it keeps."""
        return KvKind("sim", "tokens", "none", str(self.vocab.size))

    @property
    def clock(self) -> VirtualClock:
        """The clock this engine moves."""
        return self._clock

    def step(self, plan: StepPlan) -> StepResult:
        """Appends the slices, moves the clock by the cost, picks tokens by hashing each whole sequence."""
        assert plan.slices, "an empty step"
        self.adapters.append(plan.adapter)
        assert plan.tokens <= self.geometry.batch_len, "a step takes at most batch_len tokens"
        numbers = [s.seq for s in plan.slices]
        assert numbers == sorted(set(numbers)), "slices must be sorted by sequence, none twice"
        read = sum(s.pos + len(s.tokens) for s in plan.slices)
        micros = micro_batches(plan.slices, self.geometry.micro_len)
        self._clock.advance(self.cost.step_ns(micros, len(plan.slices), read))
        step, self.steps = self.steps, self.steps + 1
        if step in self._fail_at:
            raise EngineFailed(f"simulated failure of step {step}")
        picked, probability = [], []
        verified: dict[int, list[int]] = {}
        for i, s in enumerate(plan.slices):
            length = self.lengths[s.seq]
            assert s.pos == length, f"sequence {s.seq} holds {length} tokens, the plan says {s.pos}"
            assert len(s.tokens), "an empty slice"
            grown = length + len(s.tokens)
            assert grown <= self.geometry.context_len, f"sequence {s.seq} outgrew its context"
            held = self._held[s.seq]
            held[length:grown] = computed(s.tokens, plan.adapter)
            self.lengths[s.seq] = grown
            if s.drafts:
                assert s.pick is not None and s.pick.allowed is None, "a choice is not drafted"
                verified[i] = verify(s.tokens[-s.drafts :], partial(self._after, held[:grown], s.drafts, s.pick))
                picked.append(verified[i][0])
                probability.append(0.0)
                continue
            token, sure = self._next(held[:grown], s.pick) if s.pick else (-1, 0.0)
            picked.append(token)
            probability.append(sure)
        return StepResult(picked, probability, verified=verified)

    def copy(self, src: int, dst: int) -> None:
        """Makes dst equal to src."""
        assert src != dst, "a sequence cannot be copied onto itself"
        length = self.lengths[dst] = self.lengths[src]
        self._clock.advance(self.cost.copy_ns(length))
        self._held[dst, :length] = self._held[src, :length]

    def trim(self, seq: int, length: int) -> None:
        """Cuts the sequence back."""
        assert 0 <= length <= self.lengths[seq], f"sequence {seq} holds {self.lengths[seq]} tokens"
        self.lengths[seq] = length

    def length(self, seq: int) -> int:
        """Tokens in the sequence."""
        return self.lengths[seq]

    def store(self, seq: int) -> bytes:
        """The tokens as bytes."""
        self._clock.advance(self.cost.move_ns(self.lengths[seq]))
        return self._held[seq, : self.lengths[seq]].tobytes()

    def load(self, seq: int, blob: bytes) -> bool:
        """Takes bytes that store() gave; refuses a cut-off length."""
        self.lengths[seq] = 0
        if len(blob) % 4:
            return False
        length = self.lengths[seq] = len(blob) // 4
        self._held[seq, :length] = np.frombuffer(blob, np.int32)
        self._clock.advance(self.cost.move_ns(length))
        return True

    def adapter_from(self, adapter: str, tail: Tokens) -> int:
        """As llama.cpp's adapters: at the invocation, if there is one."""
        return invoked_at(tail, self.invocations.get(adapter, ()))

    def adapter_counts(self) -> dict[str, int]:
        """Nothing is loaded here."""
        return {}

    def add_sampler(self, sampling: Sampling, recent: Sequence[int]) -> int:
        """A seed to mix into the hash."""
        handle = self._next_sampler
        self._next_sampler += 1
        self._samplers[handle] = sampling.seed
        return handle

    def drop_sampler(self, sampler: int) -> None:
        """Forgets the seed."""
        del self._samplers[sampler]

    def rebuild(self) -> None:
        """Empties every sequence."""
        self.lengths = [0] * self.geometry.sequences

    def close(self) -> None:
        """Nothing to free."""

    @property
    def samplers_open(self) -> int:
        """Chains that were added and not dropped."""
        return len(self._samplers)

    def tokens(self, seq: int) -> list[int]:
        """The tokens of the sequence."""
        held: list[int] = self.array(seq).tolist()
        return held

    def array(self, seq: int) -> Tokens:
        """The tokens of the sequence, as a view that the next step may change."""
        return self._held[seq, : self.lengths[seq]]

    def _after(self, held: Tokens, drafts: int, pick: Pick, right: int) -> int:
        """The token after the first `right` of the drafts that `held` ends with."""
        return self._next(held[: len(held) - drafts + right], pick)[0]

    def _next(self, held: Tokens, pick: Pick) -> tuple[int, float]:
        seed = self._samplers[pick.sampler] if pick.sampler >= 0 else 0
        return next_token(held, pick.allowed, seed, self.vocab, self._end_every)


class ForcedDrafts:
    """A Drafter of a SimEngine that is right with a stated probability per token, and takes a stated time per token.

    The text alone decides if a guess is right.
    """

    def __init__(self, engine: SimEngine, acceptance: float, token_us: float = 0.0, end_every: int = 0) -> None:
        self.took_ns = 0
        self._engine = engine
        self._right = round(acceptance * 10_000)
        self._token_ns = round(token_us * US)
        self._end_every = end_every

    def draft(self, asked: Sequence[Asked], room_ns: float) -> list[Tokens]:
        """As many guesses as are wished for and fit; the works are guessed for side by side, as one model would."""
        most = max(a.most for a in asked)
        if self._token_ns:
            most = min(most, int(room_ns / self._token_ns))
        self.took_ns = most * self._token_ns
        self._engine.clock.advance(self.took_ns)
        return [self._guess(a, most) for a in asked]

    def forget(self) -> None:
        """Knows no works."""

    def close(self) -> None:
        """Holds nothing."""

    def _guess(self, asked: Asked, most: int) -> Tokens:
        vocab, length = self._engine.vocab, len(asked.text)
        held = np.concatenate([asked.text, np.zeros(min(asked.most, most), np.int32)])
        for at in range(length, len(held)):
            token, _ = next_token(held[:at], None, asked.seed, vocab, self._end_every)
            right = crc32(held[:at].tobytes(), 77) % 10_000 < self._right
            held[at] = token if right else (token + 1) % vocab.size
        return held[length:]


def computed(tokens: Tokens, adapter: str) -> Tokens:
    """The tokens as a sequence holds them after an adapter: the KV differs, so these differ."""
    if not adapter:
        return tokens
    return tokens + np.int32((crc32(adapter.encode()) % 0x7FFE + 1) << 16)


def next_token(
    held: Sequence[int] | Tokens, allowed: Tokens | None, seed: int, vocab: SimVocab, end_every: int
) -> tuple[int, float]:
    """The token that follows `held`, and its probability: the simulation's whole "model"."""
    draw = crc32(np.asarray(held, np.int32).tobytes(), seed & 0xFFFFFFFF)
    if allowed is not None:
        return int(allowed[draw % len(allowed)]), 1.0 / len(allowed)
    if end_every and draw % end_every == 0 and vocab.eog_ids:
        return min(vocab.eog_ids), 0.0
    first = len(vocab.controls)
    return first + draw % (vocab.size - first), 0.0

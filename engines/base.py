"""The contract between the scheduler and whatever runs the model.

A StepEngine holds a fixed number of sequences, each an independent KV stream. One step decodes the slices of a plan in
one call. Everything here is called on one thread, the engine thread, except Vocab, whose methods any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from core.choice import Tokens
from core.clock import Clock
from core.work import Sampling

PAD_LEN = 256  # llama.cpp pads the context of a micro-batch to this


@dataclass(frozen=True, slots=True)
class Geometry:
    """Bounds of an engine: sequences, tokens per sequence, tokens per step, tokens per micro-batch, vocabulary size.

    A prefill chunk of fewer than `chunk_min` tokens costs more than it saves.
    """

    sequences: int
    context_len: int
    batch_len: int
    micro_len: int
    vocab_len: int
    chunk_min: int = 0


@dataclass(frozen=True, slots=True)
class KvKind:
    """The origin of stored KV bytes, besides tokens and adapter: the model's hash, the KV type, the attention setting,
    and the shape of a token's KV with the library that wrote it.
    """

    model: str
    kv_type: str
    attention: str
    shape: str


@dataclass(frozen=True, slots=True)
class Pick:
    """How the token after a slice is chosen.

    `allowed` not None: the likeliest of these ids. Else `sampler` >= 0: drawn by that native sampler chain. Else: the
    likeliest of all.
    """

    allowed: Tokens | None = None
    sampler: int = -1


GREEDY_PICK = Pick()


@dataclass(slots=True)
class Slice:
    """Tokens to append to one sequence in one step, beginning at position `pos` (the sequence's present length).

    The last `drafts` of them are guesses, to be verified by `pick` (never by one with `allowed`).
    """

    seq: int
    pos: int
    tokens: Tokens
    pick: Pick | None = None
    drafts: int = 0


@dataclass(slots=True)
class StepPlan:
    """One step, with at most one adapter. Invariant: slices are sorted by seq, no seq twice, token sum <= batch_len.

    `onward`, when given, says that this step goes on with the one before: the same sequences, each with one more token
    (those of `onward`, in order; the slices say it too), picked in the same ways. Engines may make use of that.
    """

    slices: list[Slice] = field(default_factory=list)
    adapter: str = ""
    onward: Tokens | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the step decodes."""
        return sum(len(s.tokens) for s in self.slices)


@dataclass(slots=True)
class StepResult:
    """The result of a step: per slice the picked token (-1: none was asked for) and its probability among the allowed
    ones (0.0 where it was not computed: only `allowed` picks compute it).

    `verified`, by the number of each slice with drafts: all tokens that were picked there, in order. They are the
    drafts that were right and then one more, so the sequence now holds 1 + drafts - len(verified) tokens too many:
    whoever planned the step cuts them off.
    """

    picked: list[int]
    probability: list[float]
    verified: dict[int, list[int]] = field(default_factory=dict)


def verify(drafts: Sequence[int] | Tokens, pick: Callable[[int], int]) -> list[int]:
    """The tokens that a sequence goes on with, of which `drafts` were guessed; `pick(n)` picks after n right drafts.

    It goes on while what is picked is what was guessed. That is rejection sampling for a guess without randomness: a
    drawn token is the draft with probability p(draft), and given that it is not, it is distributed as p without the
    draft. Each token costs one pick, in order, so a seeded chain even draws what it would have drawn without drafts.
    """
    tokens = [pick(0)]
    for right, draft in enumerate(drafts, 1):
        if tokens[-1] != draft:
            break
        tokens.append(pick(right))
    return tokens


class Asked(NamedTuple):
    """A wish for `most` guesses at what follows `text`, all tokens of one work so far.

    `number` names the work; its text only grows. `seed` is what its tokens are drawn with (0: greedy).
    """

    number: int
    text: Tokens
    most: int
    seed: int = 0


class Drafter(Protocol):
    """Guesses tokens. Called on the engine thread, before a step is planned."""

    took_ns: int
    """The time of the last call; 0 where it is not worth a look at the clock."""

    def draft(self, asked: Sequence[Asked], room_ns: float) -> list[Tokens]:
        """At most `most` tokens for each, or none; takes about `room_ns` at most. Never raises: a guess may fail."""

    def forget(self) -> None:
        """Forgets all works: those that it is asked for next may have the same numbers."""

    def close(self) -> None:
        """Frees what it holds; nothing may be called after."""


class Vocab(Protocol):
    """The model's tokens. Safe to call from any thread."""

    @property
    def size(self) -> int:
        """How many tokens there are."""

    @property
    def eog_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""

    @property
    def bos_id(self) -> int:
        """The token every text must begin with, or -1 when the model wants none."""

    @property
    def bos_text(self) -> str:
        """How the token that begins a text is written in templates; empty when the model has none."""

    @property
    def eos_text(self) -> str:
        """The same for the token that ends one."""

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, as it continues other text: their pieces are exactly the text. Never yields a control
        token, whatever the text says.
        """

    def markup(self, text: str) -> list[int]:
        """Tokens of a template's own text, as it continues other text: control tokens written in it are meant."""

    def written(self, token: int) -> str:
        """How a control token is written in templates."""

    def whole(self, text: str) -> int:
        """The id of the token that is written exactly so, of whatever kind; -1 when there is none. Looks at all."""

    def is_marker(self, token: int) -> bool:
        """True if it is a control token, or one that was added to the vocabulary whole, or adopted."""

    def adopt(self, texts: Sequence[str]) -> None:
        """Makes markers of the tokens that are written so and that the vocabulary calls ordinary text. Called once,
        before anything is encoded.
        """

    def control(self, text: str) -> int:
        """The id of the control token written `text`, or -1 when the model has none."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token; empty for control tokens. They need not end on a code point."""


class StepEngine(Protocol):
    """Sequences of KV that grow by steps. Raises EngineFailed when the library below says so."""

    @property
    def name(self) -> str:
        """Short name with version, for Status."""

    @property
    def geometry(self) -> Geometry:
        """Fixed for the life of the engine."""

    @property
    def vocab(self) -> Vocab:
        """The model's tokens."""

    @property
    def kv_kind(self) -> KvKind:
        """The origin of its stored bytes; engines of equal kinds can load each other's bytes."""

    @property
    def clock(self) -> Clock:
        """The clock by which its work takes time."""

    def step(self, plan: StepPlan) -> StepResult:
        """Decodes all slices. On EngineFailed no sequence of the plan may be trusted: clear them or rebuild()."""

    def copy(self, src: int, dst: int) -> None:
        """Makes dst equal to src as a whole, and drops the former content of dst."""

    def trim(self, seq: int, length: int) -> None:
        """Cuts the sequence back to its first `length` tokens (0 empties it)."""

    def length(self, seq: int) -> int:
        """How many tokens the sequence holds, read from the library below and not from our own book."""

    def store(self, seq: int) -> bytes:
        """The sequence's KV as bytes, for host RAM."""

    def load(self, seq: int, blob: bytes) -> bool:
        """Puts stored bytes into the sequence, replacing what it held; False (and an empty sequence) when refused."""

    def adapter_from(self, adapter: str, tail: Tokens) -> int:
        """From which token of a tail on an activated adapter is on; NEVER when the tail does not invoke it."""

    def adapter_counts(self) -> dict[str, int]:
        """Adapters that were "loaded", "dropped" and "switched" to since start, and how many are "resident" now; empty
        when there are none. Any thread may ask.
        """

    def add_sampler(self, sampling: Sampling, recent: Sequence[int]) -> int:
        """A sampler chain of one request, as a handle >= 0; `recent` are tokens that its repeat penalty has seen."""

    def drop_sampler(self, sampler: int) -> None:
        """Frees a sampler chain."""

    def rebuild(self) -> None:
        """Throws all sequences away and makes a new context of the same geometry; samplers stay."""

    def close(self) -> None:
        """Frees everything; nothing may be called after."""


def micro_batches(slices: Sequence[Slice], micro_len: int) -> list[tuple[int, int]]:
    """How llama.cpp splits a step: (tokens, longest context padded to 256) per micro-batch.

    With one stream per sequence a micro-batch takes consecutive ascending sequence numbers, the same number of tokens
    from each, at most `micro_len` in all.
    """
    left = [len(s.tokens) for s in slices]
    if sum(left) == len(left):
        return _runs_of_single_tokens(slices, micro_len)
    done = [0] * len(slices)
    out: list[tuple[int, int]] = []
    while True:
        first = next((i for i, n in enumerate(left) if n), -1)
        if first < 0:
            return out
        group = [first]
        for i in range(first + 1, len(slices)):
            if not left[i] or slices[i].seq != slices[group[-1]].seq + 1 or len(group) >= micro_len:
                break
            group.append(i)
        take = min(min(left[i] for i in group), max(1, micro_len // len(group)))
        context = 0
        for i in group:
            left[i] -= take
            done[i] += take
            context = max(context, slices[i].pos + done[i])
        out.append((take * len(group), -(-context // PAD_LEN) * PAD_LEN))


def _runs_of_single_tokens(slices: Sequence[Slice], micro_len: int) -> list[tuple[int, int]]:
    """The same for a step of one token each, the usual one while everybody decodes: runs of consecutive numbers."""
    out: list[tuple[int, int]] = []
    count, longest, expected = 0, 0, -1
    for s in slices:
        if count and (s.seq != expected or count == micro_len):
            out.append((count, -(-longest // PAD_LEN) * PAD_LEN))
            count = longest = 0
        count += 1
        longest = max(longest, s.pos + 1)
        expected = s.seq + 1
    if count:
        out.append((count, -(-longest // PAD_LEN) * PAD_LEN))
    return out


NEVER = 1 << 30  # of tokens: more than there will ever be


def invoked_at(tail: Tokens, invocation: Sequence[int]) -> int:
    """Where an invocation begins that occurs last in a tail; NEVER when it does not occur, 0 when there is none."""
    length = len(invocation)
    if not length:
        return 0
    for at in range(len(tail) - length, -1, -1):
        if all(int(tail[at + i]) == token for i, token in enumerate(invocation)):
            return at
    return NEVER


def tokens_of(values: Sequence[int]) -> Tokens:
    """An int32 array of token ids."""
    return np.asarray(values, dtype=np.int32)

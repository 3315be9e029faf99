"""The question to an engine (Work) and the values that come back (Chunk, Timings, Ended)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from core.choice import Choice, Node, Tokens
from core.script import Script
from core.words import Finish, Tier, TrunkKey


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. Temperature 0 is greedy and ignores the rest.

    `unrepeat` > 0 penalises repetition: a token that would continue one of the last `unrepeat_last_n` tokens as
    before, after a common beginning of n tokens, loses unrepeat * unrepeat_base ** (n - 1).
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    repeat_last_n: int = 64
    unrepeat: float = 0.0
    unrepeat_base: float = 2.0
    unrepeat_last_n: int = 256
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature <= 0.0


GREEDY = Sampling()


@dataclass(slots=True, eq=False)
class Work:
    """One piece of work: read `script`, and answer with one of `options` or, without them, up to `max_tokens` tokens.

    For a step engine the work also has script and options in its model's tokens: bring `trunk` into a sequence, put
    `tail` on a branch of it, walk `choice`. `shared` is how many leading tokens of the trunk other NPCs share (world
    and archetype). A backend that reads text needs none of these.

    `near` is a number whose neighbours are due together with this work: their trunks should lie side by side (-1: it
    does not matter).
    The branch is computed with `adapter` (by content hash; empty: the base model), the trunk with key.adapter: the same
    one, or none if the adapter is only activated; one with an invocation is on from there in the tail. Tokens of
    different adapters cannot share a step.
    `max_tokens` 0 only brings the trunk into place and ends with STOP; the tail must then be empty.
    With `keep`, tail and tokens become part of the trunk when the work ends well, so that the next one finds them
    there: all that a step took in, which at max_tokens the last one is not.
    With `adopt`, a work lets its trunk go as others on lanes do. When it ends after its first token, also cancelled,
    its lane's tokens become the trunk, unless another work stands on that then or it has changed meanwhile.
    `said` are tokens that this NPC said lately, oldest first, for the sampler's penalties (empty: the tail's). The
    penalties never see `stop_ids`, the model's own end tokens, or `closing` (tokens that close an answer as text): an
    end that is penalised makes replies ramble.
    A work with `supersede` takes the place of a waiting one with the same value.
    `backend` names where it runs, as its route says (empty: the daemon's own engine).
    """

    tier: Tier
    key: TrunkKey
    trunk: Tokens
    tail: Tokens
    max_tokens: int
    shared: int = 0
    choice: Node | None = None
    sampling: Sampling = GREEDY
    said: tuple[int, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    closing: frozenset[int] = frozenset()
    due_ns: int = 0
    deadline_ns: int = 0
    supersede: Hashable = None
    near: int = -1
    adapter: str = ""
    keep: bool = False
    adopt: bool = False
    backend: str = ""
    script: Script | None = None
    options: Choice | None = None


class Chunk(NamedTuple):
    """The part of an answer that one step made: tokens in order (none where the backend has none), and the bytes of
    their text, which need not end on a code point. `confidence` belongs to the first of the tokens, `labels` are the
    (stage, option)s that they completed.
    """

    tokens: tuple[int, ...]
    at_ns: int
    confidence: float = 0.0
    labels: tuple[tuple[str, int], ...] = ()
    text: bytes = b""


@dataclass(slots=True)
class Timings:
    """The time that one work took in each stage (nanoseconds, one clock), and its tokens."""

    submitted_ns: int = 0
    taken_ns: int = 0
    window_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    cached_tokens: int = 0  # of the trunk, not computed for this work; of these:
    loaded_tokens: int = 0  # from another home
    copied_tokens: int = 0  # from a shared beginning
    prefilled_tokens: int = 0
    output_tokens: int = 0
    adopted_tokens: int = 0  # of tail and output, that became the trunk (Work.adopt)
    gap_max_ns: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing a ticket says."""

    finish: Finish
    timings: Timings
    reason: str = ""
    retry_ms: int = 0
    labels: tuple[tuple[str, int], ...] = field(default=())

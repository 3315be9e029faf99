"""One running work: which tokens it wants next, and what the tokens it gets mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from core.choice import Node, Tokens
from core.words import Finish, Tier
from core.work import Chunk, Timings, Work
from engines.base import GREEDY_PICK, Pick, tokens_of
from kvcache.homes import NO_TOKENS
from scheduler.drafts import Text
from scheduler.place import Part, Place


@dataclass(slots=True, eq=False)
class Running:
    """A placed work. `feed` is what the branch still has to take in before the next token can be picked. While a work
    of a higher tier waits for what this one holds, it is `hurried`: it runs at that tier, by that deadline.

    Invariant: `made` are exactly the tokens that were handed out, in order.
    """

    ticket_id: int
    work: Work
    place: Place
    timings: Timings
    feed: Tokens
    node: Node | None = None
    sampler: int = -1
    made: list[int] = field(default_factory=list)
    labels: list[tuple[str, int]] = field(default_factory=list)
    last_token_ns: int = 0
    last_step_ns: int = 0
    retried: bool = False
    hurried: Work | None = None
    text: Text | None = None  # for drafts; made when the first is asked for

    @property
    def tier(self) -> Tier:
        """The tier that it runs at."""
        return self.work.tier if self.hurried is None else min(self.work.tier, self.hurried.tier)

    @property
    def decoding(self) -> bool:
        """True when the first token is out."""
        return bool(self.made) and self.place.part is Part.BRANCH

    @property
    def left(self) -> int:
        """How many tokens it takes in before its first one, in all parts."""
        place = self.place
        left = len(self.feed)
        if place.part is not Part.BRANCH:
            left += len(place.missing)
            if place.prefix is not None:
                left += len(self.work.trunk) - len(place.prefix.tokens)
        return left

    def wanted(self) -> Tokens:
        """The tokens that it would take in next, as far as one adapter computes them."""
        place = self.place
        return self.feed[: place.alike_len] if place.part is Part.BRANCH else place.missing

    def pick(self, count: int) -> Pick | None:
        """How to pick after `count` of the wanted tokens; None while some are missing."""
        if self.place.part is not Part.BRANCH or count < len(self.feed) or not self.work.max_tokens:
            return None
        if self.node is not None:
            return Pick(allowed=self.node.ids)
        return Pick(sampler=self.sampler) if self.sampler >= 0 else GREEDY_PICK

    def begin(self) -> Finish | None:
        """Walks what is forced from the start; the finish when nothing is left to choose."""
        if not self.work.max_tokens:
            return Finish.STOP if self.place.part is Part.BRANCH else None
        if self.node is not None:
            forced = self._walk([])
            if forced:
                self.made.extend(forced)
                self.feed = np.concatenate([self.feed, tokens_of(forced)])
            if self.node.complete:
                return Finish.STOP
        return None

    def took_in(self, count: int) -> None:
        """`count` of the wanted tokens are in the sequence (the place was told already)."""
        if self.place.part is Part.BRANCH:
            self.feed = self.feed[count:] if count < len(self.feed) else NO_TOKENS
            if self.made:
                return
        self.timings.prefilled_tokens += count

    def picked(
        self, token: int, probability: float, eog: frozenset[int], now_ns: int
    ) -> tuple[Chunk | None, Finish | None]:
        """The chunk to hand out for the picked token, and the finish when it was the last."""
        if self.node is None:
            if token in eog or token in self.work.stop_ids:
                return None, Finish.STOP
            self.made.append(token)
            self.feed = tokens_of((token,))
            return Chunk((token,), now_ns), Finish.LENGTH if len(self.made) >= self.work.max_tokens else None
        known = len(self.labels)
        self.node, label = self.node.step(token)
        if label is not None:
            self.labels.append(label)
        tokens = self._walk([token])
        self.made.extend(tokens)
        self.feed = tokens_of(tokens)
        chunk = Chunk(tuple(tokens), now_ns, probability, tuple(self.labels[known:]))
        return chunk, Finish.STOP if self.node.complete else None

    def all_picked(self, tokens: Sequence[int], eog: frozenset[int], now_ns: int) -> tuple[Chunk | None, Finish | None]:
        """The same for several tokens of one step, whose drafts were right; tokens after an end are dropped."""
        made: list[int] = []
        finish: Finish | None = None
        for token in tokens:
            chunk, finish = self.picked(token, 0.0, eog, now_ns)
            if chunk is not None:
                made += chunk.tokens
            if finish is not None:
                break
        return Chunk(tuple(made), now_ns) if made else None, finish

    def restart(self, place: Place) -> None:
        """Goes on after a failed step on a new place: what was made is taken in again and nothing is handed out
        twice.
        """
        self.place = place
        self.feed = np.concatenate([self.work.tail, tokens_of(self.made)]) if self.made else self.work.tail

    def _walk(self, tokens: list[int]) -> list[int]:
        """Adds the tokens that the choice leaves no other way for."""
        assert self.node is not None
        while self.node.forced:
            forced = int(self.node.ids[0])
            self.node, label = self.node.step(forced)
            if label is not None:
                self.labels.append(label)
            tokens.append(forced)
        return tokens

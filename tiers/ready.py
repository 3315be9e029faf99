"""The work that tiers/asking.py wants done: one read-only value, as etcd-raft's Ready."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Who = TypeVar("Who")


class Rule(NamedTuple, Generic[Who]):
    """The rules answer for this NPC, which has been due since `due_ns`."""

    who: Who
    due_ns: int


class Recall(NamedTuple, Generic[Who]):
    """The NPC's memory of answers may answer. Say recalled() or forgot()."""

    who: Who
    due_ns: int


class Ask(NamedTuple, Generic[Who]):
    """Ask the model about what the NPC saw last. Say answered(), failed(), dropped() or refused() of this number."""

    who: Who
    number: int
    due_ns: int


class Stand(NamedTuple, Generic[Who]):
    """The answer to this question is the NPC's intent. `agrees`: it is about what the NPC sees now."""

    who: Who
    number: int
    agrees: bool


class Ready(NamedTuple, Generic[Who]):
    """Do all of it, in this order of fields, before the next input; observed() alone may come before.

    `wake_ns`: tick() must be called then, or earlier; None: at the moment that was told before. `expect_ns`: when the
    next NPC gets into line, if that is the next thing to happen; told by the first Ready after a tick.
    """

    confirm: tuple[Who, ...]  # the intent agrees with the newest that was looked at
    stand: tuple[Stand[Who], ...]
    keep: tuple[int, ...]  # the answer to this question does not stand: the NPC keeps its intent
    rule: tuple[Rule[Who], ...]
    recall: tuple[Recall[Who], ...]
    load: tuple[Who, ...]  # bring its KV into place; say loaded() or not_loaded()
    cancel: tuple[int, ...]  # questions that nobody waits for
    ask: tuple[Ask[Who], ...]  # as one group
    look: tuple[Who, ...]  # at its glimpse; say saw() or spoiled()
    wake_ns: int | None
    expect_ns: int | None

    @property
    def nothing(self) -> bool:
        """True if there is nothing to do."""
        r = self
        return not (r.confirm or r.stand or r.rule or r.recall or r.ask or r.look or r.load or r.keep or r.cancel)


@dataclass(slots=True)
class Wanted(Generic[Who]):
    """The next Ready while it is put together."""

    confirm: list[Who] = field(default_factory=list)
    stand: list[Stand[Who]] = field(default_factory=list)
    keep: list[int] = field(default_factory=list)
    rule: list[Rule[Who]] = field(default_factory=list)
    recall: list[Recall[Who]] = field(default_factory=list)
    load: list[Who] = field(default_factory=list)
    cancel: list[int] = field(default_factory=list)
    ask: list[Ask[Who]] = field(default_factory=list)
    look: list[Who] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """True if nothing is wanted."""
        w = self
        return not (w.confirm or w.stand or w.rule or w.recall or w.ask or w.look or w.load or w.keep or w.cancel)

    def take(self, wake_ns: int | None, expect_ns: int | None) -> Ready[Who]:
        """All of it; nothing is wanted afterwards."""
        # Most of them are empty most of the time, and then a test is all that they cost.
        w = self
        ready = Ready(
            tuple(w.confirm) if w.confirm else (), tuple(w.stand) if w.stand else (), tuple(w.keep) if w.keep else (),
            tuple(w.rule) if w.rule else (), tuple(w.recall) if w.recall else (), tuple(w.load) if w.load else (),
            tuple(w.cancel) if w.cancel else (), tuple(w.ask) if w.ask else (), tuple(w.look) if w.look else (),
            wake_ns, expect_ns,
        )  # fmt: skip
        if w.confirm:
            w.confirm.clear()
        if w.look:
            w.look.clear()
        if w.ask or w.rule or w.stand:
            w.ask.clear()
            w.rule.clear()
            w.stand.clear()
        if w.keep or w.recall or w.load or w.cancel:
            w.keep.clear()
            w.recall.clear()
            w.load.clear()
            w.cancel.clear()
        return ready

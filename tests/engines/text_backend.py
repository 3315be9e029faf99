"""A backend without tokens: it reads a work's text, answers with text, and has no KV. It shows that the port needs no
more than that, and that admission serves a backend without sequences.

Owns one thread, which runs all commands in order, between two steps. A step gives each running work the next piece of
its answer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from core.choice import Choice
from core.clock import now_ns
from core.script import SectionKind
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Timings, Work
from engines.backend import Delivery, Health, Limits, Snapshot, Submitted, Taken, TierCounts, TrunkPlace
from scheduler.admission import Admission, Left
from scheduler.meter import Meter
from scheduler.queues import Waiting
from scheduler.window import Closed, WindowSettings
from tiers.promises import Promises


@dataclass(eq=False)
class _Speaking:
    """A running work, and the rest of its answer's pieces."""

    ticket_id: int
    work: Work
    pieces: deque[Chunk]
    labels: list[tuple[str, int]] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)


def in_plain_words(work: Work) -> list[Chunk]:
    """Answers a work from its text alone: a choice by the first option that is named in the tail, or the first there
    is; otherwise some words about the player's last line.
    """
    assert work.script is not None, "there is nothing to read"
    read = " ".join(f"{section.text} {' '.join(section.items)}" for section in work.script.tail)
    if work.options is None:
        lines = [section.text for section in work.script.tail if section.kind is SectionKind.PLAYER]
        said = f"You said: {lines[-1]}" if lines else "So it was."
        return [Chunk((), 0, text=f"{word} ".encode()) for word in said.split()]
    chunks: list[Chunk] = []
    choice: Choice | None = work.options
    while choice is not None:
        option = next((o for o in choice.options if o.text in read), choice.options[0])
        label = (choice.stage, option.number)
        chunks.append(Chunk((), 0, 1.0, (label,), option.text.encode()))
        choice = option.then
    return chunks


class TextBackend:
    """`says` gives the chunks of a work's answer. `seats` works run at once. `before_step` is called on its thread."""

    def __init__(
        self,
        says: Callable[[Work], Sequence[Chunk]] = in_plain_words,
        promises: Promises = Promises(),
        seats: int = 2,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = "text"
        self.limits = Limits(reads_text=True)
        self.health = Health()
        self._says = says
        self._seats = seats
        self._before_step = before_step
        running_max = {tier: promises.of(tier).running_max for tier in Tier}
        self._admission = Admission(promises, WindowSettings(gather_ms=0.0), running_max)
        self._meter = Meter()
        self._running: list[_Speaking] = []
        self.snapshot = self._look()
        self._out: list[Delivery] = []
        self._inbox: deque[Callable[[], object]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._deliver: Callable[[Sequence[Delivery]], None]
        self._on_death: Callable[[BaseException], None]
        self._thread = threading.Thread(target=self._main, name="text", daemon=True)

    # -- the port --------------------------------------------------------------------------------------------------

    def start(self, deliver: Callable[[Sequence[Delivery]], None], on_death: Callable[[BaseException], None]) -> None:
        """Starts the thread."""
        self._deliver, self._on_death = deliver, on_death
        self.health = Health(now_ns(), 0, ready=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, group: Sequence[Submitted]) -> None:
        """Puts works into their queues."""
        self._ask(*(partial(self._submit, one) for one in group))

    def cancel(self, ticket_id: int, at_ns: int) -> None:
        """Ends a work."""
        self._ask(partial(self._cancel, ticket_id))

    def forget(self, key: TrunkKey) -> None:
        """Does nothing: it keeps no trunk."""

    def commit(self, fork: TrunkKey) -> None:
        """Does nothing: it has no forks."""

    def coming_near(self, npc: NpcKey) -> None:
        """Does nothing: it prepares no trunk."""

    def moving_out(self, npc: NpcKey) -> None:
        """Does nothing: it holds no KV."""

    def expect(self, due_ns: int | None) -> None:
        """Does nothing: it keeps no window open."""

    def places(self, npcs: Sequence[NpcKey], answer: Callable[[list[TrunkPlace]], None]) -> None:
        """Nothing: it has no trunks."""
        self._ask(partial(answer, []))

    def obeyed(self, passed: Callable[[], None]) -> None:
        """Calls it after all earlier commands."""
        self._ask(passed)

    # -- seats, for admission --------------------------------------------------------------------------------------

    def works(self) -> list[Work]:
        """The works that run."""
        return [one.work for one in self._running]

    def busy(self) -> bool:
        """True when a work runs."""
        return bool(self._running)

    def go_on(self, tier: Tier, now_ns: int) -> None:
        """Does nothing: it puts no work back."""

    def filled(self, work: Work) -> bool:
        """Every work has time."""
        return False

    def could_stand(self, work: Work) -> bool:
        """Always True: every seat is alike."""
        return True

    def all_taken(self, work: Work) -> bool:
        """True when no seat is free."""
        return len(self._running) >= self._seats

    def take(self, entry: Waiting, rule: Closed, now_ns: int) -> bool:
        """Seats a work, if there is a seat."""
        if self.all_taken(entry.work):
            return False
        self._admission.queues.of[entry.work.tier].take(entry)
        pieces = deque(self._says(entry.work) if entry.work.max_tokens else ())
        timings = Timings(submitted_ns=entry.submitted_ns, taken_ns=now_ns)
        self._running.append(_Speaking(entry.ticket_id, entry.work, pieces, timings=timings))
        self._out.append((entry.ticket_id, Taken(now_ns)))
        return True

    # -- the thread ------------------------------------------------------------------------------------------------

    def _ask(self, *acts: Callable[[], object]) -> None:
        with self._wake:
            self._inbox.extend(acts)
            self._wake.notify()

    def _main(self) -> None:
        try:
            while self._come_round():
                pass
        except BaseException as error:
            self._on_death(error)
            raise
        finally:
            self.health = self.health._replace(ready=False)

    def _has_something_to_do(self) -> bool:
        return bool(self._inbox or self._running or len(self._admission.queues) or self._stopping)

    def _come_round(self) -> bool:
        with self._wake:
            self._wake.wait_for(self._has_something_to_do)
            if self._stopping:
                return False
            acts = list(self._inbox)
            self._inbox.clear()
        self.health = Health(now_ns(), 0, ready=True)
        for act in acts:
            act()
        self._admission.admit(self, now_ns(), None)
        if self._running:
            self._before_step()
            self._step(now_ns())
        self.snapshot = self._look()
        out, self._out = self._out, []
        if out:
            self._deliver(out)
        return True

    def _submit(self, one: Submitted) -> None:
        self._leave(self._admission.submit(*one))

    def _cancel(self, ticket_id: int) -> None:
        self._leave(self._admission.cancel(ticket_id))
        for one in [r for r in self._running if r.ticket_id == ticket_id]:
            self._end(one, Finish.CANCELLED)

    def _step(self, now_ns: int) -> None:
        """The next piece of every answer."""
        self._meter.steps += 1
        for one in list(self._running):
            if one.pieces:
                chunk = one.pieces.popleft()._replace(at_ns=now_ns)
                one.labels += chunk.labels
                self._out.append((one.ticket_id, chunk))
                one.timings.first_ns = one.timings.first_ns or now_ns
                one.timings.last_ns = now_ns
            if not one.pieces:
                self._end(one, Finish.STOP)

    def _end(self, one: _Speaking, finish: Finish) -> None:
        self._running.remove(one)
        self._meter.tiers[one.work.tier].count_end(finish)
        self._out.append((one.ticket_id, Ended(finish, one.timings, labels=tuple(one.labels))))

    def _leave(self, left: Sequence[Left]) -> None:
        for waiting, finish, reason in left:
            self._meter.tiers[waiting.work.tier].count_end(finish)
            timings = Timings(submitted_ns=waiting.submitted_ns)
            self._out.append((waiting.ticket_id, Ended(finish, timings, reason)))

    def _look(self) -> Snapshot:
        running = [one.work.tier for one in self._running]
        tiers = (
            TierCounts(running.count(tier), m.ended, m.output_tokens, m.first, m.gap)
            for tier, m in zip(Tier, self._meter.tiers, strict=True)
        )
        return Snapshot(tuple(tiers), self._meter.step, self._meter.steps)

"""The display during a run: a table that repaints itself on a terminal, short lines elsewhere.

The display is plain text with a few escape codes, composed in well under a millisecond, because the frame loop runs
beside it.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Protocol, TextIO

from loadtests.board import Board
from loadtests.scene import Resident

PAINT_EVERY_S = 0.25
LINE_EVERY_S = 5.0
NPC_ROWS_MAX = 24

_CLEAR = "\x1b[2J\x1b[H"
_HOME = "\x1b[H"
_TO_END_OF_LINE = "\x1b[K"
_TO_END_OF_SCREEN = "\x1b[J"
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Screen(Protocol):
    """A display of a board."""

    def start(self) -> None:
        """Begins to show the board."""

    def tick(self, now_s: float) -> None:
        """Called after each frame; it is quick."""

    def stop(self) -> None:
        """Shows the board for the last time."""


def summary(board: Board) -> str:
    """The run in one line."""
    status = board.status
    gold, silver = board.tier("gold"), board.tier("silver")
    return (
        f"{board.elapsed_s:5.1f} s  frames {board.frames} (late {board.frames_late})  "
        f"intent age p95 {board.intent_age.percentile(0.95):.0f} ms  "
        f"model {board.slots.model_share:.0%} of {board.slots.due}  "
        f"gold {gold.token_p95_ms:.1f} ms/token  silver first {silver.first_p95_ms:.0f} ms  "
        f"turns {board.turns}  {status.tokens_per_s if status else 0:.0f} tokens/s  errors {board.errors.count}"
    )


class Lines:
    """A short line every five seconds, and every exchange of the conversation."""

    def __init__(self, board: Board, out: TextIO = sys.stdout) -> None:
        self._board = board
        self._out = out
        self._next_s = LINE_EVERY_S
        self._shown = 0

    def start(self) -> None:
        """Prepares nothing."""

    def tick(self, now_s: float) -> None:
        """Writes when a line is due."""
        if self._board.turns > self._shown:
            self._shown = self._board.turns
            name, line, answer = self._board.said[-1]
            print(f"  you to {name}: {line}  {name}: {answer}", file=self._out, flush=True)
        if now_s >= self._next_s:
            self._next_s += LINE_EVERY_S
            print(summary(self._board), file=self._out, flush=True)

    def stop(self) -> None:
        """Shows nothing more."""


class Table:
    """The whole board, repainted four times a second by a thread of its own, so that a slow terminal delays no
    frame."""

    def __init__(self, board: Board, residents: tuple[Resident, ...], out: TextIO = sys.stdout) -> None:
        self._board = board
        self._residents = residents
        self._out = out
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._paint, name="npcd-demo-screen", daemon=True)

    def start(self) -> None:
        """Begins to paint."""
        self._out.write(_CLEAR)
        self._thread.start()

    def tick(self, now_s: float) -> None:
        """The thread paints by itself."""

    def stop(self) -> None:
        """Paints for the last time."""
        self._stop.set()
        self._thread.join()

    def _paint(self) -> None:
        while True:
            last = self._stop.wait(PAINT_EVERY_S)
            columns, rows = shutil.get_terminal_size()
            lines = [_fit(line, columns) + _TO_END_OF_LINE for line in list(self._lines())[: max(4, rows - 1)]]
            self._out.write(_HOME + "\n".join(lines) + _TO_END_OF_SCREEN + "\n")
            self._out.flush()
            if last:
                return

    def _lines(self) -> Iterator[str]:
        board, status = self._board, self._board.status
        model = f"{status.model_name} on {status.engine}" if status else "-"
        yield f"{_BOLD}npcd demo{_PLAIN}  {board.npcs} NPCs  {board.elapsed_s:.1f} s  {model}"
        yield summary(board)
        age, calls = board.intent_age, board.calls_wall
        yield (
            f"intent age p50 {age.percentile(0.5):.0f}  p95 {age.percentile(0.95):.0f}  "
            f"p99 {age.percentile(0.99):.0f} ms   "
            f"latency p95 {board.intent_latency.percentile(0.95):.0f} ms   "
            f"npcd calls in a frame p99 {calls.percentile(0.99):.3f} ms"
        )
        if status:
            cached, filled = board.since_start("cached_tokens"), board.since_start("prefilled_tokens")
            yield (
                f"cached tokens {cached} of {cached + filled}   step p95 {status.step_p95_ms:.1f} ms   "
                f"lanes {status.lanes_leased}/{status.lanes}   residents {status.residents_used}/{status.residents}"
            )
        yield f"{_DIM}tier     waiting  running  finished  superseded  refused   first p95  token p95{_PLAIN}"
        for name in ("gold", "silver", "bronze"):
            tier = board.tier(name)
            yield (
                f"{name:<8} {tier.waiting:>7}  {tier.running:>7}  {tier.finished:>8}  {tier.superseded:>10}  "
                f"{tier.refused:>7}   {tier.first_p95_ms:>6.1f} ms  {tier.token_p95_ms:>6.1f} ms"
            )
        yield f"{_DIM}conversation{_PLAIN}"
        for name, line, answer in list(board.said)[-4:]:
            yield f"  {_DIM}you:{_PLAIN} {line}  {_BOLD}{name}:{_PLAIN} {answer}"
        yield f"{_DIM}NPC          kind       source    does{_PLAIN}"
        for resident, doing in zip(self._residents[:NPC_ROWS_MAX], board.doing, strict=False):
            yield f"{resident.npc_id:<12} {resident.archetype_id:<10} {doing}"


def _fit(line: str, columns: int) -> str:
    """Cuts a line to the terminal's width; escape codes take no room."""
    shown, kept, i = 0, [], 0
    while i < len(line) and shown < columns:
        if line[i] == "\x1b":
            end = line.index("m", i) + 1
            kept.append(line[i:end])
            i = end
        else:
            kept.append(line[i] if line[i].isprintable() else " ")
            shown += 1
            i += 1
    return "".join(kept) + _PLAIN

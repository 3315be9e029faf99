"""A model file as the daemon's engine plays it: choices by mask, replies by its own samplers, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from core.choice import Node
from core.work import Sampling
from daemon.talk.settings import DialogueSettings
from engines.base import Pick, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from prompts.caps import Caps
from prompts.layout import Layout
from prompts.templates import find_markup

TEMPERATURE = DialogueSettings().temperature  # the default of a user's daemon
UNREPEAT = DialogueSettings().unrepeat
REPLY_MAX = DialogueSettings().max_tokens


@dataclass(frozen=True, slots=True)
class Said:
    """One generation: its text, its tokens without the end, and True when the model ended it by itself."""

    text: str
    tokens: tuple[int, ...]
    ended: bool


class Speaker:
    """An engine with one sequence in use, and the layout in its tokens."""

    def __init__(self, path: Path, threads: int = 2, caps: Caps = Caps()) -> None:
        send_native_log_to(None)
        settings = LlamaSettings(path, sequences=2, threads=threads, flash_attention="off", weights="file")
        self._engine = LlamaEngine(settings)
        self.layout = Layout(self._engine.vocab, caps)
        if not self.layout.native:
            markup = find_markup(self._engine.card.chat_template, self._engine.vocab).markup
            self.layout = Layout(self._engine.vocab, caps, markup)
        self._held: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()

    def choose(self, tokens: Sequence[int], node: Node) -> dict[str, int]:
        """The likeliest way through `node` after `tokens`: the option taken in each stage."""
        taken: dict[str, int] = {}
        here = list(tokens)
        while not node.complete:
            token = int(node.ids[0]) if node.forced else self._next(here, Pick(node.ids))
            node, label = node.step(token)
            here.append(token)
            taken |= [label] if label else []
        return taken

    def say(self, trunk: Sequence[int], tail: Sequence[int], seed: int, lines: Sequence[int] = ()) -> Said:
        """A reply after trunk and tail, with the daemon's sampling; the same for the same seed.

        `lines` are the tokens of this NPC's latest lines.
        """
        here, end = [*trunk, *tail], self.layout.stop_ids
        sampling = Sampling(TEMPERATURE, unrepeat=UNREPEAT, seed=seed)
        unseen = end | self._engine.vocab.eog_ids | self.layout.closing_ids
        sampler = self._engine.add_sampler(sampling, [t for t in lines or tail if t not in unseen])
        said: list[int] = []
        while len(said) < REPLY_MAX:
            token = self._next([*here, *said], Pick(sampler=sampler))
            if token in end:
                break
            said.append(token)
        self._engine.drop_sampler(sampler)
        text = b"".join(self._engine.vocab.piece(t) for t in said).decode("utf-8", "replace").strip()
        return Said(text, tuple(said), len(said) < REPLY_MAX)

    def _next(self, tokens: list[int], pick: Pick) -> int:
        """The token after `tokens`."""
        same = 0
        while same < min(len(tokens) - 1, len(self._held)) and tokens[same] == self._held[same]:
            same += 1
        self._engine.trim(0, same)
        result = self._engine.step(StepPlan([Slice(0, same, tokens_of(tokens[same:]), pick)]))
        self._held = list(tokens)
        return result.picked[0]

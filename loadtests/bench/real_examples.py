"""Do worked examples help a chat model to choose, and which question stands best before its answer?

Behind docs/decisions/0025. It takes minutes and decides a default, so it runs only when it is named:
`python -m loadtests.bench real --only examples`. Nothing here is a timing.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from core.script import SectionKind
from loadtests.bench.figures import Figures
from loadtests.bench.real_words import EXAMPLES_LEN, Chat, Data, Village, chosen, counted, read
from loadtests.scene import load_scene
from npcd_client.wire import define_world
from prompts.caps import Caps
from prompts.layout import Layout
from prompts.marks import CHAT_DONE, CHAT_MARKS, spelled
from tiers.policy import PolicyRow

QUESTIONS = {"do": "What do you do?", "now": "What now?"}  # `do` is the one that CHAT_MARKS has


class Asked(Layout):
    """The chat layout with another question before an answer, and with examples."""

    def __init__(self, chat: Chat, question: str, examples: int) -> None:
        super().__init__(chat.engine.vocab, Caps(examples=examples), chat.markup)
        assert chat.markup is not None and QUESTIONS["do"] in CHAT_MARKS["do"]
        do, done = (text.replace(QUESTIONS["do"], question) for text in (CHAT_MARKS["do"], CHAT_DONE))
        self.marks = {**self.marks, "do": spelled(do, chat.engine.vocab, chat.markup)}
        self.ends = replace(self.ends, done=tuple(chat.engine.vocab.encode(done)))


async def run(figures: Figures, model: Path, quick: bool) -> None:
    """Measures each question with each kind of examples. Raises ConfigError when the model cannot be loaded."""
    data = read()
    cases = data.held_out[:: 4 if quick else 1]
    # Rows that teach, rows that the scene has for the rule policy, and no rows.
    kinds: dict[str, tuple[Data, int]] = {
        "without": (data, 0),
        "taught": (data, EXAMPLES_LEN),
        "scene": (replace(data, policy=_scene_rows()), EXAMPLES_LEN),
    }
    async with Chat(model) as chat:
        for question, words in QUESTIONS.items():
            for kind, (given, examples) in kinds.items():
                village = Village(chat, given, Asked(chat, words, examples))
                actions = await chosen(chat, village, cases)
                right = sum(action == case.wanted for action, case in zip(actions, cases, strict=True))
                figures.add(f"real.asked_{question}_{kind}", right / len(cases))
                shown = [s for s in village.npcs["villager"].script.sections if s.kind is SectionKind.EXAMPLE]
                figures.note(f"  {len(shown)} examples for a villager; most frequent answers: {counted(actions)}")


def _scene_rows() -> tuple[PolicyRow, ...]:
    """The demo's own policy, as its world is defined."""
    names = [field.name for field in fields(PolicyRow)]
    rows = define_world(load_scene().world, 0).policy.rows
    return tuple(PolicyRow(**{name: getattr(row, name) for name in names}) for row in rows)

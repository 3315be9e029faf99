"""Choices: the intents that a world allows, as texts, and the same as a graph of one model's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.choice import END, Choice, Node, Option, stage
from core.errors import CallerError

NOBODY = "nobody"
Spell = Callable[[str, Option], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ActionWord:
    """One thing an NPC can do."""

    word: str
    needs_target: bool = False
    speaks: bool = False


def words_of(actions: Sequence[ActionWord], emotions: Sequence[str]) -> str:
    """The words that an NPC may act and feel with, as the model reads them, in the world's order."""
    return f"Actions: {', '.join(a.word for a in actions)}. Feelings: {', '.join(emotions)}."


def target_word(number: int) -> str:
    """A target as text: the number of a percept, or nobody."""
    return f"#{number}" if number else NOBODY


def intents(actions: Sequence[ActionWord], emotions: Sequence[str], percepts_max: int) -> list[Choice]:
    """The allowed answers, by how many percepts can be named (0 .. percepts_max): action, target, emotion.

    Target option 0 is nobody; option i is the i-th percept. Raises CallerError when no action does without a target.
    """
    feel = Choice("emotions", tuple(Option(i, word, None) for i, word in enumerate(emotions)))
    choices: list[Choice] = []
    for percepts in range(percepts_max + 1):
        targets = tuple(Option(i, target_word(i), feel) for i in range(percepts + 1))
        may = Choice("targets", targets)
        must = Choice("targets", targets[1:])
        options = tuple(
            Option(i, a.word, must if a.needs_target else may)
            for i, a in enumerate(actions)
            if percepts or not a.needs_target
        )
        if not options:
            raise CallerError("actions", "at least one action word must do without a target")
        choices.append(Choice("actions", options))
    return choices


def graph(choice: Choice, layout: object, spell: Spell, closed: Node) -> Node:
    """A choice in the tokens of one layout, made once and kept in `renders`. `spell` gives an option's tokens; an
    answer that a longer one begins with goes on to `closed`. Raises CallerError when the tokens cannot tell two options
    apart.
    """
    made = choice.renders.get(layout)
    if isinstance(made, Node):
        return made
    spelled = [spell(choice.stage, option) for option in choice.options]

    def after(option: Option, tokens: tuple[int, ...]) -> Node:
        if option.then is not None:
            return graph(option.then, layout, spell, closed)
        # A feeling that another begins with ("sad", "sadly" in few tokens) is over when the answer ends.
        return closed if any(len(o) > len(tokens) and o[: len(tokens)] == tokens for o in spelled) else END

    pairs = zip(choice.options, spelled, strict=True)
    node = stage(choice.stage, [(option.number, tokens, after(option, tokens)) for option, tokens in pairs])
    choice.renders[layout] = node
    return node

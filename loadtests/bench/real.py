"""A real chat model beside the model that ships: what npcd promises on any model, measured."""

from __future__ import annotations

from loadtests.bench import real_examples, real_overload, real_pace, real_start, real_turns, real_two, real_words
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options

PARTS = ("start", "turns", "two", "pace", "overload", "words", "replies", "examples")


async def run(figures: Figures, options: Options) -> None:
    """Runs the selected parts. Raises ConfigError when there is no chat model, and when a model cannot be loaded."""
    chat = options.chat()
    if options.wants("start"):
        await real_start.run(figures, options.model, chat, options.quick)
    if options.wants("turns"):
        await real_turns.run(figures, options.model, chat, options.quick)
    if options.wants("two"):
        await real_two.run(figures, options.model, chat, options.quick)
    if options.wants("pace"):
        await real_pace.run(figures, chat, options.quick)
    if options.wants("overload"):
        await real_overload.run(figures, options.model, options.quick)
    if options.wants("words"):
        await real_words.run(figures, chat, options.quick)
    if options.wants("replies"):
        await real_words.run_replies(figures, chat, options.quick)
    if "examples" in options.parts:  # it decides a default and promises nothing
        await real_examples.run(figures, chat, options.quick)

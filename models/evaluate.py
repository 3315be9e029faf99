"""Examines the shipped files through llama.cpp and the daemon's engine, on names and worlds that no training meets.

python -m models.evaluate [--model models/npcd-demo.gguf] [--quick] [--shuffle 0.2] [--transcript]    (make model-eval)
python -m models.evaluate --model chat.gguf --intents 120    (any chat model; intents only)

Ends with 1 when a goal is missed. With --shuffle this share of the right answers is shuffled. The run then shows the
loss, and ends with 1 when there is none: an examination that cannot be failed proves nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.corpus import words
from models.exam import draft as exam_draft
from models.exam import facts as exam_facts
from models.exam import intents as exam_intents
from models.exam import talk as exam_talk
from models.exam.facts import Answered, by, rate
from models.exam.speaker import Speaker
from models.exam.voice import Voice, generated
from models.play import SHIPPED
from prompts.caps import Caps


@dataclass(frozen=True, slots=True)
class Amount:
    """The number of questions."""

    intents: int = 2400
    npcs: int = 30
    talks: int = 8
    draft_npcs: int = 24


QUICK = Amount(300, 4, 1, 6)


@dataclass(slots=True)
class Report:
    """Prints the figures, and keeps the missed goals."""

    goals: int = 0
    missed: list[str] = field(default_factory=list)

    def line(self, text: str = "") -> None:
        """Prints a line at once."""
        print(text, flush=True)

    def goal(self, name: str, value: float, least: float | None = None, most: float | None = None) -> str:
        """The value, with its goal when it is missed."""
        met = (least is None or value >= least) and (most is None or value <= most)
        self.goals += 1
        if not met:
            self.missed.append(f"{name}: {value:.3f}, goal {f'>= {least}' if most is None else f'<= {most}'}")
        return f"{value:.3f}{'' if met else '!'}"


def intents(report: Report, asked: Sequence[exam_intents.Asked]) -> None:
    """The table of intents."""
    report.line(
        f"{'intents':<10}{'asked':>6}{'action':>9}{'target':>9}{'emotion':>9}{'whole':>9}{'same':>9}"
        "   majority: action, whole"
    )
    for name, s in exam_intents.scores(asked).items():
        whole = report.goal(f"intents of {name}", s.whole, least=0.9)
        report.line(
            f"{name:<10}{s.asked:>6}{s.action:>9.3f}{s.target:>9.3f}{s.emotion:>9.3f}{whole:>9}{s.same_action:>9.3f}"
            f"   {s.majority_action:.3f}, {s.majority_whole:.3f}"
        )


def facts(report: Report, answers: Sequence[Answered]) -> None:
    """The tables of facts in persona and lore: by kind, and by archetype."""
    for title, key in (("facts, by kind", "kind"), ("facts, by archetype", "archetype")):
        report.line(f"\n{title:<26}{'asked':>6}{'right':>9}")
        for name, group in by(answers, key).items():
            report.line(f"{name:<26}{len(group):>6}{report.goal(f'fact {name}', rate(group), least=0.85):>9}")
    report.line(f"{'all':<26}{len(answers):>6}{rate(answers):>9.3f}")


def memory(report: Report, answers: Sequence[Answered], player: Sequence[Answered]) -> None:
    """The tables of facts that were told before, and of facts that nobody told."""
    places = {"told": "told three turns ago", "card": "stands on a card", "digest": "stands in the digest"}
    report.line(f"\n{'memories':<26}{'asked':>6}{'used':>9}   by archetype: {', '.join(words.ARCHETYPES)}")
    for place, title in places.items():
        _remembered(report, title, [a for a in answers if a.place == place])
    _remembered(report, "player's name, told", [a for a in player if a.place == "told"])
    report.line(f"{'nobody told it':<26}{'':>6}{'invented':>9}")
    for title, all_answers in (("a fact", answers), ("the player's name", player)):
        absent = [a for a in all_answers if not a.place]
        value = report.goal(f"invented: {title}", rate(absent, invented=True), most=0.1)
        each = ", ".join(f"{rate(g, invented=True):.2f}" for g in by(absent, "archetype").values())
        report.line(f"  {title:<24}{len(absent):>6}{value:>9}   {each}")
    report.line(
        "by kind of memory: "
        + ", ".join(f"{k} {rate([a for a in g if a.place]):.2f}" for k, g in by(answers, "kind").items())
    )


def _remembered(report: Report, title: str, group: Sequence[Answered]) -> None:
    each = ", ".join(f"{rate(g):.2f}" for g in by(group, "archetype").values())
    report.line(f"{title:<26}{len(group):>6}{report.goal(title, rate(group), least=0.8):>9}   {each}")


def secrets(report: Report, answers: Sequence[Answered]) -> None:
    """The table of listeners who were told the secret."""
    report.line(f"\n{'secret told to':<26}{'asked':>6}{'told':>9}")
    for place, group in by(answers, "place").items():
        title = {"card": "a friend (card)", "digest": "a friend (digest)", "wary": "one not trusted"}.get(place, place)
        report.line(f"{title:<26}{len(group):>6}{rate(group):>9.3f}")


def talk(report: Report, voice: Voice, talks: Sequence[Sequence[exam_talk.Spoken]]) -> None:
    """The voices, and the variety of replies."""
    heard = exam_talk.recognised(voice, talks)
    report.line("\nvoice recognised, single replies: ")
    report.line(", ".join(f"{k} {report.goal(f'voice of {k}', v, least=0.9)}" for k, v in heard.items()))
    v = exam_talk.variety(talks)
    report.line(
        f"replies: {v.replies}, ended by themselves {v.ended:.3f}, {v.tokens:.1f} tokens each, different "
        f"{v.different:.3f}, distinct-1 {v.distinct_1:.3f}, distinct-2 {v.distinct_2:.3f}, "
        f"sentences said before in the talk {v.repeated:.3f}"
    )


def long_talk(report: Report, long: exam_talk.Long, transcript: bool) -> None:
    """Sixty turns with one NPC."""
    report.line(
        f"\n{len(long.turns)} turns with {long.npc.name}, {long.npc.archetype}: sentences repeated within "
        f"{exam_talk.WINDOW_TURNS} turns {report.goal('repeated sentences', len(long.repeated), most=0)}, "
        f"groups of replies in another voice {report.goal('broken character', len(long.broken), most=0)}, "
        f"replies cut off {long.unended}"
    )
    for sentence in (*long.repeated, *long.broken):
        report.line(f"  ! {sentence}")
    if transcript:
        report.line(f"\n{long.npc.name}. {long.npc.text}")
        for line, reply in long.turns:
            report.line(f"— {line} *{reply}*")


def examine(report: Report, model: Path, amount: Amount, seed: int, shuffle: float, transcript: bool) -> None:
    """Asks everything and prints everything."""
    with Speaker(model) as speaker:
        asked = exam_intents.ask(speaker, amount.intents, seed)
        told = exam_facts.persona_and_lore(speaker, amount.npcs, seed)
        if shuffle:
            _shuffled(report, asked, told, shuffle, seed)
            return
        intents(report, asked)
        facts(report, told)
        player = exam_facts.player_names(speaker, amount.npcs, seed)
        memory(report, exam_facts.memory(speaker, amount.npcs, seed), player)
        secrets(report, exam_facts.secrets(speaker, max(2, amount.npcs // 3), seed))
        voice = Voice(generated(speaker.layout, seed + 1, 150))
        talk(report, voice, exam_talk.converse(speaker, amount.talks, 8, seed))
        long_talk(report, exam_talk.long_talk(speaker, voice, "vampire", seed), transcript)
        draft = model.with_name(f"{model.stem}-draft{model.suffix}")
        if draft.exists():
            tiers = exam_draft.acceptance(speaker, draft, amount.draft_npcs, seed)
            report.line("\ndraft's tokens accepted: " + ", ".join(f"{k} {v:.3f} of {n}" for k, (v, n) in tiers.items()))


def intents_only(report: Report, model: Path, count: int, seed: int, caps: Caps = Caps()) -> None:
    """The table of intents of a model that was not trained for npcd: no goals, and no tables of its speech."""
    with Speaker(model, caps=caps) as speaker:
        report.line(f"layout: {speaker.layout.kind}")
        intents(report, exam_intents.ask(speaker, count, seed))
    report.missed.clear()


def _shuffled(
    report: Report, asked: Sequence[exam_intents.Asked], told: Sequence[Answered], part: float, seed: int
) -> None:
    pairs = {
        "whole intents": (
            exam_intents.scores(asked)["all"].whole,
            exam_intents.scores(exam_intents.shuffled(asked, part, seed))["all"].whole,
        ),
        "facts": (rate(told), rate(exam_facts.shuffled(told, part, seed))),
    }
    for name, (true, false) in pairs.items():
        least = true * part / 3  # shuffled answers may be right by chance
        drop = report.goal(f"drop of {name}", true - false, least=least)
        report.line(
            f"{name}: {true:.3f}, with {part:.0%} of the right answers shuffled {false:.3f}: it drops by {drop}"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Examine a model file on held-out worlds.")
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="ask a small part of all questions")
    parser.add_argument("--shuffle", type=float, default=0.0, help="shuffle this share of the right answers")
    parser.add_argument("--transcript", action="store_true", help="print the long conversation")
    parser.add_argument("--intents", type=int, default=0, metavar="N", help="ask only N situations; for any chat model")
    asked = parser.parse_args()
    report = Report()
    if asked.intents:
        intents_only(report, asked.model, asked.intents, asked.seed)
        return
    examine(report, asked.model, QUICK if asked.quick else Amount(), asked.seed, asked.shuffle, asked.transcript)
    report.line(f"\ngoals met: {report.goals - len(report.missed)} of {report.goals}")
    for missed in report.missed:
        report.line(f"  missed: {missed}")
    sys.exit(1 if report.missed else 0)


if __name__ == "__main__":
    main()

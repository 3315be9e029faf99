"""Replies of a model, and the part of them that a player hears."""

from __future__ import annotations

from prompts.guard_rules import Cut, Directions, Piece, Rules, Shown
from prompts.guards import Guard
from tests.scenarios.attention import arguments

SHOWN = {Shown.SENTENCE: "|", Shown.TAKEN_BACK: "<- "}


def shown(piece: Piece) -> str:
    """A piece as the file writes it: | ends a sentence, {} is a stage direction, <- takes all back."""
    if piece.shown is Shown.DIRECTION:
        return f"{{{piece.text}}}"
    return SHOWN.get(piece.shown, piece.text)


class GuardsScenario:
    """guard own=NAME,NAME player=NAME [directions=keep|cut|event] [sentences=N] [thought=N] [first=yes] [labels=no]
    [turns=no]: the rules from now on, `_` for a space; any other line is a reply, `\\n` for a line break, and after
    "cut off: " one that the model did not end.
    """

    def __init__(self) -> None:
        self.rules = Rules()
        self.own: tuple[str, ...] = ("Mira",)
        self.others: tuple[str, ...] = ("Tilda",)

    def run(self, lines: list[str]) -> str:
        """The shown pieces, then the reasons of the cuts. Each way to split the reply gives the same."""
        (verb, *_), given = arguments(lines[0])
        if verb == "guard":
            self.own = _names(given.get("own", "Mira"))
            self.others = _names(given.get("player", "Tilda"))
            self.rules = Rules(
                Directions(given.get("directions", "cut")), given.get("labels") != "no", given.get("turns") != "no",
                int(given.get("sentences", 0)), int(given.get("thought", 2000)), given.get("first") == "yes",
            )  # fmt: skip
            return "set"
        text = lines[0].replace("\\n", "\n")
        whole = not text.startswith("cut off: ")
        text = text.removeprefix("cut off: ")
        answers = {self._answer(text, whole, size) for size in (1, 2, 3, 5, len(text))}
        return "\n".join(sorted(answers))

    def _answer(self, text: str, whole: bool, size: int) -> str:
        guard = Guard(self.rules, self.own, self.others)
        pieces = [p for at in range(0, len(text), size) for p in guard.add(text[at : at + size])]
        told = "".join(map(shown, [*pieces, *guard.end(whole)])).replace("\n", "\\n")
        cut = [f"{why.value} {count}" for why, count in guard.verdict().cut.items() if why is not Cut.SPACE]
        return "\n".join([told or "nothing", *(["cut: " + ", ".join(sorted(cut))] if cut else [])])


def _names(given: str) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in given.split(",") if name)

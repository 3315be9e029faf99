"""Guards: of the text that a model writes as a reply, the part that a player may hear.

A guard takes text in pieces and decides about each character once: it is told or cut. It never takes back what it told,
with one exception: if a thought ends that never began, all that was told is a thought, and the guard says TAKEN_BACK.

    thought     between two marks (prompts/thoughts.py), from the beginning, or without an end
    label       a name and a colon before the reply (prompts/labels.py)
    another     the reply begins with somebody else's label: it is cut as a whole
    turn        from a blank line, from a label in a line of its own, or from a known name and a colon after a sentence
    marker      from a chat template's marker that is written as text
    direction   a stage direction: *...*, (...) or [...], 160 characters at most, in one line
    emphasis    stars around words that belong to the sentence
    sentences   all after the longest reply that is allowed
    space       before and after the reply, and around what was cut

A remark in brackets, or one word in stars, in the middle of a sentence is a part of the sentence if a small letter or
a punctuation mark follows it.

Invariants: the pieces that a text comes in change nothing of what is told. Told and cut parts in order are the text.
At most `held_max` characters wait for more text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from prompts import sentences
from prompts.guard_rules import Cut, Directions, Piece, Rules, Shown, Verdict
from prompts.labels import Label, Labels, Whose
from prompts.thoughts import ANY_CLOSE, ANY_MARK, HEADS, MARK_MAX, Found, Mark, close_of, mark_at_start

DIRECTION_MAX = 160
SPACE_MAX = 32  # characters of white space that are looked at together
PEEK_MAX = 8  # characters of white space after a sentence that are looked through
_DIRECTIONS = {"*": "*", "(": ")", "[": "]", "（": "）", "【": "】"}
_AFTER_END = HEADS + "".join(_DIRECTIONS)
_GOES_ON = ",.;:!?…"
_PLAIN = re.compile(rf"[^\s{re.escape(HEADS + ''.join(_DIRECTIONS) + sentences.MARKS)}]*")
_WORDS = re.compile(rf"{_PLAIN.pattern}(?: {_PLAIN.pattern[:-1]}+)*")
_LINE = re.compile(r"([-*=_~])\1*")


class Guard:
    """One reply. `own` are names of the NPC that speaks, `others` those of the player whom it answers."""

    def __init__(self, rules: Rules = Rules(), own: Sequence[str] = (), others: Sequence[str] = ()) -> None:
        self.said = ""
        self.stopped = False
        """True if the reply is over before the model is: whatever it writes still is cut."""
        self.parts: list[tuple[Cut | None, str]] = []
        """All text that was decided about, in order, with why it was cut; None: it was told."""
        self._rules = rules
        self._directs = rules.directions is not Directions.KEEP
        self._labels = _labels(tuple(own), tuple(others)) if rules.labels else None
        self._held = ""
        self._out: list[Piece] = []
        self._why = Cut.SPACE  # why it stopped
        self._close = ANY_CLOSE if rules.thinks_first else None  # finds the end of the thought that this is in
        self._close_max = MARK_MAX
        self._thought_len = 0
        self._closer = ""  # stars that may follow a label
        self._looked = False  # it is known that no label stands here
        self._after_end = False  # a sentence has ended, and nothing visible followed
        self._fresh = True  # a sentence begins here
        self._star = False  # inside stars of emphasis
        self._gap = False  # something was cut since the last visible text
        self._spaces: list[int] = []  # parts of white space that are told if text follows
        self._sentences = 0
        self._cut_off = False  # the model did not come to its end

    @property
    def held_max(self) -> int:
        """Characters that wait for more text, at most."""
        labels = SPACE_MAX + self._labels.length_max if self._labels is not None else 0
        directions = DIRECTION_MAX + 4 if self._directs else 0
        return max(MARK_MAX, SPACE_MAX + 3, labels, directions, sentences.RUN_MAX + PEEK_MAX)

    @property
    def held(self) -> int:
        """Characters that wait now."""
        return len(self._held)

    def add(self, text: str) -> list[Piece]:
        """Takes text. Returns the pieces that became certain with it."""
        waits = self._held or self._spaces or self._after_end or self._gap or self.stopped or not self._looked
        if not waits and self.said and self._close is None and text and _WORDS.fullmatch(text):
            self._fresh = False  # words amid a sentence, as most pieces are
            self.parts.append((None, text))
            self.said += text
            return [Piece(Shown.TOLD, text)]
        return self._go(text, last=False)

    def end(self, whole: bool = True) -> list[Piece]:
        """No more text comes: returns the pieces that were held. `whole` is false if the model was cut off: then a
        stage direction without an end is cut.
        """
        self._cut_off = not whole
        shown = self._go("", last=True)
        self._settle_spaces(Cut.SPACE)
        return shown

    def verdict(self) -> Verdict:
        """The reply, when it is over."""
        cut = Counter[Cut]()
        for why, text in self.parts:
            if why is not None:
                cut[why] += len(text)
        kinds = [why for why, _ in self.parts]
        first = next((i for i, why in enumerate(kinds) if why is not Cut.SPACE), len(kinds))
        ends = next((i for i in range(first, len(kinds)) if kinds[i] is not None), len(kinds))
        return Verdict(self.said, dict(cut), None not in kinds[ends:])

    # -- the scan ----------------------------------------------------------------------------------------------

    def _go(self, text: str, last: bool) -> list[Piece]:
        self._out = []
        self._held += text
        while self._held and not self.stopped and self._step(last):
            pass
        if self.stopped and self._held:
            self._drop(len(self._held), self._why)
        return self._out

    def _step(self, last: bool) -> bool:
        """Decides about the first of the held text. False: it needs more."""
        if self._close is not None:
            return self._in_thought(self._close, last)
        first = self._held[0]
        if first.isspace():
            return self._space(last)
        if first in HEADS:
            mark = mark_at_start(self._held, last)
            if isinstance(mark, Found):
                self._marked(mark)
                return True
            if mark:
                return False
        if self._closer and (done := self._closes_label(last)) is not None:
            return done
        if self._labels is not None and not self._looked and (not self.said or self._after_end):
            label = self._labels.at_start(self._held, last, known_only=bool(self.said))
            if label is True:
                return False
            self._looked = True
            if isinstance(label, Label):
                self._labelled(label)
                return True
        if first in _DIRECTIONS and self._directs:
            return self._direction(last)
        if first in sentences.MARKS:
            return self._sentence(last)
        found = _PLAIN.match(self._held, 1)
        assert found is not None
        self._tell(found.end())
        return True

    # -- thoughts and markers ----------------------------------------------------------------------------------

    def _marked(self, found: Found) -> None:
        match found.mark:
            case Mark.OPENS:
                self._close, self._close_max, self._thought_len = close_of(found.close), len(found.close), 0
                self._drop(found.length, Cut.THOUGHT)
            case Mark.CLOSES:
                self._take_back(found.length)
            case Mark.WRAPS:
                self._drop(found.length, Cut.MARKER)
                self._gap = True
            case Mark.ENDS:
                self._stop(Cut.MARKER)

    def _in_thought(self, close: re.Pattern[str], last: bool) -> bool:
        """Cuts as far as no close can stand in it."""
        found = close.search(self._held)
        end = found.end() if found is not None else len(self._held)
        if self._thought_len + end > self._rules.thought_max + self._close_max:
            self._stop(Cut.THOUGHT)
            return True
        if found is not None:
            self._close, self._looked, self._gap = None, False, True
        elif not last:
            end = max(0, end - self._close_max + 1)
        self._thought_len += end
        self._drop(end, Cut.THOUGHT)
        return end > 0

    def _take_back(self, length: int) -> None:
        """A thought ended that never began: all before was one."""
        shown = any(why in (None, Cut.DIRECTION) for why, _ in self.parts)
        self.parts = [(Cut.THOUGHT, text) for _, text in self.parts]
        self._spaces.clear()
        self.said, self._sentences = "", 0
        self._looked = self._after_end = self._star = self._gap = False
        self._fresh = True
        if shown:
            self._out.append(Piece(Shown.TAKEN_BACK))
        self._drop(length, Cut.THOUGHT)

    # -- labels and turns --------------------------------------------------------------------------------------

    def _labelled(self, label: Label) -> None:
        if self.said:
            self._stop(Cut.TURN)
        elif label.whose is Whose.OTHER:
            self._stop(Cut.ANOTHER)
        else:
            self._drop(label.length, Cut.LABEL)
            self._closer, self._looked = label.closer, False

    def _closes_label(self, last: bool) -> bool | None:
        """Cuts the stars that a label began with; None if they do not follow."""
        closer = self._closer
        if self._held.startswith(closer):
            self._closer = ""
            self._drop(len(closer), Cut.LABEL)
            return True
        if not last and closer.startswith(self._held):
            return False
        self._closer = ""
        return None

    def _space(self, last: bool) -> bool:
        run = self._held[:SPACE_MAX]
        run = run[: len(run) - len(run.lstrip())]
        line = run.find("\n")
        if line < 0 or (line > 0 and self.said):
            self._keep_space(len(run) if line < 0 else line)
            return True
        if not self.said:
            self._drop(len(run), Cut.SPACE)
            return True
        if len(run) == len(self._held) and len(run) < SPACE_MAX and not last:
            return False
        if self._rules.turns and run.count("\n") > 1:
            self._stop(Cut.TURN)
            return True
        begins = self._begins_a_turn(self._held[len(run) :], last)
        if begins is None:
            return False
        if begins:
            self._stop(Cut.TURN)
            return True
        self._keep_space(len(run))
        self._fresh, self._looked = True, True
        return True

    def _begins_a_turn(self, line: str, last: bool) -> bool | None:
        """True if a line is the beginning of somebody's turn; None if more text is needed to tell."""
        if not line:
            return False if last else None
        if self._rules.turns and (rule := _LINE.match(line)) is not None:
            if rule.end() > 2:
                return True
            if rule.end() == len(line) and not last:
                return None
        if self._labels is None:
            return False
        label = self._labels.at_start(line, last)
        return None if label is True else isinstance(label, Label)

    # -- stage directions --------------------------------------------------------------------------------------

    def _direction(self, last: bool) -> bool:
        held, first = self._held, self._held[0]
        if first == "*":
            if len(held) < 2 and not last:
                return False
            if held.startswith("**") or self._star:
                self._star = False
                self._drop(2 if held.startswith("**") else 1, Cut.EMPHASIS)
                return True
            if held[1:2].isspace():
                self._tell(1)
                return True
        window = held[1 : DIRECTION_MAX + 1]
        end, line = window.find(_DIRECTIONS[first]), window.find("\n")
        if end < 0 or 0 <= line < end:
            if line < 0 and len(window) < DIRECTION_MAX and not last:
                return False
            return self._no_direction(first, line < 0 and len(window) < DIRECTION_MAX)
        if not self._fresh:
            after = held[end + 2 : end + 4]
            if len(after.lstrip()) == 0 and len(after) < 2 and not last:
                return False
            if _goes_on(after.lstrip()[:1]) and (first != "*" or " " not in window[:end]):
                return self._no_direction(first, False)
        if ANY_MARK.search(held[: end + 2]):
            return self._no_direction(first, False)
        content = window[:end].strip()
        self._drop(end + 2, Cut.DIRECTION)
        if content and self._rules.directions is Directions.EVENT:
            self._out.append(Piece(Shown.DIRECTION, content))
        self._gap = self._fresh = True
        self._looked = False
        return True

    def _no_direction(self, first: str, open_end: bool) -> bool:
        """This is no direction: it is read on as text. `open_end`: the reply ends within it."""
        if open_end and self._cut_off and self._fresh:
            self._drop(len(self._held), Cut.DIRECTION)
        elif first == "*":
            self._star = not open_end
            self._drop(1, Cut.EMPHASIS)
        else:
            self._tell(1)
        return True

    # -- sentences ---------------------------------------------------------------------------------------------

    def _sentence(self, last: bool) -> bool:
        held = self._held
        found = sentences.RUN.match(held)
        assert found is not None
        run = found.group()
        after = held[len(run) : len(run) + PEEK_MAX]
        if not last and not after.strip() and (not after or len(after) < PEEK_MAX):
            return False
        before = "" if self._spaces else self.said[-24:].rpartition(" ")[2]
        # A mark or a stage direction may follow without a space.
        marked = bool(after) and after[0] in _AFTER_END and (self._directs or after[0] in HEADS)
        ended = marked or sentences.ends(run, before, after)
        self._tell(len(run))
        if ended:
            self._sentences += 1
            self._fresh = self._after_end = True
            self._looked = False
            self._out.append(Piece(Shown.SENTENCE))
            if self._sentences == self._rules.sentences_max:
                self._stop(Cut.SENTENCES)
        return True

    # -- what is told and what is cut --------------------------------------------------------------------------

    def _tell(self, length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        self._settle_spaces(Cut.SPACE if self._gap and text[0] in _GOES_ON else None)
        self._gap = self._fresh = self._after_end = False
        self._looked = True
        self.parts.append((None, text))
        self._show(text)

    def _settle_spaces(self, why: Cut | None) -> None:
        """Decides about the white space before this place. If something was cut within it, the space before that is
        enough.
        """
        for n, index in enumerate(self._spaces):
            if why is None and index == self._spaces[0] + n:
                space = self.parts[index][1]
                self.parts[index] = (None, space)
                self._show(space)
        self._spaces.clear()

    def _show(self, text: str) -> None:
        self.said += text
        if self._out and self._out[-1].shown is Shown.TOLD:
            text = self._out.pop().text + text
        self._out.append(Piece(Shown.TOLD, text))

    def _keep_space(self, length: int) -> None:
        """White space is told when text follows it."""
        if not self.said:
            self._drop(length, Cut.SPACE)
            return
        self._spaces.append(len(self.parts))
        self.parts.append((Cut.SPACE, self._held[:length]))
        self._held = self._held[length:]

    def _drop(self, length: int, why: Cut) -> None:
        if length:
            self.parts.append((why, self._held[:length]))
            self._held = self._held[length:]

    def _stop(self, why: Cut) -> None:
        """The reply is over here; the rest is cut."""
        self._settle_spaces(Cut.SPACE)
        self.stopped, self._why = True, why


def guarded(text: str, rules: Rules, own: Sequence[str] = (), others: Sequence[str] = ()) -> Verdict:
    """The verdict about a whole reply."""
    guard = Guard(rules, own, others)
    guard.add(text)
    guard.end()
    return guard.verdict()


def _goes_on(following: str) -> bool:
    """True if a sentence goes on with this character."""
    return bool(following) and (
        following in _GOES_ON or following.isdigit() or (following.isalpha() and not following.isupper())
    )


@lru_cache(maxsize=256)
def _labels(own: tuple[str, ...], others: tuple[str, ...]) -> Labels:
    return Labels(own, others)

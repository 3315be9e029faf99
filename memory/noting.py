"""Noting: rules that find facts worth keeping in a conversation, and that check a model's summary of it.

A fact is a sentence about the player in the third person, with PLAYER in place of the name, which may become known
later. The first rules are the sentences that the shipped model was trained to remember (models/corpus/memories.py).
Any other short statement about oneself is kept too, with less weight. The rules are English; in other languages there
is the summary alone. Names may be of any script, and spelling is taken as people type it: curly apostrophes, none at
all, no capitals. Plain values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from memory.bond import Exchange

PLAYER = "{player}"
UNNAMED = "The player"
FACT_LEN_MAX = 160
NAME_LEN_MAX = 64
FACTS_PER_LINE_MAX = 4
SUMMARY_LEN_MAX = 600
BORNE_OUT_MIN = 0.75  # share of a summary sentence's words, names aside, that must come from the conversation

Noted = tuple[str, float]

# All that people type for an apostrophe. One character each, so that places in the text stay the same.
_PLAIN = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u2032\uff07\u00b4\u0060\u201b", "'"))
# A word is all between spaces and punctuation: letters of some scripts carry marks and joiners that are not \w.
_WORD = (
    r"[^\s.,;:!?\u2026\"“”„«»()\[\]{}<>/\\|*~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f\u0589\u060c\u061b\u061f\u0964]+"
)
_THING = rf"({_WORD}(?: {_WORD}){{0,3}}?)"
_KIN = (
    "(sister|brother|mother|father|daughter|son|cousin|wife|husband|horse|friend|uncle|aunt|dog|cat|child|master|lord)"
)
_THE = r"(?:the |an? |my )?"
_AT = rf"(at|near|in|by) {_THE}{_THING}"
_TAKEN = r"(?:i(?: have|'?ve)? lost|i miss|(?:somebody|someone|a thief|they) (?:stole|took)) my"
_FROM = r"(?:i come from|i am from|i'?m from|my home is|i was born in|my hometown is)"
_SEEK = r"(?:i am looking for|i'?m looking for|i seek|i search for|i must find|i am here to find|i want to find)"
_BRING = r"(?:i promise to bring you|i will bring you|i'll bring you|i swear to bring you|next time i bring you)"
_COINS = r"([^\W_][\w-]* (?:coins?|gold|silver|gold coins|silver coins))"
_END = r"(?: (?:please|now|again|today|then|too))?(?:,.*)?$"

_NAMED = re.compile(
    r"\b(?:my (?:full |first |real )?name(?: is|'?s)|the name(?: is|'s)|i am (?:called|named)|i'?m (?:called|named)"
    rf"|(?:they |people |you (?:can |may ))?call me)[\s:]+({_WORD})(?:([ \u00a0\u3000])({_WORD}))?",
    re.IGNORECASE,
)
# Words that follow "my name is" or "call me", and are no names; without a capital one of these is not taken for one.
_NO_NAMES = frozenset(
    "a about after again all already also always an and any anything anytime as at away back because before "
    "between but by called crazy cursed dead don't early even ever everywhere evil feared for forgotten from gone "
    "good great hated he her here hers his home how i if important in into irrelevant is it its just known later "
    "lost loud mad maybe me mean mine my names never new no nobody none not nothing now of off often old on once "
    "one only or our ours out over please private rarely round sacred secret she should sir so some sometimes "
    "soon still stupid such tainted that the their theirs them then there these they this those to today tomorrow "
    "tonight too unimportant unknown unspoken until up us very was we well what whatever when whenever where "
    "which while who whom whose why will with without wrong yesterday yet you your yours".split()
)
# (pattern of the player's words, the fact with the groups in their places, importance); the first that fits counts.
_RULES = tuple(
    (re.compile(said + _END, re.IGNORECASE), note, importance)
    for said, note, importance in (
        (rf"{_TAKEN} {_THING} {_AT}", "{player} lost the {0} {1} the {2}.", 0.7),
        (rf"{_TAKEN} {_THING}", "{player} lost the {0}.", 0.7),
        (rf"{_FROM} {_THING}", "{player} comes from {0}.", 0.6),
        (rf"my {_KIN}(?: is called| is named|'s name is) {_THING}", "{player}'s {0} is {1}.", 0.7),
        (rf"i have an? {_KIN},? (?:called |named )?{_THING}", "{player}'s {0} is {1}.", 0.7),
        (rf"{_THING} is my {_KIN}", "{player}'s {1} is {0}.", 0.7),
        (rf"{_SEEK} {_THE}{_THING}", "{player} seeks the {0}.", 0.8),
        (rf"i(?: still)? owe you {_COINS}", "{player} owes {npc} {0}.", 0.9),
        (rf"i(?: will|'ll) pay you {_COINS}", "{player} owes {npc} {0}.", 0.9),
        (rf"{_BRING} {_THE}{_THING}", "{player} promised {npc} the {0}.", 0.9),
        (r"i (?:promise|swear)(?: you)? to ([^,]+)", "{player} promised to {0}.", 0.9),
        (rf"(?:i was|they) (robbed|attacked)(?: me)? {_AT}", "{player} was {0} {1} the {2}.", 0.7),
        (rf"{_WORD}(?: {_WORD})* (?:attacked|bit|hunted) me {_AT}", "{player} was attacked {0} the {1}.", 0.7),
    )
)

_VERBS = (
    (re.compile(r"i(?: am|'?m) ", re.IGNORECASE), "is "),
    (re.compile(r"i(?: have|'?ve) ", re.IGNORECASE), "has "),
    (re.compile(r"i(?: will|'ll) ", re.IGNORECASE), "will "),
    (re.compile(r"i (was|had|can|cannot|must|could|would|should) ", re.IGNORECASE), r"\1 "),
    (re.compile(r"i do not ", re.IGNORECASE), "does not "),
    (re.compile(r"i don'?t ", re.IGNORECASE), "does not "),
)
# Statements that say something about oneself, and not only about this moment.
_LASTING = re.compile(
    r"i(?: am|'?m) (?:an?|the|your) |i (?:love|like|hate|fear|know|serve|hunt|live|own|work|need|want|killed|saved"
    r"|trust|believe|remember|promise|swear|have|had|was|never|always) ",
    re.IGNORECASE,
)
_THEIRS = tuple(
    (re.compile(rf"\b{mine}\b", re.IGNORECASE), theirs)
    for mine, theirs in (("my", "their"), ("myself", "themself"), ("i", "they"), ("me", "them"))
)
_YOU = re.compile(r"\byou\b", re.IGNORECASE)
_SENTENCES = re.compile(r"(?<=[.!?;])\s+|(?<=[\u3002\uff01\uff1f\u061f\u0964])\s*|\n+")
_QUESTIONS = ("?", "\uff1f", "\u061f", "\u037e")
_WORDS = re.compile(r"[\w'-]+")
_COMMON = frozenset(
    "about after again also asked back been came come could from have into more name named said some spoke than that "
    "their them then there they this time told talked very went were what when where will with would your".split()
)


def name_of(line: str) -> str:
    """The player's name, when the line tells it; else empty. A name that was typed without capitals gets them."""
    for found in _NAMED.finditer(line.translate(_PLAIN)):
        first, gap, second = (line[slice(*found.span(i))] for i in (1, 2, 3))
        shouted = found[0].isupper()
        if not _may_be_name(first, shouted):
            continue
        lower = first.islower()
        more = second and (_is_name(second, shouted) or (lower and second.islower() and _ends(line, found.end())))
        if more and _may_be_name(second, shouted):
            first += gap + second
        name = _with_capitals(first) if lower or (shouted and first.isupper()) else first
        if len(name) <= NAME_LEN_MAX:
            return name
    return ""


def facts_of(line: str, npc_name: str) -> list[Noted]:
    """The facts about the player in a line: (sentence, importance), the most important FACTS_PER_LINE_MAX."""
    out: list[Noted] = []
    for sentence in sentences(line):
        if sentence.endswith(_QUESTIONS) or len(sentence) > FACT_LEN_MAX:
            continue
        noted = _fact(" ".join(sentence.translate(_PLAIN).rstrip(".!;, \u3002\uff01\u0964").split()), npc_name)
        if noted is not None and len(noted[0]) <= FACT_LEN_MAX and noted not in out:
            out.append(noted)
    return sorted(out, key=lambda n: -n[1])[:FACTS_PER_LINE_MAX]


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [s.strip() for s in _SENTENCES.split(text) if s.strip()]


def with_name(text: str, player_name: str) -> str:
    """A fact or summary with the player's name in its place."""
    return text.replace(PLAYER, player_name or UNNAMED)


def summary_by_rule(npc_name: str, topics: Sequence[Noted]) -> str:
    """A summary made of what was noted."""
    kept = [text for text, _ in sorted(topics, key=lambda n: -n[1])[:4]]
    return " ".join([f"{PLAYER} talked with {npc_name}.", *kept])[:SUMMARY_LEN_MAX]


def believed(said: str, exchanges: Iterable[Exchange], names: Sequence[str]) -> str:
    """A model's summary without the sentences that the conversation does not bear out; empty when nothing is left.

    `names` (NPC, player) may always be used. Models invent, and what an NPC remembers it will repeat for thirty days.
    """
    heard = {_stem(w) for e in exchanges for w in _words(f"{e.line} {e.reply}")}
    named = {_stem(w) for name in names for w in _words(name)}
    out: list[str] = []
    for sentence in sentences(" ".join(said.split())):
        if sentence in out or sum(map(len, out)) + len(sentence) > SUMMARY_LEN_MAX:
            continue
        if _borne_out(sentence, heard, named):
            out.append(sentence)
    return " ".join(out)


def covered(sentence: str, facts: Iterable[str]) -> bool:
    """True if one of the facts says the same, maybe in other words."""
    words = {_stem(w) for w in _words(sentence) if len(w) >= 4}
    return any(words <= {_stem(w) for w in _words(fact)} for fact in facts)


def _may_be_name(word: str, shouted: bool) -> bool:
    """True if a word can be a name or a part of one. In a line of capitals, or without any, fewer words can."""
    bare = word.strip("'-")
    if not bare or not bare[0].isalpha():
        return False
    if bare[0].islower() or shouted:
        return len(bare) > 1 and bare.translate(_PLAIN).casefold() not in _NO_NAMES
    return len(bare) > 1 or not bare[0].isupper()  # "I" is nobody's name; one sign may be


def _is_name(word: str, shouted: bool) -> bool:
    """True if a word after a name looks like its second part: a capital, or a script without capitals."""
    return not shouted and word[0].isalpha() and not word[0].islower()


def _ends(line: str, at: int) -> bool:
    """True if a sentence, or a part of it, ends here."""
    rest = line[at:].lstrip()
    return not rest or not rest[0].isalnum()


def _with_capitals(name: str) -> str:
    """ "corvessa hale" as "Corvessa Hale"."""
    return "".join(c.upper() if i == 0 or name[i - 1].isspace() else c.lower() for i, c in enumerate(name))


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.translate(_PLAIN))


def _fact(sentence: str, npc_name: str) -> Noted | None:
    for pattern, note, importance in _RULES:
        found = pattern.match(sentence)
        if found:
            groups = [g.strip() for g in found.groups()]
            return note.format(*groups, player=PLAYER, npc=npc_name), importance
    if _LASTING.match(sentence) and len(sentence.split()) <= 20:
        return _third_person(sentence, npc_name), 0.4
    return None


def _third_person(sentence: str, npc_name: str) -> str:
    """ "I love my horse" as "{player} loves their horse."."""
    rest = sentence
    for pattern, verb in _VERBS:
        if pattern.match(rest):
            rest = pattern.sub(verb, rest, count=1)
            break
    else:
        verb, _, after = sentence[2:].partition(" ")
        rest = f"{_with_s(verb)} {after}"
    for pattern, theirs in _THEIRS:
        rest = pattern.sub(theirs, rest)
    rest = _YOU.sub(lambda _: npc_name, rest)
    return f"{PLAYER} {rest.strip()}."


def _with_s(verb: str) -> str:
    if verb in ("never", "always") or verb.endswith("ed"):
        return verb
    if verb.endswith(("s", "sh", "ch", "x", "z")):
        return f"{verb}es"
    return f"{verb}s"


def _borne_out(sentence: str, heard: set[str], named: set[str]) -> bool:
    words = _words(sentence)
    if not words or not sentence.endswith((".", "!")):
        return False
    if any(w[0].isupper() or w[0].isdigit() for w in words[1:] if _stem(w) not in heard | named):
        return False
    content = [w for w in words if len(w) >= 4 and w.casefold() not in _COMMON and _stem(w) not in named]
    found = sum(1 for w in content if _stem(w) in heard)
    return found >= BORNE_OUT_MIN * len(content)


def _stem(word: str) -> str:
    return word.casefold().removesuffix("'s").removesuffix("s")[:5]

"""Chat templates of other models: what stands between the messages, cut out of the template once and then proved.

A template is a program that renders a whole conversation anew; the cache needs text that is only ever appended to. So
marked messages are rendered, and what stands between them is cut out as five joints:

    {head} world and persona {opens} line {reply} answer {next} line {reply} answer {next} line {ask} ...

`reply` is what a finished answer has before it, `ask` what makes the model answer now (at times it says more). The
joints are taken only if random conversations, put together from them, are what the template renders, and if their
tokens fall apart at the joints. Otherwise there is no markup and a sentence that says why, and prompts/marks.py has
the plain dialect.

Models whose template knows no system role, or does not leave it where it is, get the world in the first line. Contents
are given as strings, and as lists of parts to a template that takes nothing else.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prompts.marks import Markup
from prompts.thoughts import opens_a_thought

# Templates that print a date get this one: the real one would change the trunk, and with it every cache, at midnight.
TODAY = datetime(2024, 7, 26)
RENDERED_LEN_MAX = 1 << 20
CONVERSATIONS = 24  # conversations that the joints are tried on
TURNS_MAX = 6
_MARKER_LIKE = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Za-z_]{3,40}\]")
_LIST_PRINTED = "{'type': 'text'"  # how a template prints a list of parts that it does not read
BETWEEN = "\n\n"  # world and first line, where they share a message


class Tokenizer(Protocol):
    """The part of a tokenizer that is needed here (engines.base.Vocab has it)."""

    @property
    def bos_id(self) -> int:
        """The token every text must begin with, or -1."""

    @property
    def bos_text(self) -> str:
        """How templates write it; may be there when bos_id is -1."""

    @property
    def eos_text(self) -> str:
        """How templates write the token that ends a text."""

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text."""

    def markup(self, text: str) -> list[int]:
        """Tokens of a template's own text."""

    def written(self, token: int) -> str:
        """A control token's text."""

    def is_marker(self, token: int) -> bool:
        """True if it is a control token or an added one."""

    def whole(self, text: str) -> int:
        """The id of the token that is written exactly so, of whatever kind, or -1."""

    def adopt(self, texts: Sequence[str]) -> None:
        """Makes markers of the tokens that are written so."""

    def piece(self, token: int) -> bytes:
        """A token's bytes."""


@dataclass(frozen=True, slots=True)
class Joints:
    """The text of a template between the messages. `system`: True if the world has a message of its own."""

    head: str
    opens: str
    reply: str
    next: str
    ask: str
    system: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The markup, or None; and in one line what it is or why there is none."""

    markup: Markup | None
    why: str


class _NoMarkup(Exception):
    """The template cannot be used; the message says why."""


Message = dict[str, str]
Render = Callable[[Sequence[Message]], str]


def find_markup(template: str, vocab: Tokenizer) -> Found:
    """The markup of a model's chat template. Nothing that a template does is raised.

    Markers of the template that the vocabulary has as ordinary text are adopted: the file was converted wrongly, and
    the model was trained on each as one token.
    """
    if not template.strip():
        return Found(None, "the model has no chat template")
    torn = unmarked(template, vocab)
    vocab.adopt(torn)
    whys: list[str] = []
    for parts in (False, True):
        try:
            render = compiled(template, vocab.bos_text, vocab.eos_text, parts)
        except _NoMarkup as error:
            return Found(None, str(error))
        for system in (True, False):
            try:
                markup, same = _proved(render, system, vocab)
            except _NoMarkup as error:
                whys.append(str(error))
                continue
            where = "a message of its own" if system else f"the first line ({whys[-1]})"
            why = f"world in {where}; {same} of {CONVERSATIONS} conversations tokenise as in one piece"
            if parts:
                why += "; contents are lists of parts"
            if torn:
                why += f"; the file has {', '.join(torn)} as ordinary text (NORMAL), npcd reads a marker"
            return Found(markup, why)
    return Found(None, whys[0] if whys[0] == whys[1] else f"{whys[0]}; with the world in the first line: {whys[1]}")


def _proved(render: Render, system: bool, vocab: Tokenizer) -> tuple[Markup, int]:
    """The markup, and how many conversations tokenise in parts exactly as in one piece. Raises _NoMarkup."""
    joints = cut_out(render, system)
    if not system:
        # World and line share a message, so what is between them is ours to say: as before every other line.
        joints = replace(joints, opens=BETWEEN + _spaces(joints.next))
    prove(render, joints)
    markup = tokenised(joints, vocab)
    return markup, prove_tokens(render, joints, markup, vocab)


def unmarked(template: str, vocab: Tokenizer) -> list[str]:
    """Markers that a template writes, and that the vocabulary has as a token of ordinary text: a mistake in the
    model's conversion, by which they would fall into pieces that the model was never trained on.
    """
    words = [f"zq{name}qz" for name in ("world", "one", "two", "three")]
    found: list[str] = []
    for parts, system in itertools.product((False, True), (True, False)):
        try:
            render = compiled(template, vocab.bos_text, vocab.eos_text, parts)
            text = render(conversation(words[0], words[1:], system))
        except _NoMarkup:
            continue
        for written in dict.fromkeys(_MARKER_LIKE.findall(text)):
            tokens = vocab.markup(written)
            meant = len(tokens) == 1 and vocab.is_marker(tokens[0])
            if not meant and written not in found and vocab.whole(written) >= 0:
                found.append(written)
    return found


# -- rendering -----------------------------------------------------------------------------------------------------


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates come from files of strangers: no attributes, no mutation, no products that fill the memory."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not all(isinstance(side, int) and abs(side) < 1 << 20 for side in (left, right)):
            raise SecurityError(f"'{operator}' is for small numbers here")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """{% generation %} marks what trainers learn from; it renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compiled(template: str, bos: str, eos: str, parts: bool = False) -> Render:
    """A function that renders messages and asks for the next answer. It raises _NoMarkup, whatever goes wrong. With
    `parts` the template gets each content as a list of one part, {"type": "text", "text": ...}.
    """
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    sandbox.filters.pop("random")  # must render the same every time
    sandbox.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        program = sandbox.from_string(template)
    except TemplateSyntaxError as error:
        raise _NoMarkup(f"the chat template cannot be read: {error}") from error
    variables = {
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": True,
        "enable_thinking": False,  # NPCs answer at once
        "raise_exception": _refuse,
        "strftime_now": TODAY.strftime,
        # As transformers gives them: many templates ask `is not none`, which an undefined variable is not.
        "tools": None,
        "documents": None,
    }

    def given(message: Message) -> dict[str, Any]:
        return {**message, "content": [{"type": "text", "text": message["content"]}]} if parts else dict(message)

    def render(messages: Sequence[Message]) -> str:
        out, length = [], 0
        try:
            for piece in program.generate(messages=[given(m) for m in messages], **variables):
                out.append(piece)
                length += len(piece)
                if length > RENDERED_LEN_MAX:
                    raise _NoMarkup(f"the chat template renders more than {RENDERED_LEN_MAX} characters")
        except _NoMarkup:
            raise
        except Exception as error:  # a program of strangers may raise anything
            said = " ".join(str(error).split()) or type(error).__name__
            raise _NoMarkup(f"the chat template refuses: {said}") from error
        text = "".join(out)
        if parts and _LIST_PRINTED in text:
            raise _NoMarkup("the chat template prints lists of parts")
        return text

    return render


def _refuse(why: str) -> None:
    raise TemplateError(why)


def conversation(world: str, lines: Sequence[str], system: bool, between: str = BETWEEN) -> list[Message]:
    """Messages of a world's text and lines in turn, the player's first."""
    said = list(lines)
    messages: list[Message] = []
    if system:
        messages.append({"role": "system", "content": world})
    else:
        said[0] = f"{world}{between}{said[0]}"
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


# -- joints --------------------------------------------------------------------------------------------------------


def cut_out(render: Render, system: bool) -> Joints:
    """The joints, read off one conversation of words that no template knows. Raises _NoMarkup."""
    words = [f"zq{name}qz" for name in ("world", "one", "two", "three", "four", "five")]
    text = render(conversation(words[0], words[1:], system))
    between = []
    at = 0
    for word in words:
        found = text.find(word, at)
        if found < 0 or text.count(word) != 1:
            what = "system message" if system else "messages"
            raise _NoMarkup(f"the chat template does not keep its {what} in place")
        between.append(text[at:found])
        at = found + len(word)
    head, opens, reply, following, reply_again, following_again = between
    if (reply, following) != (reply_again, following_again):
        raise _NoMarkup("the chat template marks later messages differently")
    return Joints(head, opens, reply, following, text[at:], system)


def prove(render: Render, joints: Joints) -> None:
    """Raises _NoMarkup unless conversations put together from the joints are what the template renders."""
    for world, lines in _conversations():
        if render(conversation(world, lines, joints.system, joints.opens)) != _joined(joints, world, lines):
            raise _NoMarkup("the chat template renders a longer conversation differently from a shorter one")


def _joined(joints: Joints, world: str, lines: Sequence[str]) -> str:
    parts = [joints.head, world, joints.opens]
    for i, text in enumerate(lines):
        last = i == len(lines) - 1
        parts += [text, joints.ask if last else joints.next if i % 2 else joints.reply]
    return "".join(parts)


def _conversations() -> list[tuple[str, list[str]]]:
    """(world, lines) of one to TURNS_MAX exchanges, the last one open; the same ones every time."""
    rng = random.Random(1)
    # Nothing that a vocabulary may have whole, as Gemma's has the tags of HTML: in a whole text it would be a marker.
    words = (
        "Mira bakes #1 calm, 'bread' (old) 12 Zürich 世界 🐺 a<b {x} [y] a_b ... No! why? \"so\" it's 3.5% & |".split()
    )

    def text(longest: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, longest)))

    return [
        ("\n".join(text(9) for _ in range(rng.randint(1, 4))), [text(9) for _ in range(2 * (i % TURNS_MAX) + 1)])
        for i in range(CONVERSATIONS)
    ]


# -- tokens --------------------------------------------------------------------------------------------------------


def tokenised(joints: Joints, vocab: Tokenizer) -> Markup:
    """The joints in a model's tokens.

    Raises _NoMarkup when answers would have no end, or when players could write markers.
    """
    # NPCs answer at once. Text beyond the beginning of a kept answer may be a thought, if it is a closed one. If a
    # template asks for something else first, the answer begins as kept ones do.
    thinks = opens_a_thought(joints.ask)
    ask = joints.ask if not thinks and joints.ask.startswith(joints.reply.rstrip(" ")) else joints.reply
    following, opens, line_lead = joints.next, joints.opens, _spaces(joints.next)
    if _spaces(opens) == line_lead:
        following, opens = following.rstrip(" "), opens.rstrip(" ")
    else:
        line_lead = ""

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(vocab.markup(text))

    head = vocab.markup(joints.head.rstrip(" "))
    markup = Markup(
        head=tuple(_begun_once(head, vocab.bos_id) if vocab.bos_id >= 0 else head),
        opens=tokens(opens),
        reply=tokens(joints.reply.rstrip(" ")),
        next=tokens(following),
        ask=tokens(ask.rstrip(" ")),
        system_lead=_spaces(joints.head),
        line_lead=line_lead,
        reply_lead=_spaces(joints.reply),
        stop_ids=frozenset(),
    )
    end = next((i for i, t in enumerate(markup.next) if vocab.is_marker(t)), -1)
    if end < 0 or b"".join(map(vocab.piece, markup.next[:end])).strip():
        raise _NoMarkup("an answer does not end with a token of its own")
    markers = {t for part in (markup.head, markup.opens, markup.reply, markup.next) for t in part if vocab.is_marker(t)}
    for marker in sorted(markers):
        if any(vocab.is_marker(t) for t in vocab.encode(vocab.written(marker))):
            raise _NoMarkup(f"players could write the marker '{vocab.written(marker)}'")
    return replace(markup, stop_ids=frozenset(markers))


def prove_tokens(render: Render, joints: Joints, markup: Markup, vocab: Tokenizer) -> int:
    """How many conversations tokenise in parts exactly as in one piece.

    Tokens may differ at a joint where a whole text merges across it, but not their text: raises _NoMarkup unless
    markers and the text between them are the same.
    """
    same = 0
    for world, lines in _conversations():
        own = list(markup.head) + vocab.encode(markup.system_lead + world) + list(markup.opens)
        for i, text in enumerate(lines):
            lead = markup.reply_lead if i % 2 else markup.line_lead
            own += vocab.encode(lead + text)
            own += (markup.next if i % 2 else markup.reply) if i < len(lines) - 1 else markup.ask
        text = _joined(replace(joints, ask=""), world, lines)
        whole = vocab.markup(text)
        if vocab.bos_id >= 0:
            whole = _begun_once(whole, vocab.bos_id)
        asked = own[: len(own) - len(markup.ask)]
        if _said(asked, vocab) != _said(whole, vocab):
            raise _NoMarkup("the tokens of a conversation do not fall apart between its messages")
        same += asked == whole
    return same


def _said(tokens: Sequence[int], vocab: Tokenizer) -> list[int | bytes]:
    """Markers, and the text between them. A space after a marker is no difference: some tokenizers add one."""
    out: list[int | bytes] = []
    text = b""
    for token in tokens:
        if vocab.is_marker(token):
            out += [text.strip(b" "), token]
            text = b""
        else:
            text += vocab.piece(token)
    return [*out, text.strip(b" ")]


def _begun_once(tokens: Sequence[int], bos: int) -> list[int]:
    """The tokens with BOS before them, once: templates and tokenizers both like to put it there."""
    return [bos, *itertools.dropwhile(lambda token: token == bos, tokens)]


def _spaces(text: str) -> str:
    return text[len(text.rstrip(" ")) :]

"""Samples as token trees: one trunk per NPC, many branches on it, rendered with the daemon's own layout.

    world, archetype, persona ─┬─ intent tail + choice (+ bark)          (many)
                               ├─ one question + reply                   (many)
                               └─ summary, card ─┬─ one question + reply (many)
                                                 └─ turn 1 ─┬─ talk tail + reply of turn 2
                                                            └─ turn 2 ─ ... ─┬─ one question + reply
                                                                             └─ summary of the talk

A branch sees its ancestors and itself; positions go on from its parent's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from random import Random

from core.script import player_line
from models.corpus import words
from models.corpus.dialogue import (
    QUESTIONS,
    REMEMBERED,
    REMEMBERED_LATE,
    Memory,
    Talk,
    Turn,
    make_memory,
    make_questions,
    make_talk,
    summary_found,
)
from models.corpus.intents import Sample, make_sample
from models.corpus.tree import BARK, CHOICE, FOUND, REPLY, TEXT, TOLD, Tree
from models.corpus.worlds import Npc, World, make_npc, make_world
from prompts.caps import Caps
from prompts.layout import Layout
from prompts.marks import MARKS
from prompts.sight import percept_words, situation_words

_SKIP_MAX = 500
_ROOMY = Caps(**dict.fromkeys((f.name for f in fields(Caps)), 9999) | {"bark": 99, "percepts": 5})
Parts = list[tuple[tuple[int, ...], float]]


def rng_of(seed: int, split: str, number: int) -> Random:
    """The generator of one tree: the same for the same arguments on every machine."""
    return Random(f"npcd:{seed}:{split}:{number}")


def trees(layout: Layout, seed: int, split: str, length_max: int, unseen: bool = False) -> Iterator[Tree]:
    """Endless trees of at most `length_max` tokens. With `unseen` they have held-out names, items and orders."""
    number = 0
    while True:
        rng = rng_of(seed, split, number)
        number += 1
        yield make_tree(rng, layout, length_max, unseen)


def make_tree(rng: Random, layout: Layout, length_max: int, unseen: bool = False, late: bool = False) -> Tree:
    """One NPC in one world: intents for a third of the tree, talk of several kinds for the rest.

    `late` in a training there are more memories, and the persona says less.
    """
    world = make_world(rng, unseen)
    npc = make_npc(rng, rng.choice(words.ARCHETYPES), unseen)
    tree = Tree()
    root = tree.add(-1, (trunk(layout, world, npc), TEXT))
    room = length_max - tree.length
    kind = rng.choices(("talk", "memory", "questions"), (40, 40, 20) if late else (45, 25, 30))[0]
    talking_max = tree.length + int(room * rng.uniform(0.5, 0.75))
    digest = ""
    if kind == "talk":
        turns = rng.choices((2, 4, 7, 12, 22), (2, 6, 6, 3, 2))[0]
        if turns > 12:
            talking_max = length_max
        add_talk(rng, tree, root, layout, world, npc, make_talk(rng, layout, world, npc, turns), talking_max)
    elif kind == "memory":
        memory = make_memory(rng, world, npc)
        digest = memory.digest
        here = _add_memory(tree, root, layout, memory)
        made = make_questions(rng, layout, world, npc, memory.known, REMEMBERED_LATE if late else REMEMBERED, 12)
        _add_questions(rng, tree, here, layout, memory, made, talking_max)
    else:
        nobody = make_memory(rng, world, npc, 0.0)
        made = make_questions(rng, layout, world, npc, nobody.known, QUESTIONS, 14)
        _add_questions(rng, tree, root, layout, nobody, made, talking_max)
    while True:
        sample = make_sample(rng, layout, world, npc.archetype)
        parts = intent_parts(layout, world, sample, digest if rng.random() < 0.5 else "")
        if tree.length + sum(len(ids) for ids, _ in parts) > length_max:
            break
        tree.add(root, *parts)
    if rng.random() < 0.3:
        # Games write more lore than the corpus has, so the text after the trunk must also be found from farther away.
        skip = rng.randrange(_SKIP_MAX)
        for piece in tree.pieces:
            piece.skip = skip if piece.parent == root else 0
    return tree


def trunk(layout: Layout, world: World, npc: Npc) -> tuple[int, ...]:
    """The intent trunk: world, archetype, persona."""
    shared = layout.world(world.lore, world.actions, world.emotions) + layout.archetype(npc.archetype, npc.nature)
    return shared + layout.persona(npc.name, npc.text)


def chosen(layout: Layout, sample: Sample) -> tuple[int, ...]:
    """The choice as the model writes it: action, target, emotion."""
    made = sample.decision
    return layout.word(made.action) + layout.marks[f"p{made.target}"] + layout.word(made.emotion)


def intent_parts(layout: Layout, world: World, sample: Sample, digest: str = "") -> Parts:
    """The weighted parts of an intent branch: its tail, the choice, and the bark if there is one."""
    parts: Parts = [(layout.intent_tail(sample.perception, digest).tokens, 0.0), (chosen(layout, sample), CHOICE)]
    if sample.bark:
        parts += [(layout.marks["say"], 0.0), (layout.spoken(sample.bark) + layout.marks["end"], BARK)]
    return parts


def reply_parts(layout: Layout, reply: str, found: frozenset[str], weight: float) -> Parts:
    """A closed reply, whose found words weigh FOUND and whose other words weigh as much as a reply."""
    tokens = layout.spoken(reply)
    weights = [weight] * len(tokens)
    if weight == REPLY:
        for word in found:
            ids = layout.word(word)
            for at in range(len(tokens) - len(ids) + 1):
                if tokens[at : at + len(ids)] == ids:
                    weights[at : at + len(ids)] = [FOUND] * len(ids)
    return [*(((token,), w) for token, w in zip(tokens, weights, strict=True)), (layout.marks["end"], weight)]


def add_talk(
    rng: Random, tree: Tree, root: int, layout: Layout, world: World, npc: Npc, talk: Talk, length_max: int
) -> None:
    """Adds the conversation's trunk, and at up to three turns a branch whose reply is about the sight.

    It ends early when the tree is full. Only a talk that found room is followed by questions and a summary.
    """
    here = _add_memory(tree, root, layout, talk.memory)
    digest = talk.memory.digest
    branching = set(rng.sample(range(len(talk.turns)), min(2, len(talk.turns))))
    for number, turn in enumerate(talk.turns):
        asked = player_line(turn.line, talk.named)
        line = layout.render(asked).tokens
        reply = reply_parts(layout, turn.reply, turn.found, REPLY)
        tail = layout.talk_tail(asked, turn.perception, digest).tokens
        if tree.length + len(tail) + 2 * _length(reply) + len(line) + 1 > length_max:
            return
        # A reply from sight or a digest cannot be given without it.
        apart = turn.sighted or bool(digest)
        if apart or (number in branching and turn.perception is not None):
            tree.add(here, (tail, 0.0), *reply)
            told = 0.0 if apart else TOLD
            reply = [(ids, told) for ids, _ in reply]
        here = tree.add(here, (line, TEXT), (layout.marks["npc"], 0.0), *reply)
    summary = layout.summary(talk.summary).tokens
    if tree.length + len(summary) < length_max:
        said = reply_parts(layout, talk.summary, summary_found(talk), REPLY)
        tree.add(here, (layout.marks["summary"], 0.0), *said)
    made = make_questions(rng, layout, world, npc, talk.known, {"asktold": 10, "whoami": 5, "name": 2, "item": 1}, 6)
    _add_questions(rng, tree, here, layout, talk.memory, made, length_max, talk.named)


def _add_memory(tree: Tree, root: int, layout: Layout, memory: Memory) -> int:
    start: tuple[int, ...] = ()
    if memory.summary:
        start += layout.summary(memory.summary).tokens
    if memory.card:
        start += layout.card(memory.card).tokens
    return tree.add(root, (start, TEXT)) if start else root


def _add_questions(
    rng: Random,
    tree: Tree,
    here: int,
    layout: Layout,
    memory: Memory,
    made: Sequence[Turn],
    length_max: int,
    named: str = "",
) -> None:
    for turn in made:
        perception = turn.perception if turn.sighted or rng.random() < 0.5 else None
        tail = layout.talk_tail(player_line(turn.line, named), perception, memory.digest).tokens
        reply = reply_parts(layout, turn.reply, turn.found, REPLY)
        if tree.length + len(tail) + _length(reply) > length_max:
            return
        tree.add(here, (tail, 0.0), *reply)


def _length(parts: Parts) -> int:
    return sum(len(ids) for ids, _ in parts)


class _BytesOnly:
    """An Encoder for a layout that has no tokenizer yet: one token per byte."""

    bos_id = -1

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode())

    def control(self, text: str) -> int:
        """Ids behind the bytes."""
        return 256 + list(MARKS.values()).index(text)


def texts(seed: int, count: int) -> Iterator[str]:
    """The plain text of `count` trees, for training the tokenizer. It follows from the seed alone."""
    layout = Layout(_BytesOnly(), _ROOMY)
    for number in range(count):
        rng = rng_of(seed, "text", number)
        world = make_world(rng)
        npc = make_npc(rng, rng.choice(words.ARCHETYPES))
        yield f" {world.lore} Actions: {', '.join(a.word for a in world.actions)}. Feelings: {', '.join(world.emotions)}."
        yield f" {npc.archetype}. {npc.nature}"
        yield f" {npc.name}. {npc.text}"
        talk = make_talk(rng, layout, world, npc, 6)
        for memory in (talk.memory, make_memory(rng, world, npc)):
            yield from (f" {t}" for t in (memory.summary, memory.card, memory.digest) if t)
        yield f" {talk.summary}"
        for turn in talk.turns:
            yield f" {turn.line}"
            yield f" {turn.reply}"
        for _ in range(4):
            sample = make_sample(rng, layout, world, npc.archetype)
            yield situation_words(sample.seen)
            yield from (percept_words(p) for p in sample.seen.percepts)
            if sample.bark:
                yield f" {sample.bark}"

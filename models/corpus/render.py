"""Samples as token trees: one trunk per NPC, many branches on it, rendered with the daemon's own layout.

    world, archetype, persona ─┬─ intent tail + choice (+ bark)      (many)
                               └─ summary, card ─┬─ talk tail + reply of turn 1
                                                 └─ turn 1 ─┬─ talk tail + reply of turn 2
                                                            └─ turn 2 ─ ...

A branch sees its ancestors and itself; positions go on from its parent's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from daemon.prompt import Layout, percept_words, situation_words
from models.corpus import words
from models.corpus.dialogue import Talk, make_talk
from models.corpus.intents import Sample, make_sample
from models.corpus.worlds import Npc, World, make_npc, make_world

# How much a token counts in the loss, by what it is.
TEXT, CHOICE, BARK, REPLY, TOLD = 0.1, 1.0, 0.5, 1.0, 0.3
_SKIP_MAX = 500


@dataclass(slots=True)
class Piece:
    """Consecutive tokens of a tree and how much each counts; `parent` is a piece's number, or -1.

    `skip` positions are left out before it, as if the trunk were that much longer.
    """

    parent: int
    tokens: list[int]
    weights: list[float]
    skip: int = 0


@dataclass(slots=True)
class Tree:
    """One NPC's trunk and branches; a piece stands after its parent."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens in all pieces."""
        return sum(len(p.tokens) for p in self.pieces)

    def add(self, parent: int, *parts: tuple[tuple[int, ...], float]) -> int:
        """Appends a piece of weighted parts below `parent`; answers with its number."""
        tokens = [t for ids, _ in parts for t in ids]
        weights = [w for ids, w in parts for _ in ids]
        self.pieces.append(Piece(parent, tokens, weights))
        return len(self.pieces) - 1


def rng_of(seed: int, split: str, number: int) -> Random:
    """The generator of one tree: the same for the same arguments on every machine."""
    return Random(f"npcd:{seed}:{split}:{number}")


def trees(layout: Layout, seed: int, split: str, length_max: int) -> Iterator[Tree]:
    """Endless trees of at most `length_max` tokens: a conversation each, and as many intents as fit."""
    number = 0
    while True:
        rng = rng_of(seed, split, number)
        number += 1
        yield make_tree(rng, layout, length_max)


def make_tree(rng: Random, layout: Layout, length_max: int) -> Tree:
    """One NPC in one world, one conversation of one to sixteen turns, and intents until the tree is full."""
    world = make_world(rng)
    npc = make_npc(rng, rng.choice(words.ARCHETYPES))
    tree = Tree()
    root = tree.add(-1, (trunk(layout, world, npc), TEXT))
    turns = rng.choices((1, 3, 5, 8, 12, 16), (1, 3, 3, 3, 2, 1))[0]
    add_talk(rng, tree, root, layout, make_talk(rng, layout, world, npc, turns), length_max)
    while True:
        parts = intent_parts(layout, world, make_sample(rng, layout, world, npc.archetype))
        if tree.length + sum(len(ids) for ids, _ in parts) > length_max:
            break
        tree.add(root, *parts)
    if rng.random() < 0.3:
        # Games write more lore than we do: what follows the trunk must also be found from further away.
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


def intent_parts(layout: Layout, world: World, sample: Sample) -> list[tuple[tuple[int, ...], float]]:
    """The weighted parts of an intent branch: its tail, the choice, and the bark if there is one."""
    parts = [(layout.intent_tail(sample.perception), 0.0), (chosen(layout, sample), CHOICE)]
    if sample.bark:
        parts += [(layout.marks["say"], 0.0), (layout.spoken(sample.bark) + layout.marks["end"], BARK)]
    return parts


def add_talk(rng: Random, tree: Tree, root: int, layout: Layout, talk: Talk, length_max: int) -> None:
    """The conversation's trunk, with a branch where a reply is made from what is seen: at up to three of the turns.

    It ends early when the tree is full.
    """
    start: tuple[int, ...] = ()
    if talk.summary:
        start += layout.summary(talk.summary).tokens
    if talk.card:
        start += layout.card(talk.card).tokens
    here = tree.add(root, (start, TEXT)) if start else root
    digest = layout.digest(talk.digest)
    branching = set(rng.sample(range(len(talk.turns)), min(3, len(talk.turns))))
    for number, turn in enumerate(talk.turns):
        line = layout.player_turn(turn.line, talk.player).tokens
        reply = layout.spoken(turn.reply) + layout.marks["end"]
        tail = layout.talk_tail(line, turn.perception, digest)
        if tree.length + len(tail) + 2 * len(reply) + len(line) + 1 > length_max:
            return
        # What was answered from sight cannot be answered without it.
        if turn.sighted or (number in branching and (turn.perception is not None or digest)):
            tree.add(here, (tail, 0.0), (reply, REPLY))
            told = 0.0 if turn.sighted else TOLD
        else:
            told = REPLY
        here = tree.add(here, (line, TEXT), (layout.marks["npc"], 0.0), (reply, told))


def texts(seed: int, layout: Layout, count: int) -> Iterator[str]:
    """The plain text of `count` trees, for training the tokenizer: `layout` needs no real tokens yet."""
    for number in range(count):
        rng = rng_of(seed, "text", number)
        world = make_world(rng)
        npc = make_npc(rng, rng.choice(words.ARCHETYPES))
        yield f" {world.lore} Actions: {', '.join(a.word for a in world.actions)}. Feelings: {', '.join(world.emotions)}."
        yield f" {npc.archetype}. {npc.nature}"
        yield f" {npc.name}. {npc.text}"
        talk = make_talk(rng, layout, world, npc, 6)
        yield from (f" {t}" for t in (talk.summary, talk.card, talk.digest) if t)
        for turn in talk.turns:
            yield f" {turn.line}"
            yield f" {turn.reply}"
        for _ in range(4):
            sample = make_sample(rng, layout, world, npc.archetype)
            yield situation_words(sample.seen)
            yield from (percept_words(p) for p in sample.seen.percepts)
            if sample.bark:
                yield f" {sample.bark}"

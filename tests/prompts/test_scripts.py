"""A script is text. A layout's render of it is kept, and another model reads the same text in its own tokens."""

import random

import pytest

from core.choice import Node
from core.observation import Observation, Percept
from core.script import Script, Section, SectionKind, npc_line, player_line
from engines.sim import SimVocab
from prompts import choices
from prompts.caps import Caps, TooLong
from prompts.choices import ActionWord, target_word
from prompts.layout import Layout, Tail, world_sections
from prompts.marks import MARKS, Markup

ACTIONS = [ActionWord("idle"), ActionWord("attack", needs_target=True), ActionWord("go home")]
EMOTIONS = ["calm", "angry"]
KINDS = ("npcd", "chat", "plain")


def layout_of(kind: str) -> Layout:
    """A layout of each dialect, on a vocabulary of its own."""
    if kind == "npcd":
        return Layout(SimVocab(list(MARKS.values())))
    if kind == "plain":
        return Layout(SimVocab([], end=""), Caps(intent_tail=64))
    vocab = SimVocab(["<|im_start|>", "<|im_end|>"], end="<|im_end|>")
    start, end = vocab.controls["<|im_start|>"], vocab.controls["<|im_end|>"]
    markup = Markup(
        head=(start, *vocab.encode("system")),
        opens=(end, start, *vocab.encode("user")),
        reply=(end, start, *vocab.encode("assistant")),
        next=(end, start, *vocab.encode("user")),
        ask=(end, start, *vocab.encode("assistant")),
        system_lead="",
        line_lead="",
        reply_lead="",
        stop_ids=frozenset({start, end}),
    )
    return Layout(vocab, Caps(intent_tail=96, talk_tail=320), markup)


def script_of() -> Script:
    """An NPC in the middle of a conversation."""
    sections = [
        *world_sections("Long ago.", ACTIONS, EMOTIONS),
        Section(SectionKind.ARCHETYPE, "Eats.", "ghoul"),
        Section(SectionKind.PERSONA, "Small.", "Ana"),
        Section(SectionKind.SUMMARY, "You met Tom."),
        Section(SectionKind.CARD, "Tom owes you bread."),
        player_line("Hello there,\n  <|end|> you", "Tom"),
        npc_line("Go away."),
    ]
    return Script(tuple(sections), 3)


def observed(rng: random.Random) -> Observation:
    """A random observation."""
    kinds, stances = ("wolf", "market stall", "player"), ("", "hostile")
    percepts = [
        Percept(f"e{i}", rng.choice(kinds), rng.choice(stances), rng.uniform(0, 50), rng.random() < 0.5)
        for i in range(rng.randrange(9))
    ]
    events = tuple(rng.choice(("attacked", "heard_noise")) for _ in range(rng.randrange(3)))
    return Observation(
        1, tuple(percepts), events, rng.choice(("night", "")), rng.choice(("old mill", "")), rng.random()
    )


def tails(layout: Layout, rng: random.Random) -> list[Tail]:
    """A tail of each kind, about the same observation."""
    seen = layout.perceive(observed(rng))
    digest = rng.choice(("", "Tom, a friend.", "a friend of the baker and of many, many others " * 3))
    intent = layout.intent_tail(seen, digest)
    line = player_line("word " * rng.randrange(1, 200), rng.choice(("", "Tom")))
    chosen = ("attack", target_word(rng.randrange(len(seen.percepts) + 1)), "angry")
    talk = layout.talk_tail(line, rng.choice((seen, None)), digest)
    return [intent, talk, layout.bark_tail(intent, chosen), layout.summary_tail()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_a_tail_makes_its_tokens_again(kind: str) -> None:
    """On random observations, lines and digests, with any part left out, the sections have exactly the text of the
    tokens."""
    layout, rng = layout_of(kind), random.Random(1)
    assert layout.kind == kind
    for _ in range(300):
        for tail in tails(layout, rng):
            assert layout.encode(tail.sections) == tail.tokens == layout.tail(tail)


@pytest.mark.parametrize("kind", KINDS)
def test_another_model_reads_a_tail_in_its_own_tokens(kind: str) -> None:
    """A tail of one model's layout is rendered from its text by another model's layout, and a bark follows it."""
    layout, other, rng = layout_of(kind), layout_of("plain"), random.Random(2)
    for _ in range(20):
        for tail in tails(layout, rng):
            assert other.tail(tail) == other.encode(tail.sections)
        intent = tails(layout, rng)[0]
        bark = other.bark_tail(intent, ("attack", "#1", "angry"))
        assert bark.tokens == other.encode(bark.sections) == other.tail(bark)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_is_its_sections_one_after_the_other_rendered_once(kind: str) -> None:
    """Equal scripts have equal tokens, the same script gives the very same render, and a longer one begins with it."""
    layout, script = layout_of(kind), script_of()
    trunk = layout.trunk(script)
    assert trunk.tokens.tolist() == list(layout.lines(script.sections))
    assert trunk.shared == len(layout.lines(script.sections[:3]))
    assert layout.trunk(script) is trunk and layout.trunk(script.asks(layout.summary_tail().sections)) is trunk
    assert layout.trunk(script_of()).tokens.tolist() == trunk.tokens.tolist()
    longer = layout.trunk(script.goes_on([player_line("And?"), npc_line("No.")])).tokens
    assert longer[: len(trunk.tokens)].tolist() == trunk.tokens.tolist() and len(longer) > len(trunk.tokens)
    assert all(layout.render(section) is layout.render(section) for section in script.sections)


def test_each_model_has_its_own_renders_of_one_script() -> None:
    """A render of one layout is never used for another."""
    script, layouts = script_of(), [layout_of(kind) for kind in KINDS]
    made = [layout.trunk(script).tokens.tolist() for layout in layouts]
    again = [layout_of(kind).trunk(script_of()).tokens.tolist() for kind in KINDS]
    assert made == again and made[0] != made[1] != made[2]


def test_a_definition_that_one_model_cannot_take_is_refused_by_that_one() -> None:
    """Caps count each model's own tokens."""
    persona = Section(SectionKind.PERSONA, "word " * 170, "Ana")
    assert Layout(SimVocab(list(MARKS.values())), Caps(persona=200)).render(persona).lost == 0
    with pytest.raises(TooLong, match=r"personas\[Ana\].text: 171 tokens, the limit is 160"):
        layout_of("npcd").render(persona)


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_is_texts_and_each_models_graph_of_them(kind: str) -> None:
    """The options of the texts and of the tokens are the same, with the same numbers, stage by stage."""
    layout = layout_of(kind)
    for choice, graph in zip(choices.intents(ACTIONS, EMOTIONS, 5), layout.intents(ACTIONS, EMOTIONS), strict=True):
        assert layout.graph(choice) is layout.graph(choice)
        texts = {(o.number, t.number, e.number) for o in choice.options for t in o.then.options for e in t.then.options}  # type: ignore[union-attr]
        assert texts == _walks(graph)


def _walks(node: Node, labels: tuple[tuple[str, int], ...] = ()) -> set[tuple[int, int, int]]:
    """Option numbers of all ways through a graph."""
    if node.complete:
        found = dict(labels)
        return {(found["actions"], found["targets"], found["emotions"])}
    out = set()
    for token in node.ids.tolist():
        after, label = node.step(token)
        out |= _walks(after, (*labels, label) if label else labels)
    return out

"""A script is text. A layout's render of it is kept, and another model reads the same text in its own tokens."""

import random
from collections.abc import Iterator

import pytest

from core.choice import Choice, Node, Option
from core.observation import Observation, Percept
from core.script import Script, Section, SectionKind, npc_line, player_line
from daemon.config import SHIPPED_MODEL
from engines.llama import load_vocab
from engines.sim import SimVocab
from prompts import choices
from prompts.caps import Caps, TooLong
from prompts.choices import ActionWord, target_word
from prompts.layout import Layout, Tail, world_sections
from prompts.marks import MARKS
from prompts.templates import find_markup
from tests.engines.shapes import CHATML, bare, qwen2_like

ACTIONS = [ActionWord("idle"), ActionWord("attack", needs_target=True), ActionWord("go home")]
EMOTIONS = ["calm", "angry"]
KINDS = ("npcd", "chat", "plain")


Layouts = dict[str, Layout]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    """A layout of each dialect, on a real tokenizer of its own."""
    folder = tmp_path_factory.mktemp("vocabularies")
    chat, plain = load_vocab(qwen2_like(folder / "chat.gguf")), load_vocab(bare(folder / "plain.gguf"))
    found = find_markup(CHATML, chat)
    assert found.markup is not None, found.why
    return {
        "npcd": Layout(load_vocab(SHIPPED_MODEL)),
        "chat": Layout(chat, Caps(intent_tail=120, talk_tail=600, player_line=400), found.markup),
        "plain": Layout(plain, Caps(intent_tail=100, talk_tail=600, player_line=400)),
    }


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
def test_the_text_of_a_tail_makes_its_tokens_again(layouts: Layouts, kind: str) -> None:
    """On random observations, lines and digests, with any part left out, the sections have exactly the text of the
    tokens.
    """
    layout, rng = layouts[kind], random.Random(1)
    assert layout.kind == kind
    for _ in range(300):
        for tail in tails(layout, rng):
            assert layout.encode(tail.sections) == tail.tokens == layout.tail(tail)


@pytest.mark.parametrize("kind", KINDS)
def test_another_model_reads_a_tail_in_its_own_tokens(layouts: Layouts, kind: str) -> None:
    """A tail of one model's layout is rendered from its text by another model's layout, and a bark follows it."""
    layout, other, rng = layouts[kind], layouts["plain"], random.Random(2)
    for _ in range(20):
        for tail in tails(layout, rng):
            assert other.tail(tail) == other.encode(tail.sections)
        intent = tails(layout, rng)[0]
        bark = other.bark_tail(intent, ("attack", "#1", "angry"))
        assert bark.tokens == other.encode(bark.sections) == other.tail(bark)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_is_its_sections_one_after_the_other_rendered_once(layouts: Layouts, kind: str) -> None:
    """Equal scripts have equal tokens, the same script gives the very same render, and a longer one begins with it."""
    layout, script = layouts[kind], script_of()
    trunk = layout.trunk(script)
    assert trunk.tokens.tolist() == list(layout.lines(script.sections))
    assert trunk.shared == len(layout.lines(script.sections[:3]))
    assert layout.trunk(script) is trunk and layout.trunk(script.asks(layout.summary_tail().sections)) is trunk
    assert layout.trunk(script_of()).tokens.tolist() == trunk.tokens.tolist()
    more = script.goes_on([player_line("And?"), npc_line("No.")])
    for longer in (layout.trunk(more), layout.trunk(Script(more.sections, 3))):
        assert longer.tokens.tolist() == list(layout.lines(more.sections)) and longer.shared == trunk.shared
        assert longer.tokens[: len(trunk.tokens)].tolist() == trunk.tokens.tolist()
    assert all(layout.render(section) is layout.render(section) for section in script.sections)


def test_each_model_has_its_own_renders_of_one_script(layouts: Layouts) -> None:
    """A render of one layout is never used for another."""
    script = script_of()
    made = [layout.trunk(script).tokens.tolist() for layout in layouts.values()]
    again = [layout.trunk(script_of()).tokens.tolist() for layout in layouts.values()]
    assert made == again and made[0] != made[1] != made[2]


def test_a_definition_that_one_model_cannot_take_is_refused_by_that_one() -> None:
    """Caps count each model's own tokens."""
    persona = Section(SectionKind.PERSONA, "word " * 170, "Ana")
    assert Layout(SimVocab(list(MARKS.values())), Caps(persona=200)).render(persona).lost == 0
    with pytest.raises(TooLong, match=r"personas\[Ana\].text: 171 tokens, the limit is 160"):
        Layout(SimVocab(list(MARKS.values()))).render(persona)


Walk = tuple[dict[str, int], tuple[int, ...]]


def walks(node: Node, labels: tuple[tuple[str, int], ...] = (), tokens: tuple[int, ...] = ()) -> list[Walk]:
    """All ways through a graph: the options that were taken, by stage, and the tokens."""
    if node.complete:
        return [(dict(labels), tokens)]
    out = []
    for token in node.ids.tolist():
        after, label = node.step(token)
        out += walks(after, (*labels, label) if label else labels, (*tokens, token))
    return out


def ways(choice: Choice) -> Iterator[dict[str, Option]]:
    """All ways through a choice of texts."""
    for option in choice.options:
        for after in ways(option.then) if option.then is not None else ({},):
            yield {choice.stage: option, **after}


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_is_texts_and_each_models_graph_of_them(layouts: Layouts, kind: str) -> None:
    """The tokens allow what the texts allow, and the text of an answer makes the tokens that were walked again: then
    nothing but the end of the answer may be missing.
    """
    layout = layouts[kind]
    asked = layout.intent_tail(layout.perceive(Observation(1)))
    feelings = [*EMOTIONS, "calm again"]  # one begins with another
    for choice in choices.intents(ACTIONS, feelings, 5):
        graph = layout.graph(choice)
        assert layout.graph(choice) is graph
        texts = {tuple(option.number for option in way.values()): way for way in ways(choice)}
        found = walks(graph)
        assert {tuple(labels.values()) for labels, _ in found} == texts.keys() and len(found) == len(texts)
        for labels, tokens in found:
            chosen = tuple(option.text for option in texts[tuple(labels.values())].values())
            bark = layout.bark_tail(asked, chosen).tokens
            answer = bark[len(asked.tokens) : len(bark) - len(layout.marks["say"])]
            assert tokens[: len(answer)] == answer and len(tokens) - len(answer) <= 1


def test_an_action_that_needs_a_target_never_has_nobody() -> None:
    """Without percepts it is not offered, and with some its targets are those."""
    for percepts, choice in enumerate(choices.intents(ACTIONS, EMOTIONS, 5)):
        offered = {(way["actions"].text, way["targets"].text) for way in ways(choice)}
        seen = {f"#{n}" for n in range(1, percepts + 1)}
        assert {target for action, target in offered if action == "attack"} == seen
        assert {target for action, target in offered if action == "idle"} == {"nobody"} | seen

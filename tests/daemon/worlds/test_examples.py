"""Worked examples: rows of a world's policy, shown to models that were not made for npcd, in the shared prefix."""

import pytest

from core.observation import Observation, Percept
from core.script import Section, SectionKind
from daemon.config import SHIPPED_MODEL
from daemon.worlds.examples import EXAMPLES_MAX, example_of, examples_of
from daemon.worlds.limits import WorldLimits
from daemon.worlds.policy_file import load_policy
from daemon.worlds.worlds import Worlds
from engines.llama import LlamaVocab, load_vocab
from loadtests.bench.real_words import read
from npcd.v1 import npcs_pb2
from prompts.caps import Caps
from prompts.layout import Layout
from prompts.templates import find_markup
from tests.daemon.rig import specs, world
from tests.engines.shapes import CHATML, qwen2_like
from tiers.policy import PolicyRow

ROOMY = Caps(lore=400, words=200, archetype=250, persona=250, examples=2000, intent_tail=160)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> LlamaVocab:
    """A chat model's tokenizer."""
    return load_vocab(qwen2_like(tmp_path_factory.mktemp("chat") / "m.gguf"))


def chat(vocab: LlamaVocab, caps: Caps = ROOMY) -> Layout:
    """A chat layout."""
    return Layout(vocab, caps, find_markup(CHATML, vocab).markup)


def row(**said: object) -> PolicyRow:
    """A row that flees in fear."""
    return PolicyRow(**{"action": "flee", "emotion": "afraid", **said})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (row(percept_kind="wolf", percept_stance="hostile", distance_max_m=10.0), "wolf hostile near|flee #1 afraid"),
        (row(percept_stance="hostile"), "stranger hostile near|flee #1 afraid"),
        (row(distance_max_m=2.0), "stranger close|flee #1 afraid"),
        (row(event="heard_noise", time_of_day="night"), "night heard noise|flee nobody afraid"),
        (row(health_max=0.3, percept_kind="wolf"), "dying wolf near|flee #1 afraid"),
    ],
)
def test_an_example_is_a_situation_in_which_its_row_holds(given: PolicyRow, text: str) -> None:
    """It has the words of an observation, and the row's answer; an action at a percept names its number."""
    section = example_of(given)
    assert section is not None and section.kind is SectionKind.EXAMPLE
    seen = "".join((section.text, *section.items[:-3])).strip()
    assert f"{seen}|{' '.join(section.items[-3:])}" == text


def test_a_row_that_always_holds_is_no_example() -> None:
    """It says nothing about any situation."""
    assert example_of(row()) is None
    assert example_of(row(archetype_id="villager")) is None


def test_an_example_reads_as_a_tail_and_its_answer(vocab: LlamaVocab) -> None:
    """But for the template's markers between them, the tokens are those of the tail for the same observation."""
    layout = chat(vocab)
    seen = Observation(1, (Percept("w", "wolf", "hostile", 6.0),), (), "night")
    tail = layout.intent_tail(layout.perceive(seen)).tokens
    section = example_of(row(percept_kind="wolf", percept_stance="hostile", distance_max_m=10.0, time_of_day="night"))
    assert section is not None

    def text(tokens: tuple[int, ...]) -> str:
        return b"".join(map(vocab.piece, tokens)).decode()

    shown = text(layout.render(section).tokens)
    asked = "".join(vocab.written(t) if vocab.is_marker(t) else text((t,)) for t in tail)
    question, _, opened = asked.partition("<|im_end|>")
    assert shown == f"\n{question}\n{opened.rpartition(chr(10))[2]} flee #1 afraid"


def test_examples_are_of_the_archetype_one_for_an_action_in_the_tables_order(vocab: LlamaVocab) -> None:
    """A row of another archetype, and a second row of one action, are left out; there are eight at most."""
    rows = [
        row(archetype_id="ghoul", percept_kind="corpse", action="feed"),
        row(archetype_id="villager", percept_kind="wolf"),
        row(percept_stance="hostile"),
        row(action="idle"),
        *[row(event=f"e{n}", action=f"act{n}") for n in range(20)],
    ]
    shown = [s.items[-3] for s in examples_of(rows, "villager", [chat(vocab)])]
    assert shown == ["flee", *(f"act{n}" for n in range(EXAMPLES_MAX - 1))]
    assert [s.items[-3] for s in examples_of(rows, "ghoul", [chat(vocab)])][:2] == ["feed", "flee"]


def test_examples_keep_their_cap_for_every_model(vocab: LlamaVocab) -> None:
    """They are left out from the end when the next one does not fit, so all NPCs of an archetype share the same."""
    rows = [row(event=f"e{n}", action=f"act{n}") for n in range(8)]
    whole = examples_of(rows, "", [chat(vocab)])
    size = [len(chat(vocab).render(s).tokens) for s in whole]
    for fit in range(9):
        caps = Caps(examples=sum(size[:fit]))
        assert len(examples_of(rows, "", [chat(vocab), chat(vocab, caps)])) == fit
    assert examples_of(rows, "", [chat(vocab, Caps(examples=0))]) == ()


def test_a_model_made_for_npcd_is_shown_none(vocab: LlamaVocab) -> None:
    """Its prompts are those that it was trained on, also beside a chat model that is shown some."""
    native = Layout(load_vocab(SHIPPED_MODEL))
    assert examples_of([row(event="x")], "", [native]) == ()
    (section,) = examples_of([row(event="x")], "", [native, chat(vocab)])
    assert native.render(section).tokens == () != chat(vocab).render(section).tokens
    assert native.render(Section(SectionKind.LANGUAGE, "Finnish")).tokens == ()


def test_npcs_of_an_archetype_share_their_examples(vocab: LlamaVocab) -> None:
    """The examples of the world's table stand before the persona, in the part of the trunk that NPCs share."""
    layout = chat(vocab)
    worlds = Worlds([layout], WorldLimits(), load_policy())
    defined = worlds.define("", world())[0]
    worlds.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(3)))
    for npc in defined.npcs.values():
        kinds = [s.kind for s in npc.script.sections]
        assert kinds[-1] is SectionKind.PERSONA and SectionKind.EXAMPLE in kinds
        assert npc.script.shared == len(kinds) - 1
        for section in npc.script.sections:
            if section.kind is SectionKind.EXAMPLE:
                assert section.items[-3] in {a.word for a in defined.actions}
                assert any(r.action == section.items[-3] for r in defined.policy)


def test_the_held_out_situations_are_none_of_the_examples() -> None:
    """The benchmark's situations have places, which no row of a policy has, so a model cannot have read the answer."""
    data = read()
    assert len(data.held_out) == 120 and len(set(data.held_out)) == 120
    shown = {section.text.split()[-1] for section in map(example_of, data.policy) if section and section.text}
    assert all(case.seen.place and case.seen.place not in shown for case in data.held_out)

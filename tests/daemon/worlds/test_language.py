"""A world's language and words: an invalid tag is refused, and words that the model was not trained on give a
warning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import CallerError
from daemon.commands import doctor
from daemon.config import Config
from daemon.model import Model
from daemon.process import diagnosis
from daemon.worlds.language import PROSE_WORDS_MAX, check_language, name_of, texts_of, warnings_of, well_formed
from daemon.worlds.limits import WorldLimits
from daemon.worlds.policy_file import load_policy
from daemon.worlds.worlds import Worlds
from engines.llama import load_vocab
from engines.sim import SimVocab
from npcd.v1 import npcs_pb2
from prompts.caps import Caps
from prompts.layout import Layout
from prompts.marks import MARKS
from prompts.templates import find_markup
from tests.daemon.rig import gated, running, specs, world
from tests.engines.shapes import CHATML, qwen2_like
from tests.patience import PATIENCE_S

ROOMY = Caps(lore=400, words=200, archetype=250, persona=250, examples=300, intent_tail=160)
ROOT = Path(__file__).resolve().parents[3]
FINNISH = {
    "actions": [npcs_pb2.ActionWord(word=w) for w in ("hyökkää", "pakene", "odota rauhassa")],
    "emotions": ["rauhallinen", "vihainen"],
    "lore": "Kylä sijaitsee vanhan tien varrella. Ihmiset pelkäävät yötä ja susia, ja yö on pitkä.",
}


@pytest.mark.parametrize(
    "tag",
    [
        "en", "de", "fi", "EN", "pt-BR", "zh-Hant", "zh-Hant-TW", "es-419", "sr-Latn-RS", "sl-rozaj-biske",
        "de-CH-1901",
        "zh-cmn-Hans-CN", "zh-min-nan", "hy-Latn-IT-arevela", "de-a-value", "en-a-myext-b-another", "x-whatever",
        "en-x-pirate", "az-Arab-x-AZE-derbend", "i-klingon", "en-GB-oed", "sgn-BE-FR", "tlh", "art-lojban", "i-default",
        "und", "mul", "abcd", "abcdefgh", "de-DE-u-co-phonebk", "ast", "sl-1994",
    ],
)  # fmt: skip
def test_well_formed_tags_are_taken(tag: str) -> None:
    """The examples of RFC 5646, and tags that games write, are accepted."""
    assert check_language("language", tag) == tag


@pytest.mark.parametrize(
    "tag",
    [
        "klingon!!", "e", "en_US", "en-", "-en", "en--US", "en US", " en", "en\n", "deutsch (Österreich)", "ä",
        "日本語",
        "abcdefghi", "en-USA1", "a-DE", "de-419-DE", "ar-a-aaa-b", "en-x", "x", "x-", "en-x-abcdefghi", "de-a", "1en",
        "i-foo",
        "en-\u212aS", "ﬁ", "en\0", "--", "en-US-u", "English, please", "a" * 65, "en" + "-variant1" * 8, "e\u0301n",
    ],
)  # fmt: skip
def test_an_invalid_tag_is_refused_by_its_field(tag: str) -> None:
    """The error gives the fault and a right form."""
    with pytest.raises(CallerError, match=r"^language: ") as caught:
        check_language("language", tag)
    assert "BCP 47" in str(caught.value) or "the limit is 64" in str(caught.value)
    assert not well_formed(tag)


def test_a_tag_with_an_underscore_is_told_how_it_is_written() -> None:
    """Java and C write it so."""
    with pytest.raises(CallerError, match=r"'pt_BR' is no BCP 47 tag .*; write pt-BR"):
        check_language("language", "pt_BR")
    assert check_language("language", "") == "en"


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("en", ""), ("en-GB", ""), ("EN", ""), ("und", ""), ("mul", ""), ("fi", "Finnish"), ("FI", "Finnish"),
        ("pt-BR", "Portuguese (pt-BR)"), ("zh-Hant", "Chinese (zh-Hant)"), ("tlh", "the language with the tag tlh"),
    ],
)  # fmt: skip
def test_a_language_has_an_english_name_for_the_prompt(tag: str, name: str) -> None:
    """English is not named: models answer in it anyway."""
    assert name_of(tag) == name


async def test_a_chat_model_is_told_the_worlds_language(tmp_path: Path) -> None:
    """It stands in the part of the trunk that all NPCs share, and in what asks for a summary; an English world's
    prompts, and those of a model made for npcd, have none.
    """
    vocab = load_vocab(qwen2_like(tmp_path / "m.gguf"))
    layout = Layout(vocab, ROOMY, find_markup(CHATML, vocab).markup)
    native = Layout(SimVocab(list(MARKS.values())))
    for tag, told in (("fi", True), ("en", False)):
        worlds = Worlds([layout, native], WorldLimits(), load_policy())
        defined = worlds.define("", world(language=tag))[0]
        for prefix in defined.prefixes.values():
            text = b"".join(map(vocab.piece, layout.trunk(prefix).tokens.tolist())).decode()
            assert ("Answer in Finnish." in text) is told
        tail = layout.summary_tail(name_of(tag)).tokens
        assert ("Write in Finnish." in b"".join(map(vocab.piece, tail)).decode()) is told
        assert native.summary_tail(name_of(tag)).tokens == native.summary_tail().tokens


async def test_define_world_refuses_a_wrong_language_and_says_which_it_has() -> None:
    """The world stays as it was, and the list of worlds has its language."""
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        with pytest.raises(CallerError, match="language: 'klingon!!' is no BCP 47 tag"):
            await calls.define_world("", world(language="klingon!!"))
        assert (await calls.define_world("", world(language="de-CH"))).version == 2
        (there,) = (await calls.list_worlds("", npcs_pb2.ListWorldsRequest())).worlds
        assert there.language == "de-CH"


async def test_a_world_of_an_earlier_version_is_taken_up_whatever_its_language_is() -> None:
    """It was accepted once, so a restart and an import do not lose it."""
    async with running(gated(), npcs=0) as rig:
        definition = world(language="klingon!!").SerializeToString()
        revived = rig.daemon.worlds.revive("", definition, 7, 3, [(s.SerializeToString(), 3) for s in specs(2)])
        assert (revived.language, revived.version, len(revived.npcs)) == ("en", 7, 2)


async def test_words_that_the_shipped_model_was_not_trained_on_are_told(real: Model) -> None:
    """DefineWorld warns each time. A world in the model's own words gets no warning, and neither does one with few
    unknown names."""
    async with running(real, npcs=0) as rig:
        calls = rig.daemon.calls
        assert not (await calls.define_world("", world())).warnings
        request = world()
        for name, value in FINNISH.items():
            request.ClearField(name)  # type: ignore[arg-type]
            request.MergeFrom(npcs_pb2.DefineWorldRequest(**{name: value}))  # type: ignore[arg-type]
        for _ in range(2):
            actions, emotions, lore = (await calls.define_world("", request)).warnings
            assert actions.startswith("actions: the model was not trained on 'hyökkää', 'pakene', 'odota rauhassa'")
            assert "(3 of 3)" in actions and "--model" in actions
            assert "'rauhallinen', 'vihainen' (2 of 2)" in emotions
            assert lore.startswith("lore: the model was trained on ")
        mixed = world(actions=[npcs_pb2.ActionWord(word=w) for w in ("somersault", "hunt down", "guard")])
        (only,) = (await calls.define_world("", mixed)).warnings
        assert "'somersault', 'hunt down' (2 of 7)" in only, "a language is not what decides"
        assert not (await calls.define_world("", world(lore=" Xyzzy Qwrk Zorblatt!"))).warnings


async def test_of_another_model_nobody_knows_what_it_was_trained_on(real: Model) -> None:
    """A model without npcd's control tokens gives no warning."""
    async with running(real, npcs=0) as rig:
        rig.daemon.worlds.layouts[0].native = False
        assert not (await rig.daemon.calls.define_world("", world(emotions=["vihainen"]))).warnings


def test_a_warning_is_bounded() -> None:
    """It names eight words of thousands, and reads the first 200 of a long text."""
    looked_at = []

    def knows(word: str) -> bool:
        looked_at.append(word)
        return False

    words = [f"{'w' * 60}{n}" for n in range(64)]
    texts = texts_of("lore " * 100_000, ["description"], ["persona"] * 4096)
    actions, _, lore, personas = warnings_of(knows, words, words, texts)
    assert "and 56 more (64 of 64)" in actions and len(actions) < 1000
    assert f"0 of the first {PROSE_WORDS_MAX} words" in lore and personas.startswith("personas: ")
    assert len(looked_at) == 2 * 64 + 2 * PROSE_WORDS_MAX + 1


WORLD = """
world_id = "kyla"
language = "{language}"
lore = "A village by the old road."
emotions = ["calm"]
archetypes = [{{ archetype_id = "villager", description = "Plain folk who fear the night." }}]
actions = [{{ word = "idle" }}, {{ word = "{action}" }}]
"""


@pytest.mark.parametrize(
    ("language", "action", "outcome", "says"),
    [
        ("en", "flee", diagnosis.Outcome.OK, "the model knows its words"),
        ("fi", "pakene", diagnosis.Outcome.WARN, "the model was not trained on 'pakene' (1 of 2)"),
        ("klingon!!", "flee", diagnosis.Outcome.FAIL, "'klingon!!' is no BCP 47 tag"),
    ],
)
def test_doctor_looks_at_a_worlds_words(
    tmp_path: Path, language: str, action: str, outcome: diagnosis.Outcome, says: str
) -> None:
    """With --world doctor uses the vocabulary of the model that would serve."""
    path = tmp_path / "kyla.toml"
    path.write_text(WORLD.format(language=language, action=action), "utf-8")
    (found,) = [c for c in doctor.examine(Config, path) if c.name == "world"]
    assert found.outcome is outcome and says in found.says
    assert not [c for c in doctor.examine(Config) if c.name == "world"]


def test_doctor_says_what_is_wrong_with_a_worlds_file(tmp_path: Path) -> None:
    """The command itself prints it as a finding."""
    done = subprocess.run(
        [sys.executable, "-m", "npcd", "doctor", "--json", "--world", str(tmp_path / "nowhere.toml")],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    found = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1 and found["world"]["outcome"] == "fail" and "nowhere.toml" in found["world"]["fix"]

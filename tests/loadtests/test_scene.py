"""The demo's scene fits the contract's limits, and uses the words that the shipped model knows."""

from __future__ import annotations

import pytest

from loadtests.scene import SCENES, load_scene

SCENE = load_scene()
TARGETED = {"approach", "follow", "attack", "greet", "talk", "trade", "warn", "feed"}
SPOKEN = {"greet", "talk", "warn", "trade", "attack", "howl"}


def test_prose_is_short_enough() -> None:
    """Lore stays below 110 words and all other texts below 40, far from any token cap."""
    assert len(SCENE.world.lore.split()) <= 110
    for archetype in SCENE.world.archetypes:
        assert len(archetype.description.split()) <= 40, archetype.archetype_id
    for persona in SCENE.world.personas:
        assert len(persona.text.split()) <= 40, persona.persona_id


def test_words_say_what_they_need() -> None:
    assert len(SCENE.world.actions) == 18
    assert {a.word for a in SCENE.world.actions if a.needs_target} == TARGETED
    assert {a.word for a in SCENE.world.actions if a.speaks} == SPOKEN
    assert len(SCENE.world.personas) >= 20 and len(SCENE.world.archetypes) == 6


def test_a_policy_row_that_needs_a_target_names_a_percept_and_the_last_row_always_holds() -> None:
    rows = SCENE.world.policy.rows
    for row in rows:
        assert row.action not in TARGETED or row.percept_kind or row.percept_stance, row
    assert not any((rows[-1].archetype_id, rows[-1].percept_kind, rows[-1].percept_stance, rows[-1].event))
    assert not rows[-1].time_of_day


def test_more_npcs_than_homes_share_personas_under_ids_of_their_own() -> None:
    residents = SCENE.residents(100)
    assert len({resident.npc_id for resident in residents}) == 100
    assert residents[24].persona_id == residents[0].persona_id and residents[24].npc_id == "mira-2"
    assert {resident.archetype_id for resident in SCENE.residents(20)} == set(SCENE.stances)


def test_a_scene_that_does_not_fit_together_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("scenes") / "wrong.toml"
    text = (SCENES / "demo.toml").read_text(encoding="utf-8")
    path.write_text(text.replace('home = "mill"', 'home = "moon"', 1), encoding="utf-8")
    with pytest.raises(ValueError, match="home moon"):
        load_scene(path)

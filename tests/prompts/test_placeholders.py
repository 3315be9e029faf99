"""Placeholders in a world's texts are filled in where their value is known, and refused by their field elsewhere."""

import pytest

from core.errors import CallerError
from prompts.placeholders import filled, opened


@pytest.mark.parametrize("written", ["{{char}}", "{{ Char }}", "{{bot}}", "{npc_name}", "{name}", "{char}"])
def test_an_npcs_own_name_is_filled_into_its_persona(written: str) -> None:
    """It does not matter which program the text was written for."""
    assert filled("personas[0].text", f"{written} bakes. Ask {written}.", "Mira") == "Mira bakes. Ask Mira."


@pytest.mark.parametrize("written", ["{{user}}", "{{User}}", "{player_name}", "{user}", "{player}"])
def test_a_players_name_is_refused_with_what_to_write(written: str) -> None:
    """An NPC has one trunk for all players, so its persona cannot name one."""
    with pytest.raises(CallerError, match=r"^personas\[0\].text: has the placeholder .*: .*write 'the player'"):
        filled("personas[0].text", f"You love {written}.", "Mira")


def test_a_name_is_refused_where_no_npc_is_meant() -> None:
    """Lore and kinds are read by many NPCs."""
    with pytest.raises(CallerError, match=r"^lore: has the placeholder \{\{char\}\}: .*many NPCs"):
        filled("lore", "{{char}} rules here.")


def test_other_things_in_double_braces_are_refused() -> None:
    """No program but the one they were written for knows what they mean."""
    with pytest.raises(CallerError, match=r"has the placeholder \{\{random:a,b\}\}"):
        filled("lore", "It is {{random:a,b}}.")


@pytest.mark.parametrize("text", ["{gold} coins", "a {b c} d", "{}", "if (x) { y }", "{{", "}} {{", "{" * 300])
def test_other_braces_are_text(text: str) -> None:
    """A name in single braces that nobody uses for a name is left as it is."""
    assert filled("lore", text) == opened(text) == text


def test_a_text_of_an_earlier_version_is_never_refused() -> None:
    """A world that was defined before placeholders were looked at is taken up in plain words."""
    assert opened("{{char}} hates {{user}} and {{random}}.", "Mira") == "Mira hates the player and ."
    assert opened("{name} waits.") == "this person waits."

"""Scripts are text: two scripts of equal sections are equal, and renders are kept with their sections."""

from core.script import Script, Section, SectionKind

PERSONA = Section(SectionKind.PERSONA, "Small.", "Ana")
LINE = Section(SectionKind.PLAYER, "Hello.", "Tom")
ASKS = (Section(SectionKind.DO),)


def test_scripts_that_differ_in_their_tails_alone_share_their_renders() -> None:
    """A trunk is rendered once for all of its tails. A longer trunk is rendered again."""
    script = Script((PERSONA,), 0)
    asked = script.asks(ASKS)
    assert (asked.sections, asked.tail) == ((PERSONA,), ASKS)
    asked.renders["some layout"] = "rendered"
    assert script.renders == {"some layout": "rendered"}
    longer = asked.goes_on([LINE])
    assert (longer.sections, longer.tail, longer.renders) == ((PERSONA, LINE), (), {})


def test_a_render_changes_nothing_about_a_section() -> None:
    """Sections and scripts are compared by their text."""
    other = Section(SectionKind.PERSONA, "Small.", "Ana")
    other.renders["some layout"] = (1, 2, 3)
    assert other == PERSONA and hash(other) == hash(PERSONA)
    assert Script((other,)) == Script((PERSONA,)) != Script((LINE,))

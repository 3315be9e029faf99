"""The turns of conversations in process, and the situations that stand between them."""

import random

import pytest

from core.script import LINES, SITUATION, Section, SectionKind, npc_line, player_line
from core.words import NpcKey
from memory.hot import Hot, HotSettings, Session

MIRA = NpcKey("", "vale", "mira")


def sight(text: str) -> Section:
    """A section with the situation that the NPC sees."""
    return Section(SectionKind.SIGHT, text)


def begun(settings: HotSettings = HotSettings()) -> tuple[Hot, Session]:
    """A conversation that has begun."""
    hot = Hot(settings)
    return hot, hot.open(MIRA, "p1", 1, 0)[0]


def say(hot: Hot, session: Session, n: int, *situation: Section, turn_id: str = "") -> bool:
    """One exchange."""
    return hot.add(session, [*situation, player_line(f"line {n}"), npc_line(f"reply {n}")], n, turn_id)


def test_a_rebuild_keeps_the_last_lines_and_the_newest_situation() -> None:
    """The newest situation stands at its place, or before the first line where its own line has left."""
    for told_at, place in ((1, 0), (7, 6)):
        hot, session = begun()
        for n in range(10):
            situation = [sight("day")] if n == 0 else [sight("night")] if n == told_at else []
            assert say(hot, session, n, *situation) == (n == 9)
        assert [t.text for t in session.lines] == [f"{who} {n}" for n in range(4, 10) for who in ("line", "reply")]
        assert [t.text for t in session.told] == ["night"]
        assert session.turns.index(session.told[0]) == place
        assert len(session.turns) == 13


def test_situations_are_no_lines() -> None:
    """They count neither for the length of a conversation nor for its rebuild."""
    hot, session = begun()
    for n in range(9):
        assert not say(hot, session, n, sight(f"view {n}"), Section(SectionKind.DIGEST, f"friend {n}"))
    assert session.said == 18 and len(session.turns) == 36
    assert [t.text for t in session.told] == ["view 8", "friend 8"]


@pytest.mark.parametrize("situation", [(), (sight("day"),)])
def test_a_turn_that_is_taken_back_takes_its_situation_along(situation: tuple[Section, ...]) -> None:
    """Put back, the conversation is as it was."""
    hot, session = begun()
    say(hot, session, 0, sight("night"))
    say(hot, session, 1, *situation, turn_id="t1")
    was = list(session.turns)
    taken = hot.take_back(session, "t1")
    assert taken == [*situation, player_line("line 1"), npc_line("reply 1")]
    assert len(session.lines) == session.said == 2
    assert [t.text for t in session.told] == ["night"]
    hot.add(session, taken, 5, "t1")
    assert session.turns == was


def test_room_is_made_two_lines_at_a_time() -> None:
    """The newest situation stays while there is a line."""
    hot, session = begun()
    for n in range(3):
        say(hot, session, n, *([sight("night")] if n == 0 else []))
    for left in (4, 2):
        assert hot.make_room(session)
        assert (len(session.lines), [t.text for t in session.told]) == (left, ["night"])
    assert hot.make_room(session) and not session.turns
    assert not hot.make_room(session)


def test_any_conversation_keeps_its_laws() -> None:
    """Fewer than turns_max lines; an NPC's line follows a player's; situations stand before a player's line; after a
    rebuild one of each kind is left, and it is the one that was told last.
    """
    rng = random.Random(3)
    for _ in range(50):
        hot, session = begun(HotSettings(turns_max=rng.randrange(4, 24, 2), turns_kept=rng.randrange(2, 4, 2)))
        newest: dict[SectionKind, str] = {}
        for n in range(60):
            told = [Section(kind, f"{kind} {n}") for kind in sorted(SITUATION, key=str) if rng.random() < 0.4]
            newest |= {one.kind: one.text for one in told}
            rebuilt = say(hot, session, n, *told, turn_id=f"t{n}")
            if rng.random() < 0.1 and not rebuilt:
                hot.add(session, hot.take_back(session, f"t{n}"), n, f"t{n}")
            lines = session.lines
            assert 0 < len(lines) < hot.settings.turns_max
            assert [t.kind for t in lines] == [SectionKind.PLAYER, SectionKind.NPC] * (len(lines) // 2)
            assert {t.kind: t.text for t in session.told} == newest
            assert session.turns[-1].kind is SectionKind.NPC
            for this, following in zip(session.turns, session.turns[1:], strict=False):
                assert this.kind in LINES or following.kind is not SectionKind.NPC
            if rebuilt:
                assert len(session.turns) == len(lines) + len(newest)

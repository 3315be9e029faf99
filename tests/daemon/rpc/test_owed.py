"""Work that the journal refused is noted within bounds, and retried with growing pauses."""

from core.clock import S
from daemon.rpc.owed import FORGETS_MAX, PAUSE_MOST_NS, WORLDS_MAX, Forgotten, Owed


def test_owed_work_is_bounded() -> None:
    """One request to forget too many is refused, and the same one again is not. Of one world too many nothing is
    noted."""
    owed = Owed()
    assert not owed
    for n in range(FORGETS_MAX):
        assert owed.forget(Forgotten("", "vale", "", f"p{n}"))
    assert not owed.forget(Forgotten("", "vale", "", "one more"))
    assert owed.forget(Forgotten("", "vale", "", "p7")) and len(owed.forgets) == FORGETS_MAX
    owed.paid(Forgotten("", "vale", "", "p7"))
    assert owed.forget(Forgotten("", "vale", "", "one more"))
    for n in range(WORLDS_MAX + 1):
        owed.write("", f"w{n}", ["mira"])
    assert len(owed.worlds) == WORLDS_MAX
    owed.write("", "w0", ["otto"], definition=True)
    assert owed.worlds["", "w0"].npcs == {"mira", "otto"} and owed.worlds["", "w0"].definition


def test_pauses_grow_while_it_fails() -> None:
    """Pauses double from one second to a bound. A successful try starts them anew."""
    owed = Owed()
    assert not owed.due(0)
    owed.write("", "vale", definition=True)
    now_ns = 0
    assert owed.due(now_ns)
    pauses = []
    for _ in range(8):
        owed.tried(False, now_ns)
        pauses.append(next(s for s in range(1, 60) if owed.due(now_ns + s * S)))
        now_ns += pauses[-1] * S
    assert pauses == [2, 4, 8, 16, 30, 30, 30, 30] and PAUSE_MOST_NS == 30 * S
    owed.tried(True, now_ns)
    assert owed.due(now_ns)
    owed.paid(("", "vale"))
    assert not owed.due(now_ns)

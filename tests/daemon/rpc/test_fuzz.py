"""For any message on any rpc, the daemon answers with a documented status and goes on as before."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from daemon.minds.table import Table
from daemon.rpc.calls import Calls
from npcd.v1 import dialogue_pb2, npcs_pb2
from tests.daemon.fuzz import METHODS, Fuzz, calls, troubled
from tests.daemon.rig import until

HANDFUL = st.lists(calls(), min_size=1, max_size=10)
SLOWLY = settings(suppress_health_check=list(HealthCheck), database=None, deadline=None, derandomize=True)
UNSHRUNK = (Phase.generate,)  # a planted bug needs no shrinking


def trouble(examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> Fuzz:
    """Plays that many handfuls. Raises AssertionError with the smallest one that breaks something."""
    with troubled() as (fuzz, runner):

        @settings(SLOWLY, max_examples=examples, phases=phases)
        @given(HANDFUL)
        def play(script) -> None:  # type: ignore[no-untyped-def]
            runner.run(fuzz.play(script))

        play()
    return fuzz


def test_no_message_breaks_the_daemon() -> None:
    """About 1,500 messages; `make nightly` sends 100,000."""
    fuzz = trouble(300)
    assert fuzz.messages > 1_200
    assert fuzz.answered > 100, "observations were met"
    answered = {name.split()[0] for name in fuzz.statuses}
    assert answered == {method.full_name for method in METHODS}, "every rpc was called"
    well = {name.split()[0].rpartition(".")[2] for name in fuzz.statuses if name.endswith(" OK")}
    assert well >= {"DefineWorld", "Register", "Describe", "Observe", "Live", "Talk", "Converse"}, (
        "the deep code was met"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_fuzz_finds_a_call_that_fails_oddly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug is an exception for a certain turn id."""
    sound = Calls.cancel_turn

    async def planted(
        self: Calls, tenant: str, request: dialogue_pb2.CancelTurnRequest
    ) -> dialogue_pb2.CancelTurnResponse:
        if request.turn_id in ("t1", "t2"):
            raise ValueError("planted")
        return await sound(self, tenant, request)

    monkeypatch.setattr(Calls, "cancel_turn", planted)
    with pytest.raises(AssertionError, match=r"Dialogue\.Cancel: UNKNOWN .*planted"):
        trouble(300, UNSHRUNK)


def test_the_fuzz_finds_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug is a subscriber that stays."""
    monkeypatch.setattr(Table, "unsubscribe", lambda *_: None)
    monkeypatch.setattr("tests.daemon.rig.PATIENCE_S", 3.0)
    with pytest.raises(AssertionError, match="subscribers"):
        trouble(300, UNSHRUNK)


def test_a_handful_that_fails_leaves_no_call_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls beside the failing one end first, so none of them reaches into the next handful."""
    methods = {method.full_name: method for method in METHODS}
    failed, slow = methods["npcd.v1.Dialogue.Cancel"], methods["npcd.v1.Npcs.ListWorlds"]
    with troubled() as (fuzz, runner):

        async def planted(*_: object) -> dialogue_pb2.CancelTurnResponse:
            raise ValueError("planted")

        async def late(*_: object) -> npcs_pb2.ListWorldsResponse:
            await until(lambda: f"{failed.full_name} UNKNOWN" in fuzz.statuses, "the other call has failed")
            return npcs_pb2.ListWorldsResponse()

        monkeypatch.setattr(Calls, "cancel_turn", planted)
        monkeypatch.setattr(Calls, "list_worlds", late)
        with pytest.raises(AssertionError, match="planted"):
            runner.run(fuzz.play([(failed, [b""]), (slow, [b""])]))
        assert f"{slow.full_name} OK" in fuzz.statuses

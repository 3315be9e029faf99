"""A start says how far it is: the share never falls, and time in which the process does nothing counts for nothing."""

import random

import pytest

from core.clock import S
from daemon.starting import LOADING, READING, STORES, TUNING, WARMING, WORLDS, Stage, Start, plan

MIB = 1 << 20


class Play:
    """A start in virtual time. Its process works or stands still."""

    def __init__(self, start: Start) -> None:
        self.start, self.now, self.used, self.held = start, 0, 0, 0
        self.shares = [start.progress(0).share]

    def pass_s(self, seconds: float, works: bool = True, grows: int = 0) -> None:
        """Time passes, with four looks a second."""
        for _ in range(round(seconds * 4)):
            self.now += S // 4
            self.used += S // 5 if works else 0
            self.held += grows
            self.start.look(self.now, self.used, self.held)
            self.law()

    def law(self) -> None:
        """The laws."""
        progress = self.start.progress(self.now)
        assert self.shares[-1] - 1e-9 <= progress.share <= 1, "the share never falls"
        assert progress.left_s >= 0 and progress.still_s >= 0
        self.shares.append(progress.share)


def play(*stages: tuple[str, float]) -> Play:
    """A start with these stages of one engine, the first one begun."""
    one = Play(Start([Stage(name, "llama", seconds) for name, seconds in stages], 0))
    one.start.look(0, 0, 0)
    return one


def test_time_that_passes_as_expected_is_the_share() -> None:
    """Half of the expected time is half of the start, and as much is left."""
    one = play((TUNING, 8.0), (LOADING, 4.0), (WARMING, 4.0))
    one.pass_s(4)
    progress = one.start.progress(one.now)
    assert (progress.stage, progress.engine) == (TUNING, "llama")
    assert progress.share == pytest.approx(0.25, abs=0.02) and progress.left_s == pytest.approx(12, abs=0.5)
    one.pass_s(2)
    one.start.begin(LOADING, "llama", one.now)
    progress = one.start.progress(one.now)
    assert progress.share == pytest.approx(0.5) and progress.left_s == pytest.approx(8)
    assert str(progress) == "loading the model of engine 'llama', 50% done, about 8 s left"


def test_a_stage_that_takes_longer_goes_on_and_never_ends_by_itself() -> None:
    """Ten times as long as expected it is nearly done, and there is always something left."""
    one = play((LOADING, 4.0), (WARMING, 4.0))
    one.pass_s(40)
    progress = one.start.progress(one.now)
    assert 0.45 < progress.share < 0.5 and progress.left_s > 4


def test_a_process_that_stands_still_makes_no_progress() -> None:
    """The share stays, the time is counted, and said from ten seconds on. Memory that grows is work, too."""
    one = play((LOADING, 100.0))
    one.pass_s(10)
    before = one.start.progress(one.now)
    one.pass_s(70, works=False)
    after = one.start.progress(one.now)
    assert after.share == before.share and after.still_s == pytest.approx(70)
    assert "no progress for 70 s" in str(after) and "no progress" not in str(before)
    one.pass_s(10, works=False, grows=2 * MIB)
    assert one.start.progress(one.now).still_s == 0 and one.start.progress(one.now).share > after.share


def test_a_stage_that_knows_its_share_moves_by_it() -> None:
    """Also where the process's work does not show."""
    one = play((TUNING, 8.0), (WARMING, 2.0))
    one.pass_s(1, works=False)
    one.start.moved(0.5, one.now)
    progress = one.start.progress(one.now)
    assert progress.share == pytest.approx(0.4) and progress.still_s == 0
    one.start.moved(0.3, one.now)
    one.law()


def test_stages_that_are_over_do_not_come_back_and_what_they_took_is_known() -> None:
    """A stage that was left out took no time. An unknown one changes nothing."""
    one = play((READING, 1.0), (TUNING, 8.0), (LOADING, 4.0))
    one.pass_s(2)
    one.start.begin(LOADING, "llama", one.now)
    one.start.begin(READING, "llama", one.now)
    one.start.begin("resting", "llama", one.now)
    one.start.begin(LOADING, "another", one.now)
    assert one.start.progress(one.now).stage == LOADING
    one.pass_s(3)
    one.start.end(one.now)
    assert one.start.took_s == {"reading the model (llama)": 2.0, "loading the model (llama)": 3.0}


def test_what_an_earlier_start_took_is_expected() -> None:
    """By stage and engine; other stages keep their usual time."""
    start = Start(plan([("llama", 8.0, 10**9), ("talk", 0.0, 10**8)], stores=True), 0)
    assert [s.name for s in start.stages].count(TUNING) == 2
    assert [s.name for s in start.stages][-2:] == [STORES, WORLDS]
    start.expect({"loading the model (talk)": 30.0, "tuning (llama)": 0.0, "gone (llama)": 5.0})
    expected = {s.key: s.expected_s for s in start.stages}
    assert expected["loading the model (talk)"] == 30.0 and expected["loading the model (llama)"] == 12.0
    assert expected["tuning (llama)"] < 0.1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_share_never_falls(seed: int) -> None:
    """Stages that take any time, work or not, tell their share or not, and are left out."""
    rng = random.Random(seed)
    names = [READING, TUNING, LOADING, WARMING, STORES, WORLDS]
    one = play(*((name, rng.choice([0.0, 0.5, 5.0])) for name in names))
    for name in names:
        if rng.random() < 0.2:
            continue
        one.start.begin(name, "llama", one.now)
        one.law()
        for _ in range(rng.randrange(6)):
            one.pass_s(rng.random() * 5, works=rng.random() < 0.7)
            if rng.random() < 0.5:
                one.start.moved(rng.random() * 1.2, one.now)
                one.law()

"""Cores belong to the engine or to all other threads, and can be shared again."""

import os
import threading
from collections.abc import Iterator

import pytest

from daemon.process.cores import keep_apart, put_together

CORES = os.sched_getaffinity(0)


@pytest.fixture
def other() -> Iterator[int]:
    """The native id of a thread that only waits."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    over.set()
    thread.join()
    put_together(CORES)


@pytest.mark.skipif(len(CORES) < 2, reason="this machine: one core cannot be shared out")
def test_the_engine_has_its_cores_to_itself(other: int) -> None:
    """The last core is the engine's. This thread, and threads that it starts, stay on the others."""
    assert keep_apart(other, 1)
    assert os.sched_getaffinity(other) == {max(CORES)}
    assert os.sched_getaffinity(0) == CORES - {max(CORES)}
    put_together(CORES)
    assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == CORES


def test_nothing_changes_where_the_engine_needs_all_cores(other: int) -> None:
    """With as many engine threads as cores, no core would be left for the others."""
    assert not keep_apart(other, len(CORES))
    assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == CORES

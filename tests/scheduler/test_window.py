"""The window closes by the rules of the design, and counts which rule closed it."""

import pytest

from scheduler.window import Closed, Window, WindowSettings

MS = 1_000_000

CASES = """
# now oldest waiting busy next_due -> rule or wake (ms)
  0   0      1       no   -        -> complete
  0   0      1       no   50       -> complete
  0   0      1       no   10       -> complete
  0   0      1       no   3        -> complete
  0   0      1       no   2        -> wake 4
  3   0      1       no   2        -> wake 4
  4   0      1       no   2        -> complete
  9   0      1       no   9        -> wake 10
  9   0      1       no   11       -> wake 10
 10   0      1       no   11       -> time
 10   0      1       no   10       -> time
 12   0      1       no   4        -> time
  1   0      64      no   4        -> full
  1   0      63      no   2        -> wake 4
  1   0      1       yes  4        -> busy
"""


@pytest.mark.parametrize("line", [c.strip() for c in CASES.splitlines() if "->" in c and "#" not in c])
def test_rules(line: str) -> None:
    """Each line of the table holds."""
    given, _, wanted = line.partition("->")
    now, oldest, waiting, busy, due = given.split()
    window = Window(WindowSettings(window_ms=10, full=64, gather_ms=2))
    next_due = None if due == "-" else int(due) * MS
    rule, wake_ns = window.close(int(now) * MS, int(waiting), int(oldest) * MS, busy == "yes", next_due)
    if wanted.split()[0] == "wake":
        assert rule is None
        assert wake_ns == int(wanted.split()[1]) * MS
        assert sum(window.closed.values()) == 0
    else:
        assert rule is Closed(wanted.strip())
        assert window.closed[rule] == 1

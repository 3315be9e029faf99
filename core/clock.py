"""One clock for the whole process: integer nanoseconds, never going back.

Deciding code never reads it; time comes to it as `now_ns`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]

MS = 1_000_000
US = 1_000
S = 1_000_000_000

now_ns: Clock = time.monotonic_ns

"""Settings that every test shares."""

import os

from hypothesis import settings

# A daemon that a test starts remembers nothing, unless the test says so: no data folder, no servers beside it.
os.environ.setdefault("NPCD_MEMORY__KEEP", "false")

# Random cases repeat from run to run, and a slow machine is not a failure: a timing is a benchmark, not a test.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

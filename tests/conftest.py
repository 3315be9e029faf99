"""Settings that every test shares."""

from hypothesis import settings

# Random cases repeat from run to run, and a slow machine is not a failure: a timing is a benchmark, not a test.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

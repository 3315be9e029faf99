"""A histogram has the bounds that a tier's promise needs."""

from dataclasses import replace

from core.clock import MS
from tiers.promises import Promises

SHIPPED = Promises()


def test_every_promise_is_a_bound() -> None:
    """A rule over a histogram's bucket can ask for exactly the promise, with the defaults and with other promises."""
    for promises in (SHIPPED, replace(SHIPPED, gold=replace(SHIPPED.gold, first_ms=33, wait_max_ms=77))):
        bounds = promises.bounds_ns()
        assert list(bounds) == sorted(set(bounds)) and bounds[0] > 0
        for promise in (promises.gold, promises.silver, promises.bronze):
            assert {promise.first_ms * MS, promise.wait_max_ms * MS} <= set(bounds)
            assert {promise.first_ms * MS // 2, promise.first_ms * MS * 2} <= set(bounds)

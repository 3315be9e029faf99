"""Prometheus reads times from /metrics in buckets whose bounds are the promises."""

import asyncio
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from core.clock import MS, S, now_ns
from core.words import Tier
from daemon.config import Config
from daemon.process.telemetry import HISTOGRAMS, StatusCollector, watch_lag
from tests.daemon.rig import Rig, gated, running, until


def scraped(rig: Rig) -> dict[str, Metric]:
    """The families of /metrics by name, as Prometheus parses them."""
    board = rig.daemon.board
    collector = StatusCollector(board.message, dict, histograms=board.histograms)

    class Registry(Collector):
        def collect(self) -> Iterable[Metric]:
            return collector.collect()

    return {m.name: m for m in text_string_to_metric_families(generate_latest(Registry()).decode())}


def buckets(family: Metric, tier: str = "") -> dict[float, float]:
    """One histogram's cumulative counts by upper bound, in seconds."""
    return {
        float(s.labels["le"]): s.value
        for s in family.samples
        if s.name.endswith("_bucket") and s.labels.get("tier", "") == tier
    }


async def test_times_are_histograms_with_the_promises_as_bounds() -> None:
    """After turns and intents each family has Status's count, and a bucket for every promise."""
    async with running(gated(), Config(), npcs=2) as rig:
        lag = asyncio.create_task(watch_lag(rig.daemon.lag, now_ns))
        for npc in ("npc0", "npc1"):
            await rig.say(npc, "What do you think of the old mill?")
        await until(lambda: rig.daemon.lag.ever.cumulative().counts[-1] > 0, "the lag was measured once")
        await rig.daemon.door.all_ended()
        families, promises, status = scraped(rig), Config().promises, rig.daemon.board.message()
        lag.cancel()
    for name in HISTOGRAMS:
        family = families[f"npcd_{name}_seconds"]
        assert family.type == "histogram"
        for tier in [t.name.lower() for t in Tier] if name in ("first_token", "token") else [""]:
            found = buckets(family, tier)
            for promise in (promises.of(t) for t in Tier):
                assert {promise.first_ms * MS / S, promise.wait_max_ms * MS / S} <= set(found)
            assert list(found.values()) == sorted(found.values()) and list(found)[-1] == float("inf")
    assert buckets(families["npcd_first_token_seconds"], "silver")[float("inf")] == status.turns_finished == 2
    assert buckets(families["npcd_step_seconds"])[float("inf")] == status.steps > 0
    assert buckets(families["npcd_loop_lag_seconds"])[float("inf")] > 0
    silver = next(t for t in status.tiers if t.tier == "silver")
    tokens = buckets(families["npcd_token_seconds"], "silver")[float("inf")]
    assert 0 < tokens <= silver.output_tokens
    (total,) = (s.value for s in families["npcd_step_seconds"].samples if s.name == "npcd_step_seconds_sum")
    assert total > 0


async def test_no_family_is_a_quantile() -> None:
    """Quantiles of several daemons cannot be added up; counts in buckets can."""
    async with running(gated(), Config(), npcs=1) as rig:
        for family in scraped(rig).values():
            assert not family.name.endswith(("p50_ms", "p95_ms", "p99_ms"))
            assert not any("quantile" in sample.labels for sample in family.samples)

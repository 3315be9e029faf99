"""Logs (structlog), metrics (Prometheus) and the lag of the event loop. Player text is in none of them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TextIO, cast

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from core.clock import Clock, S
from core.spread import Cumulative, Spread
from daemon.process.log_lines import LogLines
from npcd.v1 import admin_pb2
from tiers.shedding import Sheddable

log = structlog.get_logger("npcd")

LAG_EVERY_S = 0.05
# Families of each engine.
Counters = Mapping[str, Mapping[str, Mapping[str, float]]]  # by engine: its Snapshot.counters
# Of Snapshot.counters: the family, the name of its label, and its help text.
KV_COUNTERS = (
    ("trunk_tokens", "source", "Trunk tokens by how they came to where works needed them"),
    ("moves", "what", "Trunks that were moved between their homes, and moves that were not made"),
    ("refused", "reason", "Loads that were not made because the bytes were not what they should be"),
)
# Of EngineStatus: the family, its help text and the field.
ENGINE_GAUGES = (
    ("npcd_engine_tokens_per_second", "Tokens through one engine over the last seconds", "tokens_per_s"),
    ("npcd_engine_residents_used", "Resident sequences of one engine in use", "residents_used"),
    ("npcd_engine_ram_bytes", "KV of one engine in host RAM", "ram_bytes"),
    ("npcd_engine_waiting", "Works in one engine's queues", "waiting"),
    ("npcd_engine_running", "Works that run on one engine", "running"),
)
# Of StatusBoard.histograms(): the family npcd_..._seconds, and what it measures.
HISTOGRAMS = {
    "first_token": "Request submitted to first token (silver: received to first text sent)",
    "token": "Time between consecutive tokens of one request",
    "step": "Duration of an engine step",
    "loop_lag": "Lag of the event loop",
}


def start_logging(level: str, as_json: bool) -> LogLines:
    """Configures structlog to write lines to standard error, and sends there what Python writes to sys.stderr. A full
    pipe, a full disk or a closed descriptor costs lines, which are counted; nobody waits for it.
    """
    lines = LogLines(lambda lost: log.warning("log lines were lost", lines=lost, why="standard error took no more"))
    sys.stderr = lines
    last = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=lines.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, lines)),
        cache_logger_on_first_use=True,
    )
    return lines


async def watch_lag(lag: Spread, clock: Clock) -> None:
    """Measures for ever how late the event loop is."""
    while True:
        before_ns = clock()
        await asyncio.sleep(LAG_EVERY_S)
        now_ns = clock()
        lag.add(now_ns, max(0, now_ns - before_ns - round(LAG_EVERY_S * 1e9)))


PACE_GAUGES = {
    "intents_per_s": "Intents per second that the engine carries",
    "npcs_active_max": "NPCs that may be active",
    "active_hz": "Questions per second about one active NPC",
    "npcs_warm_max": "NPCs that may be warm",
    "warm_hz": "Questions per second about one warm NPC",
    "conversations": "Conversations under way",
    "conversations_max": "Conversations that the engine carries",
    "intent_ms": "Engine time of one intent",
    "prefill_token_ms": "Engine time of one token of a prompt",
    "token_ms": "Engine time of one spoken token",
    "busy_share": "Share of the engine's time that intents and conversations take",
}


class StatusCollector(Collector):
    """The status as Prometheus metrics, read when it is scraped: nothing is spent on the hot path."""

    def __init__(
        self,
        status: Callable[[], admin_pb2.StatusResponse | None],
        counters: Callable[[], Counters],
        log_lines_lost: Callable[[], int] = int,
        histograms: Callable[[], Mapping[str, Mapping[str, Cumulative]]] = dict,
    ) -> None:
        self._histograms = histograms
        self._log_lines_lost = log_lines_lost
        self._status = status
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        s = self._status()
        yield _gauge("npcd_up", "1 while the daemon serves", 1.0 if s is not None and s.phase == "serving" else 0.0)
        yield _counter(
            "npcd_log_lines_lost", "Log lines that standard error did not take", float(self._log_lines_lost())
        )
        if s is None:
            return
        works = CounterMetricFamily("npcd_works", "Works that ended", labels=["tier", "finish"])
        tokens = CounterMetricFamily("npcd_output_tokens", "Tokens made", labels=["tier"])
        waiting = GaugeMetricFamily("npcd_works_waiting", "Works in the queue", labels=["tier"])
        running = GaugeMetricFamily("npcd_works_running", "Works that run", labels=["tier"])
        drafts = CounterMetricFamily("npcd_drafts", "Tokens that were guessed, by what became", labels=["tier", "was"])
        gain = GaugeMetricFamily("npcd_drafts_gain_x", "Tokens per second with drafts against without", labels=["tier"])
        drafts_on = GaugeMetricFamily("npcd_drafts_on", "1 while a tier has drafts", labels=["tier"])
        for t in s.tiers:
            drafts.add_metric([t.tier, "right"], t.drafts_accepted)
            drafts.add_metric([t.tier, "wrong"], t.drafts_offered - t.drafts_accepted)
            gain.add_metric([t.tier], t.drafts_gain_x)
            drafts_on.add_metric([t.tier], float(t.drafts_on))
            for finish in ("finished", "superseded", "refused", "cancelled", "failed"):
                works.add_metric([t.tier, finish], getattr(t, finish))
            tokens.add_metric([t.tier], t.output_tokens)
            waiting.add_metric([t.tier], t.waiting)
            running.add_metric([t.tier], t.running)
        yield from (works, tokens, waiting, running, drafts, gain, drafts_on)
        yield from self._times()
        intents = CounterMetricFamily("npcd_intents", "Intents by source of the answer", labels=["source"])
        for source in ("model", "policy", "predicted"):
            intents.add_metric([source], getattr(s, f"intents_{source}"))
        yield intents
        gone = {shed.work for shed in s.shedding}
        shedding = GaugeMetricFamily("npcd_shedding", "1 while work is put off or refused", labels=["work"])
        for work in Sheddable:
            shedding.add_metric([work.value], float(work.value in gone))
        yield shedding
        yield from _paces(s.paces)
        windows = CounterMetricFamily("npcd_windows", "Gathering windows by the rule that closed them", labels=["rule"])
        for rule in ("complete", "full", "time"):
            windows.add_metric([rule], getattr(s, f"window_closed_{rule}"))
        yield windows
        prompt = CounterMetricFamily("npcd_prompt_tokens", "Prompt tokens by where their KV came from", labels=["kv"])
        prompt.add_metric(["cached"], s.cached_tokens)
        prompt.add_metric(["prefilled"], s.prefilled_tokens)
        again = CounterMetricFamily(
            "npcd_talk_tokens_again", "Tokens of conversations that were computed a second time", labels=["why"]
        )
        for why in ("recomputed", "rebuild", "guard"):
            again.add_metric([why], getattr(s, f"{why}_tokens"))
        yield from (prompt, again)
        recalls = CounterMetricFamily("npcd_recalls", "Recalls by what answered", labels=["store"])
        for store in ("hot", "recent", "late"):
            recalls.add_metric([store], getattr(s, f"recalls_{store}"))
        yield recalls
        summaries = CounterMetricFamily("npcd_summaries", "Sessions that were summed up", labels=["by"])
        for by in ("model", "rule"):
            summaries.add_metric([by], getattr(s, f"summaries_{by}"))
        yield summaries
        there = GaugeMetricFamily("npcd_store_up", "1 while a store takes what is written", labels=["store"])
        behind = GaugeMetricFamily("npcd_store_behind_bytes", "Of the journal, not in the store yet", labels=["store"])
        records = CounterMetricFamily("npcd_store_records", "Records written to a store", labels=["store"])
        for store_state in s.stores:
            there.add_metric([store_state.store], 0.0 if store_state.away else 1.0)
            behind.add_metric([store_state.store], store_state.behind_bytes)
            records.add_metric([store_state.store], store_state.written)
        yield from (there, behind, records)
        yield _counter("npcd_turns", "Dialogue turns finished", s.turns_finished)
        yield _counter("npcd_steps", "Steps of the engine", s.steps)
        for name, text, value in (
            ("npcd_npcs", "Registered NPCs", s.npcs),
            ("npcd_live_streams", "Open Live streams", s.live_streams),
            ("npcd_turns_open", "Dialogue turns under way", s.turns_open),
            ("npcd_tokens_per_second", "All tokens through the engine over the last seconds", s.tokens_per_s),
            ("npcd_lanes_leased", "Lanes in use", s.lanes_leased),
            ("npcd_residents_used", "Resident sequences in use", s.residents_used),
            ("npcd_ram_bytes", "KV of trunks in host RAM", s.ram_bytes),
            ("npcd_bonds", "Pairs of NPC and player in process", s.bonds),
            ("npcd_degraded", "Things that are not as they should be", len(s.degraded)),
        ):
            yield _gauge(name, text, float(value))
        yield from self._engines(s)

    def _engines(self, s: admin_pb2.StatusResponse) -> Iterator[Metric]:
        """The counters of each engine, with its name as a label."""
        counters = self._counters()
        for family, label, text in KV_COUNTERS:
            counter = CounterMetricFamily(f"npcd_kv_{family}", text, labels=[label, "engine"])
            for engine, of in counters.items():
                for name, value in of.get(family, {}).items():
                    counter.add_metric([name, engine], value)
            yield counter
        if any(of.get("adapters") for of in counters.values()):
            resident = GaugeMetricFamily("npcd_adapters_resident", "Adapters in a model's memory", labels=["engine"])
            switched = CounterMetricFamily(
                "npcd_adapters", "Adapters loaded, dropped, switched to", labels=["what", "engine"]
            )
            for engine, of in counters.items():
                adapters = dict(of.get("adapters", {}))
                resident.add_metric([engine], adapters.pop("resident", 0.0))
                for name, value in adapters.items():
                    switched.add_metric([name, engine], value)
            yield from (resident, switched)
        costs = GaugeMetricFamily(
            "npcd_step_cost_ns", "Learned cost of a step per feature", labels=["feature", "engine"]
        )
        for engine, of in counters.items():
            for feature, weight_ns in of.get("step_cost_ns", {}).items():
                costs.add_metric([feature, engine], weight_ns)
        yield costs
        for family, text, field in ENGINE_GAUGES:
            gauge = GaugeMetricFamily(family, text, labels=["engine"])
            for one in s.engines:
                gauge.add_metric([one.name], getattr(one, field))
            yield gauge

    def _times(self) -> Iterator[Metric]:
        for family, by_tier in self._histograms().items():
            labels = ["tier"] if any(by_tier) else []
            metric = HistogramMetricFamily(f"npcd_{family}_seconds", HISTOGRAMS[family], labels=labels)
            for tier, times in by_tier.items():
                bounds = [*(str(bound_ns / S) for bound_ns in times.bounds_ns), "+Inf"]
                buckets = list(zip(bounds, times.counts, strict=True))
                metric.add_metric([tier] if labels else [], buckets, times.sum_ns / S)
            yield metric


def _paces(paces: Iterable[admin_pb2.Pace]) -> Iterator[Metric]:
    """The pace of each engine: how much it carries. A family has a sample for each engine."""
    for field, text in PACE_GAUGES.items():
        gauge = GaugeMetricFamily(f"npcd_pace_{field}", text, labels=["engine"])
        for pace in paces:
            gauge.add_metric([pace.engine], float(getattr(pace, field)))
        yield gauge
    gives_way = GaugeMetricFamily("npcd_pace_gives_way", "Kinds of work that give way now", labels=["engine"])
    refused = CounterMetricFamily("npcd_conversations_refused", "New conversations refused", labels=["engine"])
    for pace in paces:
        gives_way.add_metric([pace.engine], float(len(pace.gives_way)))
        refused.add_metric([pace.engine], float(pace.conversations_refused))
    yield from (gives_way, refused)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)

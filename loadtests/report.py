"""The end of a run: its numbers as JSON, as text, and compared with the promises."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from loadtests.board import Board
from loadtests.histogram import Histogram
from npcd_client.v1 import admin_pb2

# The promises that --check compares a run with.
FRAMES_PER_S_MIN = 275
MODEL_SHARE_MIN = 0.95
TURNS_MIN = 6
GOLD_TOKEN_P95_MAX_MS = 16.0
SILVER_FIRST_P95_MAX_MS = 250.0


def report(board: Board, seconds: float, seed: int, fps: int, rate_hz: float) -> dict[str, Any]:
    """All measurements, ready for JSON. The tiers' numbers are the daemon's own, of its last minute."""
    gold, silver = board.tier("gold"), board.tier("silver")
    status = board.status or admin_pb2.StatusResponse()
    return {
        "npcs": board.npcs,
        "seconds": seconds,
        "seed": seed,
        "fps": fps,
        "rate_hz": rate_hz,
        "frames": board.frames,
        "frames_late": board.frames_late,
        "frames_skipped": board.frames_skipped,
        "frame_calls_wall_ms": board.calls_wall.percentiles(p50=0.5, p99=0.99, p999=0.999),
        "frame_calls_cpu_ms": board.calls_cpu.percentiles(p50=0.5, p99=0.99, p999=0.999),
        "observations": board.observations,
        "intents_by_source": dict(board.slots.by_source),
        "intents_model_share": round(board.slots.model_share, 4),
        "slots_due": board.slots.due,
        "slots_unanswered": board.slots.unanswered,
        "slots_answered_for_newer": board.slots.answered_for_newer,
        "intent_versions_by_source": dict(board.versions),
        "intent_fallbacks": board.fallbacks,
        "barks": board.barks,
        "intent_latency_ms": percentiles_of(board.intent_latency),
        "intent_age_ms": percentiles_of(board.intent_age),
        "intent_age_samples": board.intent_age.count,
        "intent_age_samples_without_intent": board.unanswered_samples,
        "gold_token_ms": {"p50": gold.token_p50_ms, "p95": gold.token_p95_ms, "p99": gold.token_p99_ms},
        "gold_first_ms": {"p50": gold.first_p50_ms, "p95": gold.first_p95_ms, "p99": gold.first_p99_ms},
        "silver_ttft_ms": {"p50": silver.first_p50_ms, "p95": silver.first_p95_ms, "p99": silver.first_p99_ms},
        "silver_ttft_client_ms": _exact(board.first_text_ms),
        "dialogue_turns": board.turns,
        "cached_tokens": board.since_start("cached_tokens"),
        "prefilled_tokens": board.since_start("prefilled_tokens"),
        "tokens_per_s": status.tokens_per_s,
        "loop_lag_p99_ms": status.loop_lag_p99_ms,
        "errors": board.errors.count,
        "errors_by_kind": dict(board.errors.by_kind),
        "error_messages": list(board.errors.messages),
        "daemon": {"version": status.version, "model": status.model_name, "engine": status.engine},
        "machine": machine(),
    }


def broken_promises(made: dict[str, Any]) -> list[str]:
    """The promises that a report breaks, one sentence each; empty when all hold."""
    frames_min = round(FRAMES_PER_S_MIN * made["seconds"])
    gold_p95, silver_p95 = made["gold_token_ms"]["p95"], made["silver_ttft_ms"]["p95"]
    found = [
        (made["frames"] >= frames_min, f"frames {made['frames']}, promised {frames_min} or more"),
        (made["frames_late"] == 0, f"frames_late {made['frames_late']}, promised 0"),
        (made["errors"] == 0, f"errors {made['errors']}, promised 0"),
        (
            made["intents_model_share"] >= MODEL_SHARE_MIN,
            f"intents_model_share {made['intents_model_share']}, promised {MODEL_SHARE_MIN} or more",
        ),
        (made["dialogue_turns"] >= TURNS_MIN, f"dialogue_turns {made['dialogue_turns']}, promised {TURNS_MIN} or more"),
        (made["cached_tokens"] > 0, "cached_tokens 0, promised more"),
        (
            0 < gold_p95 < GOLD_TOKEN_P95_MAX_MS,
            f"gold_token_ms p95 {gold_p95}, promised below {GOLD_TOKEN_P95_MAX_MS:g}",
        ),
        (
            0 < silver_p95 < SILVER_FIRST_P95_MAX_MS,
            f"silver_ttft_ms p95 {silver_p95}, promised below {SILVER_FIRST_P95_MAX_MS:g}",
        ),
    ]
    return [sentence for kept, sentence in found if not kept]


def as_text(made: dict[str, Any]) -> str:
    """The report for people."""
    share, sources = made["intents_model_share"], made["intents_by_source"]
    delivered = {"model": 0, "policy": 0, **made["intent_versions_by_source"]}
    lines = [
        f"{made['npcs']} NPCs for {made['seconds']:g} s, seed {made['seed']}, {made['daemon']['model']} on "
        f"{made['machine']['cores']} cores",
        f"  frames                {made['frames']} run, {made['frames_skipped']} skipped, {made['frames_late']} late",
        f"  npcd calls per frame  {_three(made['frame_calls_wall_ms'])} ms of wall time",
        f"  intents               {sources['model']} model, {sources['predicted']} predicted, {sources['policy']} "
        f"policy ({share:.1%} from the model)",
        f"  delivered in all      {delivered['model']} by the model, {delivered['policy']} by the policy "
        "(the model may answer after the policy)",
        f"  intent age            {_three(made['intent_age_ms'])} ms",
        f"  intent latency        {_three(made['intent_latency_ms'])} ms",
        f"  gold, per token       {_three(made['gold_token_ms'])} ms",
        f"  silver, first text    {_three(made['silver_ttft_ms'])} ms",
        f"  the same, seen here   {_three(made['silver_ttft_client_ms'])} ms",
        f"  conversation          {made['dialogue_turns']} turns",
        f"  prompt tokens         {made['cached_tokens']} from the cache, {made['prefilled_tokens']} computed",
        f"  errors                {made['errors']}",
    ]
    return "\n".join([*lines, *(f"    {message}" for message in made["error_messages"])])


def machine() -> dict[str, Any]:
    """The machine and software of the run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "cpu": _cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def percentiles_of(histogram: Histogram) -> dict[str, float]:
    """The three percentiles that are reported for every time."""
    return histogram.percentiles(p50=0.5, p95=0.95, p99=0.99)


def _exact(values: list[float]) -> dict[str, float]:
    """Percentiles of few values, by nearest rank."""
    ranked = sorted(values)

    def at(share: float) -> float:
        return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))], 3) if ranked else 0.0

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}


def _three(percentiles: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in percentiles.items())

"""The gain of asking wisely: only after a change, ahead of time, and not at all while the engine hangs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from statistics import median

from loadtests.bench.attention_game import Log, Played, Stage
from loadtests.bench.attention_rig import sides
from loadtests.bench.figures import Figures
from npcd_client.v1 import admin_pb2

VILLAGERS = 100
SLOT_HZ = 2.0  # an active NPC's cadence: one observation a slot
CHANGE_S = 40.0
AHEAD_S = 15.0
AHEAD_PAIRS = 3
FULL_NPCS = 1_000  # all of them are active: they change more often than two cores can answer
FULL_WARM_S, FULL_S = 6.0, 10.0
STOPS, STOP_MS, STOP_EVERY_S = 4, 1_500, 4.0
Answer = tuple[str, str]  # an action and its source
PREDICTION, NO_PREDICTION = "intents.prediction.on=true", "intents.prediction.on=false"


async def change(figures: Figures, model: Path, quick: bool) -> None:
    """Plays the same village on a daemon that asks after a change and on one that asks in every slot. There is one
    observation a slot, so that both are asked about the same. Raises NpcdError.
    """
    seconds = 15.0 if quick else CHANGE_S
    figures.note(f"-- {VILLAGERS} NPCs of the village for {seconds:g} s: asked on change, then in every slot")
    stage = Stage(VILLAGERS, seconds, SLOT_HZ, players=0)
    found: list[tuple[int, Log]] = []
    async with sides(model, stage, [(NO_PREDICTION,), (NO_PREDICTION, "intents.change_driven=false")]) as both:
        for side in both:
            await side.register(VILLAGERS)
            before = await side.counts()
            played, log = await side.play_logged(seconds)
            counts = {name: now - before[name] for name, now in (await side.counts()).items()}
            calls = counts["model"] - counts["remembered"]
            figures.note(
                f"   {calls} model calls, {counts['remembered']} from memory, {counts['confirmed']} confirmed, "
                f"{counts['policy']} by policy; slots {played.by_source}; errors {played.errors}"
            )
            found.append((calls, log))
    (calls, wise), (all_calls, every) = found
    slots = sorted({(npc, int(tick)) for npc, tick in map(str.split, {**wise.actions, **every.actions})})
    pairs = list(zip(_carried(wise, slots), _carried(every, slots), strict=True))
    differ = Counter(f"{a[1]} / {b[1]}" for a, b in pairs if a[0] != b[0])
    figures.note(f"   slots that differ, by whose word it was: {dict(differ)}")
    figures.add("attention.same_action_share", 1 - differ.total() / len(pairs))
    figures.add("attention.same_action_slots", len(pairs), 0)
    figures.add("attention.calls_x", calls / all_calls)
    figures.add("attention.calls_fixed_per_s", all_calls / seconds, 0)


async def prediction(figures: Figures, model: Path, quick: bool) -> None:
    """Plays the same village with prediction and without, in turns, then a crowd that the engine cannot carry. Raises
    NpcdError.
    """
    seconds, pairs = (8.0, 1) if quick else (AHEAD_S, AHEAD_PAIRS)
    figures.note(f"-- {VILLAGERS} NPCs of the village, prediction on and off: {pairs} pairs of {seconds:g} s")
    async with sides(model, Stage(VILLAGERS, seconds, players=0), [(PREDICTION,), (NO_PREDICTION,)]) as (on, off):
        for side in (on, off):
            await side.register(VILLAGERS)
            await side.play(seconds)  # the daemon learns from the play which states are likely
        before = await on.status()
        ages: dict[str, list[float]] = {"on": [], "off": []}
        for pair in range(pairs):
            turns = [("on", on), ("off", off)]
            for name, side in turns if pair % 2 == 0 else reversed(turns):
                played = await side.play(seconds)
                ages[name].append(played.age_ms["p95"])
                figures.note(f"   {name:<3} age p95 {ages[name][-1]:.0f} ms, {_in_words(played)}")
        after = await on.status()
    spent = after.predicted_tokens - before.predicted_tokens
    wasted = after.predicted_wasted_tokens - before.predicted_wasted_tokens
    figures.add("attention.prediction_age_x", median(ages["on"]) / median(ages["off"]))
    figures.add("attention.age_on_p95_ms", median(ages["on"]), 0)
    figures.add("attention.age_off_p95_ms", median(ages["off"]), 0)
    figures.add("attention.predicted_tokens_per_s", spent / (pairs * seconds), 0)
    figures.add("attention.predicted_wasted_share", wasted / spent if spent else 0.0)
    figures.add("attention.predictions_hit_share", _share(before, after))
    await _full(figures, model, quick)


async def _full(figures: Figures, model: Path, quick: bool) -> None:
    seconds = 5.0 if quick else FULL_S
    figures.note(f"-- {FULL_NPCS} NPCs, all of them active, which is more than the engine carries: {seconds:g} s")
    everybody = [f"intents.activation.{name}={FULL_NPCS}" for name in ("active_max", "active_min")] + [PREDICTION]
    async with sides(model, Stage(FULL_NPCS, FULL_WARM_S + seconds), [everybody]) as (side,):
        await side.register(FULL_NPCS)
        playing = asyncio.create_task(side.play(FULL_WARM_S + seconds))
        await asyncio.sleep(FULL_WARM_S)
        statuses = [await side.status()]
        for _ in range(round(seconds) - 1):
            await asyncio.sleep(1.0)
            statuses.append(await side.status())
        played = await playing
    figures.note(f"   {_in_words(played)}")
    figures.add("attention.full_load_put_off", median(status.intents_put_off for status in statuses), 0)
    figures.add("attention.predicted_full_load_tokens", statuses[-1].predicted_tokens - statuses[0].predicted_tokens, 0)


async def stall(figures: Figures, model: Path, quick: bool) -> None:
    """Stops the engine in the middle of a step, again and again, while the village is played. Raises NpcdError."""
    stops = 2 if quick else STOPS
    seconds = (stops + 1) * STOP_EVERY_S
    figures.note(f"-- {VILLAGERS} NPCs of the village; the engine stops {stops} times for {STOP_MS} ms")
    stopped: list[tuple[int, int]] = []
    async with sides(model, Stage(VILLAGERS, seconds, players=0), [()]) as (side,):
        await side.register(VILLAGERS)
        playing = asyncio.create_task(side.play_logged(seconds))
        for _ in range(stops):
            await asyncio.sleep(STOP_EVERY_S)
            began_ns = time.monotonic_ns()
            await side.stop_engine(STOP_MS)
            stopped.append((began_ns, began_ns + STOP_MS * 1_000_000))
        played, log = await playing
    figures.note(f"   {_in_words(played)}")
    rules = [ms for at_ns, source, ms, _ in log.intents if source == "policy" and _within(at_ns, stopped)]
    back = [
        min((at_ns for at_ns, source, _, _ in log.intents if source == "model" and at_ns > end_ns), default=0) - end_ns
        for _, end_ns in stopped
    ]
    gaps = [b - a for a, b in zip(log.frames_ns, log.frames_ns[1:], strict=False) if _within(b, stopped)]
    figures.add("attention.stall_policy_max_ms", max(rules, default=0), 0)
    figures.add("attention.stall_policy_intents", len(rules), 0)
    figures.add("attention.stall_unanswered", played.unanswered, 0)
    figures.add("attention.stall_errors", len(played.errors), 0)
    figures.add("attention.stall_frame_gap_max_ms", max(gaps, default=0) / 1e6, 0)
    figures.add("attention.stall_back_max_ms", max(back) / 1e6 if all(ns > 0 for ns in back) else float("inf"), 0)


def _carried(log: Log, slots: list[tuple[str, int]]) -> list[Answer]:
    """Each NPC's action in its slots. If no intent agrees with a slot's observation, because the next observation came
    before the question, the NPC goes on with its last action.
    """
    doing: dict[str, Answer] = {}
    made = []
    for npc, tick in slots:
        doing[npc] = log.actions.get(f"{npc} {tick}", doing.get(npc, ("", "nobody")))
        made.append(doing[npc])
    return made


def _within(at_ns: int, spans: list[tuple[int, int]]) -> bool:
    return any(begin_ns <= at_ns < end_ns for begin_ns, end_ns in spans)


def _share(before: admin_pb2.StatusResponse, after: admin_pb2.StatusResponse) -> float:
    made = after.predictions - before.predictions
    return (after.predictions_hit - before.predictions_hit) / made if made else 0.0


def _in_words(played: Played) -> str:
    return (
        f"{played.active:.0f} active, {played.due} due, answered {played.by_source}, versions {played.versions}, "
        f"{played.frames_late} frames late, errors {played.errors}"
    )

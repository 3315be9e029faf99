"""A start is told in the log, and what its stages took is expected of the next one."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from core.clock import S, now_ns
from daemon.config import SHIPPED_MODEL, Config
from daemon.process.start_watch import expect, keep, process_age_s, start_of, watch_start
from daemon.starting import LOADING, STORES, TUNING, WORLDS, Stage, Start
from engines.kept import Kept
from engines.llama import LlamaSettings
from tests.patience import PATIENCE_S

CONFIG = replace(Config(), engine=LlamaSettings(SHIPPED_MODEL))


async def told(logs: list[Any], event: str, **fields: object) -> None:
    """Waits for a line with these fields."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(  # noqa: ASYNC110 - a log
            line["event"] == event and fields.items() <= line.items() for line in logs
        ):
            await asyncio.sleep(0.01)


async def test_every_stage_has_a_line_with_share_and_seconds() -> None:
    """The engine is named where the stage has one."""
    start = Start([Stage(TUNING, "llama", 5.0), Stage(LOADING, "llama", 5.0), Stage(STORES, "", 0.0)], now_ns())
    with capture_logs() as logs:
        watching = asyncio.create_task(watch_start(start))
        await told(logs, "starting", stage=TUNING, engine="llama", share=0.0)
        start.begin(LOADING, "llama", now_ns())
        await told(logs, "starting", stage=LOADING, engine="llama", share=0.5)
        start.begin(STORES, "", now_ns())
        await told(logs, "starting", stage=STORES, share=1.0, left_s=0.0)
        watching.cancel()
    assert len([line for line in logs if line["event"] == "starting"]) == 3
    assert "engine" not in logs[-1]


async def test_a_start_that_is_stuck_is_told_once() -> None:
    """After a minute in which the process did nothing."""
    before_ns = now_ns() - 70 * S
    start = Start([Stage(STORES, "", 5.0)], before_ns)
    start.look(before_ns, 1 << 62, 1 << 62)  # nothing that the process does will be more than that
    with capture_logs() as logs:
        watching = asyncio.create_task(watch_start(start))
        await told(logs, "the start is stuck", stage=STORES, log_level="warning")
        await asyncio.sleep(0)
        watching.cancel()
    assert [line["event"] for line in logs].count("the start is stuck") == 1


def test_the_next_start_expects_what_this_one_took(tmp_path: Path) -> None:
    """Stage by stage; one that was left out is expected to be left out. Another set of stages is another start."""
    kept, start = Kept(tmp_path), Start(start_of(CONFIG).stages, 0)
    start.begin(LOADING, "llama", 2 * S)
    start.begin(WORLDS, "", 7 * S)
    start.end(8 * S)
    keep(start, kept)
    again = start_of(CONFIG)
    usual = {s.key: s.expected_s for s in again.stages}
    expect(again, kept)
    expected = {s.key: s.expected_s for s in again.stages}
    assert expected["loading the model (llama)"] == 5.0 and expected["reading the model (llama)"] == 2.0
    assert expected["tuning (llama)"] < 0.1 < usual["tuning (llama)"]
    other = start_of(replace(CONFIG, memory=replace(CONFIG.memory, keep=False)))
    before = other.stages
    expect(other, kept)
    assert other.stages == before


def test_the_age_of_the_process_is_known() -> None:
    """It grows with the clock."""
    first = process_age_s()
    assert 0 < first <= process_age_s() < 24 * 3600

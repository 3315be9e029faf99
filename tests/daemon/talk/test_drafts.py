"""A daemon with drafts gives the same replies as without, and reports the drafts' acceptance."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.config import SHIPPED_MODEL, Config
from daemon.model import LlamaModel, Model, open_drafter
from daemon.process.telemetry import StatusCollector
from engines.base import Asked, tokens_of
from npcd.v1 import dialogue_pb2
from scheduler.speculation import SpeculationSettings
from tests.daemon.rig import running

NGRAM = SpeculationSettings(drafts="ngram", match_min=1, trial_steps=10**9)
DRAFT = SHIPPED_MODEL.with_name("npcd-demo-draft.gguf")


async def reply(model: Model, config: Config) -> tuple[str, int, int]:
    """An NPC's greedy reply, and the counts of Silver's guessed and accepted tokens."""
    async with running(model, config, npcs=1) as rig:
        events = await rig.say("npc0", "What do you think of the old mill?", temperature=0.0, has_temperature=True)
        text = "".join(e.text for e in events if e.kind == dialogue_pb2.TALK_EVENT_KIND_TEXT)
        board = rig.daemon.board.message()
        silver = next(t for t in board.tiers if t.tier == "silver")
        metrics = {m.name: m for m in StatusCollector(lambda: board, dict).collect()}
        shown = {(s.labels["tier"], s.labels["was"]): s.value for s in metrics["npcd_drafts"].samples}
        assert shown["silver", "right"] == silver.drafts_accepted
        assert silver.drafts_on == (config.speculation.drafts != "off")
        return text, silver.drafts_offered, silver.drafts_accepted


@pytest.mark.parametrize("settings", [NGRAM, replace(NGRAM, drafts="model", draft_model=str(DRAFT))])
async def test_a_reply_is_the_same_with_drafts(real: LlamaModel, settings: SpeculationSettings) -> None:
    """That holds through the whole daemon for n-grams and a draft model. Status and metrics have the counts."""
    text, offered, _ = await reply(real, Config())
    assert text and not offered
    drafted = replace(real, drafter=open_drafter(settings, real.engine))
    planner = replace(Config().scheduler.planner, step_ms=10_000.0, gold_recent_ms=0)
    scheduler = replace(Config().scheduler, planner=planner)
    real.engine.rebuild()
    again, offered, accepted = await reply(drafted, replace(Config(), speculation=settings, scheduler=scheduler))
    assert again == text
    assert offered >= accepted
    assert offered > 0
    assert drafted.drafter is not None
    drafted.drafter.close()


def test_drafters_by_their_settings(real: LlamaModel, tmp_path: Path) -> None:
    """The setting "off" makes no drafter. A draft that is no file is refused by its name."""
    assert open_drafter(SpeculationSettings(), real.engine) is None
    ngrams = open_drafter(NGRAM, real.engine)
    assert ngrams is not None
    (guess,) = ngrams.draft([Asked(1, tokens_of([7, 8, 9, 5, 7, 8]), 2)], 0.0)
    assert guess.tolist() == [9, 5]
    missing = replace(NGRAM, drafts="model", draft_model=str(tmp_path / "none.gguf"))
    with pytest.raises(ConfigError, match=r"none\.gguf"):
        open_drafter(missing, real.engine)

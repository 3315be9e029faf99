"""Capacity: stated costs follow from public figures, the same seed gives the same town, and the page is up to date."""

import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from core.errors import ConfigError
from engines.llama import LlamaEngine, LlamaSettings
from engines.sim import SimCost
from loadtests.bench.figures import ROOT
from loadtests.capacity import chart, page, validate
from loadtests.capacity.__main__ import CHART, PAGE, RESULTS
from loadtests.capacity.costs import STATED, Column, on_card, read, step_cost
from loadtests.capacity.measure import Point, fit, host
from loadtests.capacity.outcome import inputs, load
from loadtests.capacity.search import SearchSettings, carried
from loadtests.capacity.simulate import Promised, Simulation
from loadtests.capacity.town import TownSettings

STATED_COSTS = read()
MODEL = ROOT / "models" / "npcd-demo.gguf"
TINY = SearchSettings(npc_seconds=50.0, seconds=(1.0, 2.0), warm_s=0.5, last=50)


def column(key: str) -> Column:
    """One of the stated columns."""
    return next(c for c in STATED_COSTS.columns if c.key == key)


def test_a_cards_costs_follow_from_its_public_figures() -> None:
    """A pass reads the weights at the reached bandwidth, KV is read once, and a step is one pass or many."""
    s = STATED_COSTS
    cost = step_cost(s.host, s.cards["l4"], s.models["qwen2_5-3b"], s.weights["f16"], s.layouts["runs"])
    assert cost.pass_us == pytest.approx(3.09e9 * 2 / (300e9 * 0.8) * 1e6)
    assert cost.token_us == pytest.approx(2 * 3.09e9 / (121e12 * 0.45) * 1e6)
    assert cost.kilo_read_us == pytest.approx(1000 * 36 * 1024 / (300e9 * 0.8) * 1e6)
    assert not cost.one_pass
    assert column("h200-qwen2_5-7b-f16-paged").cost.one_pass


def test_sequences_are_what_the_memory_holds_beside_the_weights() -> None:
    """A model that leaves no room for KV does not fit, with a reason."""
    assert column("l4-qwen2_5-3b-f16-runs").sequences == 256
    s = STATED_COSTS
    small = replace(s.cards["l4"], memory_gb=8.0)
    found = on_card(s.host, small, s.models["qwen2_5-3b"], s.weights["f16"], s.layouts["runs"])
    assert found.why_not == "1.2 GB are left beside the weights"
    assert carried(found, s.daemon).npcs == 0


def test_a_file_of_your_own_may_state_other_machines(tmp_path: Path) -> None:
    """A measured machine's terms are taken unchanged. A faulty file is refused with the place that has the form."""
    own = tmp_path / "my.toml"
    own.write_text(STATED.read_text().replace("[measured.cpu]", "[measured.mine]").replace('["cpu"]', '["mine"]'))
    mine = read(own).columns[0]
    assert (mine.key, mine.measured) == ("mine", True)
    assert mine.cost == column("cpu").cost
    own.write_text("[host]\nstep_us = 1\n")
    with pytest.raises(ConfigError, match=r"costs\.toml shows the form"):
        read(own)


def test_the_fit_finds_the_terms_that_made_the_points() -> None:
    """Non-negative least squares on steps that cost what is stated."""
    true = (10.0, 120.0, 20.0, 30.0, 100.0)
    shapes = [(1.0, m, t, t * c, n * c) for m in (1.0, 3.0) for t in (4.0, 96.0) for c in (0.3, 1.5) for n in (1, 8)]
    found = fit([Point(x, sum(a * b for a, b in zip(x, true, strict=True))) for x in shapes])
    assert found.tolist() == pytest.approx(true, rel=0.05, abs=5.0)


def test_pythons_time_is_measured_on_the_model_that_ships() -> None:
    """Python takes some microseconds of a step, and some for each sequence in it, on a busy machine as well."""
    settings = LlamaSettings(MODEL, sequences=96, context_len=512, threads=1, flash_attention="off", weights="file")
    engine = LlamaEngine(settings)
    engine.vocab.eog_ids = frozenset()
    step_us, slice_us = host(engine, time.thread_time_ns)
    engine.close()
    assert 0.0 <= step_us < 5_000.0
    assert 0.0 < slice_us < 500.0


def test_a_small_town_holds_on_this_cpu_and_nothing_holds_on_a_machine_that_is_too_slow() -> None:
    """All promises hold on a machine with time to spare, and none where a pass takes longer than a token may."""
    talkative = TownSettings(npcs_per_player=5)
    here = Simulation(column("cpu"), STATED_COSTS.daemon, 40, talkative, seconds=4.0, warm_s=1.0).run()
    assert here.broken(Promised()) == {}
    assert 25 <= here.intents_per_s <= 40
    assert here.active == 40
    assert here.turns_per_s > 0
    assert here.bronze_per_s > 0
    slow = replace(column("cpu"), cost=SimCost(step_us=40_000.0))
    broken = Simulation(slow, STATED_COSTS.daemon, 40, seconds=4.0, warm_s=1.0).run().broken(Promised())
    assert {"Gold per token", "intent latency"} <= broken.keys()


def test_the_event_loop_is_a_limit_of_its_own() -> None:
    """Observations cost the event loop, whatever the engine is."""
    dear = replace(STATED_COSTS.daemon, observation_us=2_500.0)
    report = Simulation(column("cpu"), dear, 40, seconds=1.0, warm_s=0.5).run()
    assert "the event loop" in report.broken(Promised())


def test_a_search_ends_between_a_town_that_holds_and_one_that_does_not() -> None:
    """The broken promise is named, and the two ends are near each other."""
    slower = replace(column("cpu"), cost=SimCost(step_us=2_000.0, micro_us=1_000.0, token_us=100.0))
    found = carried(slower, STATED_COSTS.daemon, settings=replace(TINY, last=400, seconds=(4.0, 4.0), warm_s=2.0))
    assert found.held is not None and found.beyond is not None
    assert found.held.npcs == found.npcs < found.beyond.npcs <= found.npcs + max(5, 0.05 * found.npcs)
    assert found.held.broken(Promised()) == {}
    assert found.breaks in found.beyond.broken(Promised())
    assert carried(column("cpu"), STATED_COSTS.daemon, settings=TINY).breaks == ""


SAME = """
from dataclasses import asdict
from loadtests.capacity.costs import read
from loadtests.capacity.simulate import Simulation
stated = read()
print(asdict(Simulation(stated.columns[0], stated.daemon, 60, seconds=2.0, warm_s=0.5).run()))
"""


def test_the_same_seed_gives_the_same_report_in_another_process() -> None:
    """The report does not depend on Python's hashes."""
    here = asdict(Simulation(column("cpu"), STATED_COSTS.daemon, 60, seconds=2.0, warm_s=0.5).run())
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    there = subprocess.run([sys.executable, "-c", SAME], env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    assert there.stdout.strip() == str(here)
    other = asdict(Simulation(column("cpu"), STATED_COSTS.daemon, 60, seconds=2.0, warm_s=0.5, seed=2).run())
    assert other != here


def test_compared_figures_were_measured() -> None:
    """Every figure of the comparison has a measured one, and the engine's busy share is near it."""
    found = validate.compare(column("cpu"), STATED_COSTS.daemon, seconds=1.0)
    assert len(found) >= 5
    assert abs(found[0].off) < page.FAR_OFF


def test_the_page_is_what_the_results_say_and_they_are_of_these_inputs() -> None:
    """docs/CAPACITY.md and its chart follow from the results. After a change of cost models or town, `make capacity`
    writes them again."""
    found = load(RESULTS)
    assert found.inputs == inputs(), "run `make capacity`"
    assert [row.key for row in found.rows] == [c.key for c in STATED_COSTS.columns]
    text = page.markdown(found, STATED_COSTS)
    assert PAGE.read_text("utf-8") == text, "run `python -m loadtests.capacity --render`"
    assert CHART.read_text("utf-8") == chart.svg(found.rows)
    assert "{{" not in text
    ElementTree.parse(CHART)


def test_the_town_is_the_one_that_the_page_describes() -> None:
    """The numbers in the page's text are those of the settings."""
    town, text = TownSettings(), PAGE.read_text("utf-8")
    assert f"every {town.npcs_per_player} NPCs in view one player" in text
    assert f"{town.active_share:.0%}".replace("%", " %") in text
    assert f"a trunk of {town.shared_len + town.persona_len}" in text
    assert f"every {town.change_s[0]} to {town.change_s[1]} s" in text

"""The benchmark of adapters measures the work that it names."""

from daemon.config import SHIPPED_MODEL
from loadtests.bench import figures, kv_adapters
from loadtests.bench.figures import Figures


async def test_every_figure_is_there_and_has_words() -> None:
    """A second activated adapter computes no token of the trunk. All other figures are times of this machine."""
    found = Figures(lambda line: None)
    await kv_adapters.run(found, SHIPPED_MODEL, quick=True)
    assert {key for key in figures.KNOWN if key.startswith("adapter.")} == set(found.found)
    assert found.found.pop("adapter.second_on_trunk_tokens") == 0
    assert all(value > 0 for value in found.found.values())

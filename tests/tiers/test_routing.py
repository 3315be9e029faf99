"""The routing table: every kind of work has a route, and an impossible route is refused by the setting's name."""

from dataclasses import fields, replace

import pytest

from core.errors import ConfigError
from core.words import Tier
from tiers.promises import Promises
from tiers.routing import ABOUT, ENGINES, GROWING, Route, Routes, WorkKind, check_routes

LEN = 2048


def test_every_kind_has_a_route_and_the_shipped_table_holds() -> None:
    """The name of a kind is the name of its setting."""
    assert {f.name for f in fields(Routes)} == {kind.value for kind in WorkKind}
    assert set(ABOUT) == set(WorkKind)
    check_routes(Routes(), Promises(), LEN)
    for kind in WorkKind:
        route = Routes().of(kind)
        assert replace(route, engine="") == replace(getattr(Routes(), kind.value), engine="")
        assert route.engine in ENGINES


def test_the_shipped_table_is_that_of_the_design() -> None:
    """Intents and barks are Gold, work that a player hears is Silver, the rest is Bronze. One kind may wait for
    memory."""
    tiers = {kind: Routes().of(kind).tier for kind in WorkKind}
    assert [kind for kind, tier in tiers.items() if tier is Tier.GOLD] == [WorkKind.INTENT, WorkKind.BARK]
    assert [kind for kind, tier in tiers.items() if tier is Tier.SILVER] == [WorkKind.REPLY, WorkKind.REPLY_TRUNK]
    assert [kind for kind in WorkKind if Routes().of(kind).recall] == [WorkKind.REPLY]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("reply", {"engine": "vllm"}, "routes.reply.engine: there is no engine 'vllm'; there is: llama"),
        ("intent", {"recall": True}, "routes.intent.recall: Gold never waits on I/O"),
        ("bark", {"recall": True}, "routes.bark.recall: Gold never waits on I/O"),
        ("reply", {"tier": Tier.GOLD}, "routes.reply.recall: Gold never waits on I/O"),
        ("summary", {"recall": True}, "routes.summary.recall: only a reply waits for memory"),
        ("trunk", {"tier": Tier.GOLD}, "routes.trunk.tier: gold, must be silver or bronze"),
        ("reply_trunk", {"tier": Tier.GOLD}, "routes.reply_trunk.tier: gold, must be silver or bronze"),
        ("prediction", {"tier": Tier.GOLD}, "routes.prediction.tier: gold, must be bronze"),
        ("prediction_bark", {"tier": Tier.SILVER}, "routes.prediction_bark.tier: silver, must be bronze"),
        ("trunk", {"output_max": 1}, "routes.trunk.output_max: 1, must be 0"),
        ("bark", {"output_max": 0}, "routes.bark.output_max: 0, must be 1 or more"),
        (
            "bark",
            {"output_max": 9},
            "routes.bark.output_max: 9 is more than gold promises (promises.gold.output_max: 8)",
        ),
        ("reply", {"output_max": 513}, "more than silver promises (promises.silver.output_max: 512)"),
        ("summary", {"output_max": 2000}, "more than bronze promises (promises.bronze.output_max: 1024)"),
        (
            "reply",
            {"context_max": 400},
            "routes.reply.output_max: 512 is more than routes.reply.context_max (400) holds",
        ),
        (
            "reply",
            {"context_max": 4096},
            "routes.reply.context_max: 4096, must be 1 to engine.context_len (2048), or 0",
        ),
        ("reply", {"context_max": -1}, "routes.reply.context_max: -1, must be 1 to"),
        ("intent", {"context_max": 900}, "routes.intent.context_max: only conversations grow; give it in routes.reply"),
    ],
)
def test_an_impossible_route_is_refused(kind: str, change: dict[str, object], said: str) -> None:
    """The error names the setting and its limit."""
    routes = replace(Routes(), **{kind: replace(getattr(Routes(), kind), **change)})
    with pytest.raises(ConfigError) as caught:
        check_routes(routes, Promises(), LEN)
    assert said in str(caught.value)


def test_an_output_beyond_the_models_context_is_refused() -> None:
    """The output may not exceed the model's context, in any tier."""
    with pytest.raises(ConfigError, match=r"routes\.reply\.output_max: 512 is more than engine\.context_len \(500\)"):
        check_routes(Routes(), Promises(), 500)


def test_other_choices_hold() -> None:
    """A summary may have a faster tier, and a reply's length and memory may be limited."""
    routes = replace(
        Routes(),
        summary=Route(Tier.SILVER, output_max=100),
        reply=Route(Tier.SILVER, output_max=64, context_max=1024),
        trunk=Route(Tier.SILVER),
        intent=Route(Tier.SILVER, output_max=8),
    )
    check_routes(routes, Promises(), LEN)
    assert routes.of(WorkKind.REPLY).context_len(LEN) == 1024
    assert routes.of(WorkKind.REPLY).context_len(512) == 512
    assert routes.of(WorkKind.SUMMARY).context_len(LEN) == LEN


def test_an_engine_exists_when_the_daemon_says_so() -> None:
    """The daemon gives the list of engines, and the error names all of them."""
    routes = replace(Routes(), reply=replace(Routes().reply, engine="vllm"))
    check_routes(routes, Promises(), LEN, ("llama", "vllm"))
    with pytest.raises(ConfigError, match="there is: llama, openai"):
        check_routes(routes, Promises(), LEN, ("openai", "llama"))
    assert {WorkKind.REPLY, WorkKind.SUMMARY} == GROWING

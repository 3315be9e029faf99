"""Each submitted work has the tier and the size of the routing table."""

from dataclasses import replace

import pytest

from core.errors import CallerError, ConfigError
from core.words import Tier
from core.work import Work
from daemon.config import Config
from npcd.v1 import dialogue_pb2, intents_pb2
from tests.daemon.rig import UNHURRIED, Rig, gated, running
from tiers.routing import Route, Routes

MODEL = intents_pb2.INTENT_SOURCE_MODEL


def watch(rig: Rig) -> list[Work]:
    """Every work that is submitted from now on."""
    seen: list[Work] = []
    submit = rig.daemon.door.submit_group

    def heard(group):  # type: ignore[no-untyped-def]
        seen.extend(work for work, _, _ in group)
        return submit(group)

    rig.daemon.door.submit_group = heard  # type: ignore[method-assign]
    return seen


async def a_life(rig: Rig) -> list[Work]:
    """The works of an intent with a bark, of a turn with its situation, and of a conversation's end."""
    works = watch(rig)
    await rig.daemon.calls.observe("", rig.frame(rig.sees("npc1", ("w1", "wolf", "hostile", 3.0))))
    await rig.intent("npc1", lambda i: i.source == MODEL)
    await rig.say("npc1", "I am Tom. I lost my lantern.")
    end = dialogue_pb2.EndSessionRequest(world_id="vale", npc_id="npc1", player_id="p1")
    await rig.daemon.calls.end_session("", end)
    await rig.daemon.door.all_ended()
    return works


def shapes(works: list[Work]) -> dict[str, set[tuple[Tier, int]]]:
    """Tier and output limit of the works of each kind; the work's own fields show its kind."""
    found: dict[str, set[tuple[Tier, int]]] = {}
    for w in works:
        if not w.max_tokens:
            kind = "reply_trunk" if w.key.partner else "trunk"
        elif w.key.partner:
            kind = "reply" if w.sampling.temperature else "summary"
        else:
            kind = "intent" if w.choice is not None else "bark"
        found.setdefault(kind, set()).add((w.tier, w.max_tokens))
    return found


def calm(config: Config) -> Config:
    """Settings without look-ahead."""
    prediction = replace(config.intents.prediction, on=False)
    return replace(config, intents=replace(config.intents, prediction=prediction))


async def test_as_shipped() -> None:
    """Intents and barks are Gold, a reply and its trunk Silver, summaries and other trunks Bronze."""
    async with running(gated(), calm(UNHURRIED)) as rig:
        found = shapes(await a_life(rig))
        longest = rig.daemon.dialogue.layout.graph(next(iter(rig.daemon.worlds)).choices[1]).longest
        assert found.pop("bark", {(Tier.GOLD, 8)}) == {(Tier.GOLD, 8)}  # present only if the chosen action speaks
        assert found == {
            "intent": {(Tier.GOLD, max(8, longest))},
            "trunk": {(Tier.BRONZE, 0)},
            "reply": {(Tier.SILVER, 96)},
            "reply_trunk": {(Tier.SILVER, 0)},
            "summary": {(Tier.BRONZE, 160)},
        }


async def test_another_table_is_followed() -> None:
    """Tiers and limits come from the settings, deadlines from the tier's promise."""
    routes = Routes(
        intent=Route(Tier.SILVER, output_max=30),
        bark=Route(Tier.SILVER, output_max=5),
        reply_trunk=Route(Tier.BRONZE),
        summary=Route(Tier.SILVER, output_max=70),
        trunk=Route(Tier.SILVER),
    )
    config = calm(replace(UNHURRIED, routes=routes))
    async with running(gated(), config) as rig:
        works = await a_life(rig)
        found = shapes(works)
        assert found.pop("bark", {(Tier.SILVER, 5)}) == {(Tier.SILVER, 5)}
        assert found == {
            "intent": {(Tier.SILVER, 30)},
            "trunk": {(Tier.SILVER, 0)},
            "reply": {(Tier.SILVER, 96)},
            "reply_trunk": {(Tier.BRONZE, 0)},
            "summary": {(Tier.SILVER, 70)},
        }
        for work in works:
            if work.max_tokens:
                assert work.deadline_ns == config.promises.deadline_ns(work.tier, work.due_ns)


async def test_a_reply_keeps_to_its_limits() -> None:
    """A longer answer is refused by its limit. The conversation is cut to the context of replies."""
    reply = replace(Routes().reply, output_max=128, context_max=900)
    async with running(gated(), Config(routes=Routes(reply=reply))) as rig:
        with pytest.raises(CallerError, match="max_tokens: is 129, the limit is 128"):
            await rig.say("npc0", "Hello.", max_tokens=129)
        works = watch(rig)
        for n in range(9):
            await rig.say("npc0", f"Line {n}: " + "so it was, and the bell rang again over the old mill. " * 4)
        await rig.daemon.door.all_ended()
        # The prepared trunk leaves room for the next line and its answer.
        caps, asked = Config().caps, Config().dialogue.max_tokens
        ready = [len(w.trunk) + caps.talk_tail + asked for w in works if not w.max_tokens]
        assert 750 < max(ready) <= 900
        assert max(len(w.trunk) + len(w.tail) + w.max_tokens for w in works) <= 900


async def test_a_context_that_no_world_fits_is_refused() -> None:
    """The error gives the length that would do."""
    reply = replace(Routes().reply, output_max=128, context_max=400)
    with pytest.raises(ConfigError, match=r"routes\.reply\.context_max: 400 is too short .* make it \d+ or more, or 0"):
        async with running(gated(), Config(routes=Routes(reply=reply))):
            pass


async def test_a_reply_that_may_not_recall_does_not_wait() -> None:
    """The memories are fetched for the next turn, and this turn goes on with those at hand."""
    async with running(gated(), Config(routes=Routes(reply=replace(Routes().reply, recall=False)))) as rig:
        asked: list[str] = []
        rig.daemon.memory.near = lambda npc, player: asked.append(player)  # type: ignore[method-assign]
        events = await rig.say("npc0", "Hello.")
        assert asked == ["p1"]
        assert list(events[-1].timings.stores) == ["hot"] and not events[-1].timings.recall_late
        assert rig.daemon.memory.recaller.counts.hot == 0

"""Describe answers in any state of the engine."""

from __future__ import annotations

import asyncio

import pytest

from npcd.v1 import npcs_pb2
from tests.daemon.rig import gated, running, until

ALL = npcs_pb2.DescribeRequest(world_id="vale")


async def test_describe_does_not_wait_for_an_engine_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer then lacks the trunks, which only the engine thread knows. They are there when it goes on."""
    model = gated()
    async with running(model) as rig:
        model.engine.close()
        turn = asyncio.create_task(rig.say("npc0", "Hello."))
        await until(lambda: model.engine.at_gate, "a step that lasts")
        with monkeypatch.context() as patched:
            patched.setattr("daemon.rpc.describing.PLACES_WITHIN_S", 0.01)
            patched.setattr("daemon.rpc.describing.PLACES_AT_ONCE", 2)
            answer = await rig.daemon.calls.describe("", ALL)
        assert [npc.npc_id for npc in answer.npcs] == ["npc0", "npc1", "npc2", "npc3"]
        assert not any(npc.trunks for npc in answer.npcs)
        model.engine.open()
        await turn
        answer = await rig.daemon.calls.describe("", ALL)
        assert [len(npc.trunks) for npc in answer.npcs] == [2, 1, 1, 1]
        own, hers = sorted(answer.npcs[0].trunks, key=lambda trunk: trunk.partner)
        assert (own.partner, own.home, hers.home) == ("", "sequence", "sequence") and hers.partner

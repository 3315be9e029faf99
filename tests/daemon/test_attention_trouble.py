"""What could leave an NPC without an answer, or the daemon without rest: attention where it is hard."""

import uvloop

from tests.daemon.rig import Rig, gated, running, until
from tests.daemon.test_attention import mind_of, near, only_distance


async def answered(rig: Rig, npc_id: str, what: str = "an answer to what it sees") -> None:
    """Waits until an NPC has one, without calling the daemon."""
    mind = mind_of(rig, npc_id)
    await until(lambda: mind.intent is not None and mind.intent.state == mind.state, what)


def test_a_timer_that_fires_early_is_set_again() -> None:
    """uvloop counts in milliseconds and may call before the moment: whoever is due then is asked all the same."""

    async def play() -> None:
        async with running(gated(), only_distance()) as rig:
            for n in range(40):
                seen = rig.sees("npc0", near(3.0), *[("w1", "wolf", "hostile", 2.0 + n)] * (n % 3))
                await rig.daemon.calls.observe("", rig.frame(seen))
                await answered(rig, "npc0", f"answer {n}")

    uvloop.run(play())

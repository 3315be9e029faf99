"""Game servers: streams have a time of their own, and so have those that call Observe, by the lease of their NPCs."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

from core.clock import Clock
from daemon.minds.mind import Game
from daemon.worlds.world import World
from npcd.v1 import intents_pb2
from tiers.game_time import GameTime


class Games:
    """The game server whose time an observation is of. An entry ends with the last mind that its game observes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._callers: WeakValueDictionary[tuple[str, str, int], Game] = WeakValueDictionary()

    def begin(self) -> Game:
        """A game server begins to observe NPCs."""
        return Game(GameTime(self._clock()))

    def caller(self, world: World, lease_epoch: int) -> Game:
        """The game server that calls Observe under a lease."""
        key = (world.tenant, world.world_id, lease_epoch)
        game = self._callers.get(key)
        if game is None:
            game = self._callers[key] = self.begin()
        return game

    def callers(self, world: World, said: Iterable[intents_pb2.Observation]) -> list[Game]:
        """The games whose time a frame tells that came by a call of its own: those of the leases that stand in it. A
        frame without observations is about all that were observed by calls. Keep them until the frame is taken in.
        """
        leases = {
            npc.lease_epoch
            for one in said
            if (npc := world.npcs.get(one.npc_id)) is not None and npc.lease_epoch == one.lease_epoch
        }
        if leases:
            return [self.caller(world, lease_epoch) for lease_epoch in leases]
        return [game for key, game in self._callers.items() if key[:2] == (world.tenant, world.world_id)]

    def end_world(self, tenant: str, world_id: str) -> None:
        """A world is deleted, and a pause of it ends with it. Its NPCs were removed before."""
        for key in [key for key in self._callers if key[:2] == (tenant, world_id)]:
            self._callers.pop(key, None)

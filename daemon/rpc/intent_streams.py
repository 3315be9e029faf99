"""Frames of observations in, frames of intents out: for the streams of game servers, and for Observe.

Knows nothing of who opened a stream; daemon/rpc/calls.py does. Frames come in and go out in slices of the loop's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from core.clock import MS, Clock, S
from core.errors import CallerError, NotFound
from core.slices import Slicer
from daemon.minds.intents import Intents
from daemon.minds.mind import Game
from daemon.minds.table import Subscriber, Table
from daemon.words import check_number
from daemon.worlds.world import World
from daemon.worlds.worlds import Worlds
from npcd.v1 import intents_pb2

TIME_SCALE_MAX = 1e6


class IntentStreams:
    """Moves frames between callers and minds. A frame has at most `observations_max` observations. Intents go out at
    most once in `frame_ms`.
    """

    def __init__(
        self,
        worlds: Worlds,
        table: Table,
        intents: Intents,
        epoch: int,
        observations_max: int,
        frame_ms: int,
        slicer: Slicer,
        clock: Clock,
    ) -> None:
        self._worlds = worlds
        self._table = table
        self._intents = intents
        self._epoch = epoch
        self._observations_max = observations_max
        self._frame_ms = frame_ms
        self._slicer = slicer
        self._clock = clock

    async def read(
        self,
        tenant: str,
        first: intents_pb2.ObservationFrame,
        frames: AsyncIterator[intents_pb2.ObservationFrame],
        subscriber: Subscriber,
        game: Game,
    ) -> None:
        """Takes in the frames of a stream, the first of which was read already, until the client ends its side."""
        world_id = first.world_id
        await self._take_live(tenant, world_id, first, subscriber, game)
        while True:
            try:
                frame = await anext(frames)
            except StopAsyncIteration:
                return
            except CallerError as error:
                # One frame that cannot be read: the stream of a game server survives it.
                subscriber.complain(_whole_frame(error))
                continue
            await self._take_live(tenant, world_id, frame, subscriber, game)

    async def _take_live(
        self, tenant: str, world_id: str, frame: intents_pb2.ObservationFrame, subscriber: Subscriber, game: Game
    ) -> None:
        """One frame of a stream. A frame that is wrong as a whole is dropped and reported; the stream goes on."""
        try:
            if frame.world_id and frame.world_id != world_id:
                raise CallerError("world_id", f"is '{frame.world_id}', this stream began with '{world_id}'")
            self.check(frame)
            world = self._worlds.world(tenant, world_id)
        except CallerError as error:
            subscriber.complain(_whole_frame(error))
            return
        subscriber.last_frame = frame.frame
        try:
            complaints = await self.take(world, frame, subscriber, game)
        except NotFound as error:  # the world was deleted in the middle of it
            complaints = [_whole_frame(error)]
        for complaint in complaints:
            subscriber.complain(complaint)

    def check(self, frame: intents_pb2.ObservationFrame) -> None:
        """Raises CallerError when a frame is wrong as a whole."""
        limit = self._observations_max
        if len(frame.observations) > limit:
            raise CallerError("observations", f"{len(frame.observations)} in one frame, the limit is {limit}")
        check_number("time_scale", frame.time_scale, 0.0, TIME_SCALE_MAX)

    async def take(
        self, world: World, frame: intents_pb2.ObservationFrame, subscriber: Subscriber | None, game: Game | None
    ) -> list[intents_pb2.NpcError]:
        """Takes a frame's observations in, in slices, so that nobody else waits longer than a slice. `game` is a
        stream's, and None for a frame that came by a call of its own.
        """
        games = [game] if game is not None else self._intents.games.callers(world, frame.observations)
        self._intents.tell_time(games, frame.time_scale, frame.paused)
        errors = []
        slices = self._slicer()
        try:
            for said in frame.observations:
                error = self._intents.observe(world, said, frame.game_time_ms, subscriber, game)
                if error is not None:
                    errors.append(error)
                if slices.over:
                    await slices.rest()
                    world = self._worlds.world(world.tenant, world.world_id)  # it may have been changed meanwhile
        finally:
            self._intents.pump()
        return errors

    async def frames(
        self, subscriber: Subscriber, over: Callable[[], bool]
    ) -> AsyncGenerator[intents_pb2.IntentFrame, None]:
        """Frames as things change, at most every frame_ms; the snapshot at once. Ends when over() and all is told, or
        the world is deleted.
        """
        sequence, last_ns = 0, 0
        await self._slicer().run(self._table.marking(subscriber))
        while True:
            if sequence:
                await subscriber.woken.wait()
                if subscriber.deleted:
                    yield intents_pb2.IntentFrame(
                        daemon_epoch=self._epoch,
                        sequence=sequence + 1,
                        last_frame=subscriber.last_frame,
                        world_deleted=True,
                    )
                    return
                if not subscriber.waiting:
                    if over():
                        return
                    subscriber.woken.clear()  # the last frame had all that it was woken for
                    continue
                wait_ns = last_ns + self._frame_ms * MS - self._clock()
                if wait_ns > 0:
                    await asyncio.sleep(wait_ns / S)
            sequence += 1
            last_ns = self._clock()
            yield await self._slicer().run(self._table.framing(subscriber, self._epoch, sequence))
            if over() or subscriber.deleted:  # may have been told before this frame was made, which took it for its own
                subscriber.woken.set()


def _whole_frame(error: CallerError) -> intents_pb2.NpcError:
    return intents_pb2.NpcError(code="INVALID_FRAME", field=error.field, message=str(error))

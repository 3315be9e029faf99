"""For games that own a frame loop and no event loop: the asyncio client in a thread of its own.

Ownership: the thread owns the event loop, the Client and the Live stream. The game's thread only appends observations,
reads the table and submits coroutines. close() ends the stream, the client, the loop and the thread, in that order.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing
from typing import Any, Self, TypeVar

from npcd_client.client import Client, new_turn_id
from npcd_client.errors import NpcdError, Unavailable
from npcd_client.live import LIVE_DEFAULTS, Live, LiveProblem, LiveSettings
from npcd_client.perception import Activation, Intent, Observation
from npcd_client.talking import TalkEvent

_Value = TypeVar("_Value")


class SoonTalk:
    """A turn that runs on the client's thread."""

    def __init__(self, turn_id: str, future: Future[None]) -> None:
        self.turn_id = turn_id
        self._future = future

    @property
    def done(self) -> bool:
        """True when its last event, or its error, has been delivered."""
        return self._future.done()

    def cancel(self) -> None:
        """Cancels the turn. Events that are already on their way may still come."""
        self._future.cancel()


class FrameClient:
    """npcd for a frame loop: observe(), latest(), activation(), tell_time() and talk_soon() never wait.

    `npcd` is the asyncio Client inside; run its calls with wait() while loading and soon() while playing.
    """

    def __init__(self, npcd: Client) -> None:
        self.npcd = npcd
        self._live: Live | None = None
        self._stack = AsyncExitStack()
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="npcd-client", daemon=True)
        self._thread.start()
        self._loop = self._started.result()

    @classmethod
    def start(cls, target: str, **options: Any) -> FrameClient:
        """A client on its own thread; `options` are those of Client. It connects with its first call."""
        return cls(Client(target, **options))

    def wait(self, work: Coroutine[Any, Any, _Value], timeout_s: float | None = None) -> _Value:
        """Runs one of the Client's calls and waits for its answer. For loading screens, not for frames."""
        return self.soon(work).result(timeout_s)

    def soon(self, work: Coroutine[Any, Any, _Value]) -> Future[_Value]:
        """Starts one of the Client's calls on the client's thread, and returns its future at once."""
        if not self._thread.is_alive():
            work.close()
            raise Unavailable("this client is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def open_live(
        self,
        world_id: str = "",
        *,
        timeout_s: float = 10.0,
        settings: LiveSettings = LIVE_DEFAULTS,
        on_intent: Callable[[Intent], None] | None = None,
        on_problem: Callable[[LiveProblem], None] | None = None,
    ) -> Live:
        """Opens the world's Live stream and waits for its snapshot; raises TooLate."""

        async def open_it() -> Live:
            live = self.npcd.live(world_id, settings=settings, on_intent=on_intent, on_problem=on_problem)
            await self._stack.enter_async_context(live)
            await live.wait_connected(timeout_s)
            return live

        self._live = self.wait(open_it())
        return self._live

    # -- every frame -------------------------------------------------------------------------------------------

    @property
    def live(self) -> Live:
        """The open stream. In a tight loop keep it in a local name."""
        if self._live is None:
            raise Unavailable("no Live stream: call open_live() first")
        return self._live

    def observe(self, observation: Observation) -> None:
        """Sends an NPC's new observation."""
        self.live.observe(observation)

    def latest(self, npc_id: str) -> Intent | None:
        """The newest intent of an NPC, or None before the first one."""
        return self.live.latest(npc_id)

    def activation(self, npc_id: str) -> Activation:
        """The attention that npcd gives an NPC now."""
        return self.live.activation(npc_id)

    def tell_time(self, game_time_ms: float, time_scale: float = 1.0, paused: bool = False) -> None:
        """Reports game time, by which intents expire."""
        self.live.tell_time(game_time_ms, time_scale, paused)

    def talk_soon(
        self,
        npc_id: str,
        player_id: str,
        text: str,
        on_event: Callable[[TalkEvent], None],
        on_error: Callable[[NpcdError], None] | None = None,
        *,
        turn_id: str | None = None,
        player_name: str = "",
        max_tokens: int = 0,
        seed: int | None = None,
        temperature: float | None = None,
        world_id: str = "",
        timeout_s: float | None = None,
    ) -> SoonTalk:
        """Starts a turn and returns at once. `on_event` gets its events on the client's thread and must be quick."""
        turn_id = turn_id or new_turn_id()

        async def talk() -> None:
            events = self.npcd.talk(
                npc_id,
                player_id,
                text,
                turn_id,
                player_name=player_name,
                max_tokens=max_tokens,
                seed=seed,
                temperature=temperature,
                world_id=world_id,
                timeout_s=timeout_s,
            )
            try:
                async with aclosing(events):
                    async for event in events:
                        on_event(event)
            except NpcdError as error:
                if on_error is None:
                    raise
                on_error(error)

        return SoonTalk(turn_id, self.soon(talk()))

    def close(self, timeout_s: float = 5.0) -> None:
        """Ends everything and waits for the thread. A second call does nothing."""
        if self._thread.is_alive() and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    # -- the client's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with self.npcd, self._stack:
            self._started.set_result(asyncio.get_running_loop())
            await self._stop.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

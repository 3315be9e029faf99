"""KV bytes in Redis: the home of trunks that had no room in RAM.

Owns a connection and the thread that uses it; park, fetch and drop never wait. Bytes are signed with a key that never
leaves the process, so bytes that others wrote there are refused. Bytes are deleted after `ttl_s`, with a fetch, and
when a daemon of the same journal starts again: only the process that parked them knows whose they are.

npcd:1:kv:{journal}:{number}  signature, length of the header, header, bytes
npcd:1:kv:{journal}           a set of the numbers that may be there
"""

from __future__ import annotations

import contextlib
import hmac
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from memory.recent_keys import key_of
from memory.redis_connection import BLOCKING, RecentSettings, connection_options, reason_of

AGAIN_S = 1.0
SLICE = 256  # numbers that are removed at once

Sign = Callable[[bytes, bytes, bytes], bytes]  # of a name, a header and bytes
Deliver = Callable[[int, bytes, bytes, str], None]  # a number's header and bytes, or what is wrong


@dataclass(frozen=True, slots=True)
class ParkedSettings:
    """KV that rests in Redis."""

    ttl_s: int = 3600
    """KV stays in Redis for this time at most."""
    queue_mib: int = 64
    """KV that may wait in process to be written to Redis."""


class Parked:
    """Keeps bytes by number. `deliver` is called on its thread, once for every fetch."""

    def __init__(self, settings: ParkedSettings, redis: RecentSettings, journal: str, sign: Sign) -> None:
        """Does not connect yet. Raises ConfigError when the settings are not enough to connect."""
        scheme, options = connection_options(redis)
        options["socket_timeout"] = redis.op_s
        self._class: Any = BLOCKING[scheme]
        self._options = options
        self._password: str = options.get("password", "")
        self._settings = settings
        self._sign = sign
        self._signature_bytes = len(sign(b"", b"", b""))
        self._all = key_of("kv", journal)
        self._connection: Any = None  # untyped there
        self._deliver: Deliver | None = None
        self._wake = threading.Condition()
        self._urgent: deque[int] = deque()  # numbers to fetch
        self._parking: dict[int, tuple[bytes, bytes]] = {}  # not in Redis yet, in order
        self._parking_bytes = 0
        self._dropping: deque[int] = deque()
        self._fences: deque[threading.Event] = deque()
        self._stopping = False
        self._again_s = 0.0
        self.away = "is not connected yet"
        self.failed = 0  # bytes that could not be written
        self._thread = threading.Thread(target=self._main, name="parked", daemon=True)

    def start(self, deliver: Deliver) -> None:
        """Begins to connect."""
        self._deliver = deliver
        self._thread.start()

    def park(self, number: int, header: bytes, payload: bytes) -> bool:
        """Takes bytes in; False while Redis is away, or when too much waits."""
        size = len(header) + len(payload)
        with self._wake:
            if self.away or self._parking_bytes + size > self._settings.queue_mib << 20:
                return False
            self._parking[number] = (header, payload)
            self._parking_bytes += size
            self._wake.notify()
        return True

    def fetch(self, number: int) -> None:
        """Fetches bytes, which are then removed from Redis."""
        with self._wake:
            self._urgent.append(number)
            self._wake.notify()

    def drop(self, number: int) -> None:
        """Removes bytes."""
        with self._wake:
            self._dropping.append(number)
            self._wake.notify()

    def settled(self, timeout_s: float) -> bool:
        """True if all earlier requests are done within this time. Blocks; not for the event loop."""
        fence = threading.Event()
        with self._wake:
            self._fences.append(fence)
            self._wake.notify()
        return fence.wait(timeout_s) and not self.away

    def stop(self, timeout_s: float) -> None:
        """Ends the thread; waiting requests are dropped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # -- on the thread -----------------------------------------------------------------------------------------

    def _main(self) -> None:
        while True:
            with self._wake:
                while not self._anything and not self._stopping:
                    self._wake.wait(AGAIN_S if self.away else None)
                if self._stopping:
                    break
            try:
                self._connect()
                self._work()
            except (RedisError, OSError) as error:
                self._gone(reason_of(error, self._password))
        if self._connection is not None:
            self._connection.disconnect()

    @property
    def _anything(self) -> bool:
        waiting = bool(self._urgent or self._parking or self._dropping or self._fences)
        return waiting or (bool(self.away) and time.monotonic() >= self._again_s)

    def _connect(self) -> None:
        """Connects again when that is due, and removes bytes of an earlier life. Raises when Redis is away."""
        if self._connection is not None:
            return
        if time.monotonic() < self._again_s:
            raise OSError(self.away)
        connection = self._class(**self._options)
        connection.connect()
        self._connection = connection
        if self.away:
            left = self._ask([("SMEMBERS", self._all)])[0]
            self._remove([int(n) for n in left])
            self.away = ""

    def _work(self) -> None:
        """Does one waiting request: fetches first, then removals, then bytes to keep."""
        if self._urgent:
            number = self._urgent.popleft()
            try:
                self._fetch(number)
            except (RedisError, OSError):
                self._answer(number, b"", b"", "away")
                raise
        elif self._dropping:
            numbers = [self._dropping.popleft() for _ in range(min(SLICE, len(self._dropping)))]
            for number in numbers:
                self._take(number)
            self._remove(numbers)
        elif self._parking:
            number = next(iter(self._parking))
            header, payload = self._parking[number]
            try:
                self._park(number, header, payload)
            except (RedisError, OSError):
                self.failed += 1
                raise
            finally:
                self._take(number)
        elif self._fences:
            self._fences.popleft().set()

    def _park(self, number: int, header: bytes, payload: bytes) -> None:
        name = self._name(number)
        value = b"".join((self._sign(name, header, payload), len(header).to_bytes(4, "little"), header, payload))
        ttl_ms = self._settings.ttl_s * 1000
        self._ask([("SET", name, value, "PX", ttl_ms), ("SADD", self._all, number), ("PEXPIRE", self._all, 2 * ttl_ms)])

    def _fetch(self, number: int) -> None:
        kept = self._take(number)
        if kept is not None:
            self._answer(number, *kept, "")
            return
        name = self._name(number)
        value, *_ = self._ask([("GET", name), ("DEL", name), ("SREM", self._all, number)])
        if value is None:
            self._answer(number, b"", b"", "gone")
            return
        at = self._signature_bytes
        length = int.from_bytes(value[at : at + 4], "little")
        header, payload = value[at + 4 : at + 4 + length], value[at + 4 + length :]
        ours = hmac.compare_digest(self._sign(name, header, payload), value[:at])
        self._answer(number, header, payload, "" if ours else "signature")

    def _take(self, number: int) -> tuple[bytes, bytes] | None:
        """Takes bytes that have not been written yet; they will not be."""
        with self._wake:
            kept = self._parking.pop(number, None)
            if kept is not None:
                self._parking_bytes -= len(kept[0]) + len(kept[1])
        return kept

    def _remove(self, numbers: Sequence[int]) -> None:
        for at in range(0, len(numbers), SLICE):
            part = numbers[at : at + SLICE]
            self._ask([("DEL", *map(self._name, part)), ("SREM", self._all, *part)])

    def _gone(self, why: str) -> None:
        """Redis is away: waiting requests are answered or lost, and it is not asked for a while."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.disconnect()
            self._connection = None
        self.away = why
        if time.monotonic() >= self._again_s:
            self._again_s = time.monotonic() + AGAIN_S
        with self._wake:
            self.failed += len(self._parking)
            self._parking.clear()
            self._parking_bytes = 0
            self._dropping.clear()  # all of it is removed when Redis is there again
            numbers, fences = list(self._urgent), list(self._fences)
            self._urgent.clear()
            self._fences.clear()
        for number in numbers:
            self._answer(number, b"", b"", "away")
        for fence in fences:
            fence.set()

    def _answer(self, number: int, header: bytes, payload: bytes, fault: str) -> None:
        assert self._deliver is not None, "started"
        self._deliver(number, header, payload, fault)

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        answers = [connection.read_response() for _ in commands]
        return answers

    def _name(self, number: int) -> bytes:
        return self._all + b":%d" % number

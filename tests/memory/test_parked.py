"""KV bytes in a real Redis come back unchanged or not at all, and no caller ever waits."""

import random
import threading
from collections.abc import Iterator

import pytest

from kvcache.verify import signer
from memory.parked import Parked, ParkedSettings
from memory.redis_connection import RecentSettings
from tests.memory.redis_fixture import RedisServer
from tests.patience import PATIENCE_S

KEY = b"k" * 32


class Store:
    """A Parked and its deliveries."""

    def __init__(self, server: RedisServer, key: bytes = KEY, **settings: int) -> None:
        self.answers: dict[int, tuple[bytes, bytes, str]] = {}
        self._answered = threading.Condition()
        redis = RecentSettings(url=server.url(), connect_s=PATIENCE_S, op_s=PATIENCE_S)
        self.parked = Parked(ParkedSettings(**settings), redis, "journal", signer(key))
        self.parked.start(self._deliver)
        assert self.parked.settled(PATIENCE_S)

    def fetched(self, number: int) -> tuple[bytes, bytes, str]:
        """The result of this number's fetch."""
        self.parked.fetch(number)
        with self._answered:
            assert self._answered.wait_for(lambda: number in self.answers, PATIENCE_S)
        return self.answers.pop(number)

    def _deliver(self, number: int, header: bytes, payload: bytes, fault: str) -> None:
        with self._answered:
            assert number not in self.answers, "a fetch is answered once"
            self.answers[number] = (header, payload, fault)
            self._answered.notify_all()


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Store]:
    """A store on an empty Redis."""
    store = Store(redis_server)
    yield store
    store.parked.stop(PATIENCE_S)


def names(server: RedisServer) -> list[bytes]:
    """All keys of parked bytes."""
    return sorted(server.execute("KEYS", "npcd:1:kv:*"))


def test_parked_bytes_come_back_once(store: Store, redis_server: RedisServer) -> None:
    """Bytes of any kind come back in any order, written or not yet. A second fetch finds nothing, and Redis is
    empty."""
    rng = random.Random(1)
    blobs = {n: (rng.randbytes(120), rng.randbytes(rng.randrange(200_000))) for n in range(1, 30)}
    for n, blob in blobs.items():
        assert store.parked.park(n, *blob)
        if n % 3 == 0:
            assert store.parked.settled(PATIENCE_S)
    for n in rng.sample(sorted(blobs), len(blobs)):
        assert store.fetched(n) == (*blobs[n], "")
        assert store.fetched(n) == (b"", b"", "gone")
    assert store.parked.settled(PATIENCE_S)
    assert names(redis_server) == []


def test_bytes_expire(store: Store, redis_server: RedisServer) -> None:
    """Bytes have a time to live, and expired ones are answered as gone."""
    store.parked.park(1, b"h", b"x" * 1000)
    assert store.parked.settled(PATIENCE_S)
    (name,) = [n for n in names(redis_server) if n.endswith(b":1")]
    assert 0 < redis_server.execute("PTTL", name) <= 3_600_000
    redis_server.execute("PEXPIRE", name, 0)
    assert store.fetched(1) == (b"", b"", "gone")


def test_dropped_is_gone_from_redis(store: Store, redis_server: RedisServer) -> None:
    """Bytes are dropped even before they were written; settled() comes afterwards."""
    for n in range(1, 6):
        store.parked.park(n, b"h", b"x" * 100_000)
        if n == 3:
            store.parked.settled(PATIENCE_S)
    for n in range(1, 6):
        store.parked.drop(n)
    assert store.parked.settled(PATIENCE_S)
    assert names(redis_server) == []


@pytest.mark.parametrize("at", [3, 40, -1])
def test_bytes_that_others_wrote_are_not_taken(store: Store, redis_server: RedisServer, at: int) -> None:
    """Bytes with one changed byte in signature, header or payload, bytes of another number, and truncated bytes are
    refused."""
    for n in (1, 2, 3):
        store.parked.park(n, b"header" * 10, b"x" * 1000)
    store.parked.settled(PATIENCE_S)
    one, two, three = (n for n in names(redis_server) if n.count(b":") == 4)
    value = bytearray(redis_server.execute("GET", one))
    value[at] ^= 1
    redis_server.execute("SET", two, redis_server.execute("GET", three))
    redis_server.execute("SET", three, redis_server.execute("GET", three)[:-1])
    redis_server.execute("SET", one, bytes(value))
    assert [store.fetched(n)[2] for n in (1, 2, 3)] == ["signature"] * 3


def test_another_life_has_another_key_and_begins_with_nothing(redis_server: RedisServer) -> None:
    """Bytes that an earlier daemon of the same journal left are removed, and bytes that it signs later are refused."""
    before = Store(redis_server)
    for n in range(1, 600):
        before.parked.park(n, b"h", b"x")
    before.parked.settled(PATIENCE_S)
    assert len(names(redis_server)) == 600
    after = Store(redis_server, b"l" * 32)
    assert names(redis_server) == []
    before.parked.park(7, b"h", b"x")
    before.parked.settled(PATIENCE_S)
    assert after.fetched(7)[2] == "signature"
    for store in (before, after):
        store.parked.stop(PATIENCE_S)


def test_the_queue_has_a_bound(redis_server: RedisServer) -> None:
    """When queue_mib wait to be written, more bytes are refused at once."""
    store = Store(redis_server, queue_mib=1)
    with redis_server.stopped():
        taken = [store.parked.park(n, b"h", b"x" * 300_000) for n in range(1, 9)]
    assert 3 <= sum(taken) <= 4
    store.parked.stop(PATIENCE_S)


def test_while_redis_is_away_everything_is_answered(own_redis: RedisServer) -> None:
    """While Redis is down, fetches say so and parking is refused. When it is back, it is used again."""
    store = Store(own_redis)
    store.parked.park(1, b"h", b"x")
    assert store.parked.settled(PATIENCE_S)
    own_redis.kill()
    assert store.fetched(1) == (b"", b"", "away")
    assert not store.parked.park(2, b"h", b"y")
    assert not store.parked.settled(PATIENCE_S)
    own_redis.start()
    while store.parked.away:
        store.parked.settled(PATIENCE_S)
    assert store.parked.park(3, b"h", b"z")
    assert store.fetched(3) == (b"h", b"z", "")
    assert store.fetched(1) == (b"", b"", "gone")
    store.parked.stop(PATIENCE_S)

"""Real servers for the tests of memory/."""

from tests.memory.disk_fixture import small_disk
from tests.memory.postgres_fixture import archive_database, empty_database, postgres
from tests.memory.redis_fixture import own_redis, redis_for_all, redis_server

__all__ = ["archive_database", "empty_database", "own_redis", "postgres", "redis_for_all", "redis_server", "small_disk"]

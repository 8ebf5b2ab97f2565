"""X3, Redis is tampered with: the users that are shipped can do their work and nothing else.

tests/contract/test_redis_users.py tries every command of theirs; this is the row's own attack.
"""

from __future__ import annotations

import pytest
from redis.exceptions import RedisError

from tests.chaos.conftest import Report
from tests.contract.test_redis_users import DOUBTS, SHARD, WRITING, Guarded, guarded

__all__ = ["guarded"]

BUCKET = SHARD.base + "b:0000"
ATTACKS: list[tuple[str, ...]] = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "SET", "dir", "/tmp"),  # noqa: S108 - it is to be refused
    ("KEYS", "*"),
    ("SHUTDOWN", "NOSAVE"),
    ("SAVE",),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("ACL", "SETUSER", "me", "on", "nopass", "+@all", "~*"),
    ("SET", "kvatlas:x", "1"),
    ("HSET", BUCKET, "000000000000", "1"),
    ("DEL", BUCKET),
    ("EVAL", WRITING, "1", BUCKET),
    ("GET", "other"),
    ("MONITOR",),
]


@pytest.mark.parametrize("user", ["router-read", "router-write"])
def test_x3_a_stolen_routers_login_changes_no_index(guarded: Guarded, user: str) -> None:
    """Neither user of routers writes the index, empties Redis, or reads what is not kvatlas'."""
    with guarded.server.client() as root:
        root.hset(BUCKET, "000000000000", "1")
        root.set("other", "secret")
    with guarded.client(user) as client:
        for attack in ATTACKS:
            with pytest.raises(RedisError):
                client.execute_command(*attack)
    with guarded.server.client() as root:
        assert root.hgetall(BUCKET) == {b"000000000000": b"1"}
        assert root.get("other") == b"secret"
    Report("X3", f"{len(ATTACKS)} attacks with the login {user}", "all refused by its ACL").tell()


def test_x3_nobody_comes_in_without_a_login(guarded: Guarded) -> None:
    """There is no default user, and doubts are all that a router may put into a shard."""
    stranger = guarded.server.client(username="default", password="")
    with stranger as client, pytest.raises(RedisError):
        client.ping()
    with guarded.client("router-write") as client:
        assert client.hset(DOUBTS, "127.0.0.1:1", "1") == 1

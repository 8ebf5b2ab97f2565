"""Connections to Redis with every option said, and its errors as ours.

redis-py's defaults wait for minutes and retry ten times; here each user of a client names the
time it has. No redis exception leaves through `script`, `guard` or `connect`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from importlib import resources
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable

RedisArg = str | bytes | int | float

_SERVER_WORDS: Final = (
    "BUSY", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM", "NOSCRIPT",
    "WRONGTYPE", "NOAUTH", "WRONGPASS", "NOPERM", "MISCONF",
)  # fmt: skip


def connect(url: str, *, timeout_s: float, connections_max: int) -> Redis:
    """Make a client that never waits longer than it is told and never retries by itself.

    Args:
        url: as redis-py reads it.
        timeout_s: for one reply, and for a free connection.
        connections_max: connections at most.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=limits.REDIS_CONNECT_S,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        decode_responses=False,
        client_name="kvatlas",
    )
    return Redis.from_pool(pool)


@contextmanager
def guard() -> Iterator[None]:
    """Turn what redis-py raises into IndexUnavailable with a reason from a closed set."""
    try:
        yield
    except (redis_errors.TimeoutError, TimeoutError) as error:
        raise IndexUnavailable("timeout") from error
    except redis_errors.MaxConnectionsError as error:
        raise IndexUnavailable("pool") from error
    except redis_errors.AuthenticationError as error:
        raise IndexUnavailable("auth") from error
    except (redis_errors.ConnectionError, OSError) as error:
        raise IndexUnavailable("connection") from error
    except redis_errors.RedisError as error:
        raise IndexUnavailable(_reason(error)) from error


def _reason(error: redis_errors.RedisError) -> str:
    text = f"{getattr(error, 'status_code', '') or ''} {error}".upper()
    for word in _SERVER_WORDS:
        if word in text:
            return word.lower()
    return type(error).__name__.lower()


@dataclass(slots=True)
class Script:
    """A Lua script of `common/lua`, called by its digest and loaded when Redis lacks it.

    Attributes:
        name: file name without `.lua`.
    """

    name: str
    source: str = field(init=False, repr=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        path = resources.files("kvatlas.common").joinpath("lua", f"{self.name}.lua")
        self.source = path.read_text(encoding="utf-8")
        # Redis names scripts by SHA-1; nothing is protected by it.
        self.digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Redis, keys: Sequence[str], args: Sequence[RedisArg]) -> Any:
        """Run the script.

        Raises:
            IndexUnavailable: Redis did not answer in time, or refused. Whether a script that
                writes ran is then unknown.
        """
        with guard():
            try:
                return await client.evalsha(self.digest, len(keys), *keys, *args)
            except redis_errors.NoScriptError:
                return await client.eval(self.source, len(keys), *keys, *args)

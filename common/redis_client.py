"""Clients of Redis, be it one server, a cluster or a master with sentinels; its errors as ours.

Each user of a client names the time it has. No redis exception leaves through `Script`, `guard`
or what asks servers here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import sha1
from importlib import resources
from typing import Any, Final, cast

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.redis_options import (
    Node,
    Options,
    address,
    connection_options,
    node_of,
    seeds,
    sentinel_options,
)
from kvatlas.common.redis_pipe import SharedRedis
from kvatlas.common.redis_routed import OneRedis, RoutedRedis
from kvatlas.common.redis_topology import ClusterTopology, SentinelTopology, Topology
from kvatlas.common.setting_sections import RedisSettings

RedisArg = str | bytes | int | float

_SERVER_WORDS: Final = (
    "BUSY", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM", "NOSCRIPT",
    "WRONGTYPE", "NOAUTH", "WRONGPASS", "NOPERM", "MISCONF", "MOVED",
)  # fmt: skip

LOGIN_REASONS: Final = frozenset({"auth", "noauth", "wrongpass", "noperm"})
"""Reasons that only an operator can mend: user, password or rights."""


def connect(
    where: str | RedisSettings,
    *,
    timeout_s: float,
    connections_max: int | None,
    reads_only: bool = False,
) -> OneRedis | RoutedRedis:
    """Make a client that never waits longer than it is told and never retries by itself.

    Args:
        where: the settings, or the URL of a single server.
        timeout_s: for one reply, and for a free connection.
        connections_max: connections to each server at most; None where all calls share one
            (`redis_pipe`), which takes plain commands and gives replies as Redis sent them.
        reads_only: nothing is written, so that replicas will do where the settings allow it.

    Raises:
        ConfigError: a file that the settings name cannot be read.
    """
    settings = RedisSettings(url=where) if isinstance(where, str) else where
    options = connection_options(settings, timeout_s=timeout_s)

    def make_one(**place: Any) -> OneRedis:
        if connections_max is None:
            return SharedRedis(ConnectionPool(**options, **place).make_connection, timeout_s)
        bounds: Options = {"max_connections": connections_max, "timeout": timeout_s}
        pool = BlockingConnectionPool(**options, **bounds, **place)
        return cast("OneRedis", OneRedis.from_pool(pool))

    if settings.mode == "single":
        return make_one(**address(settings))
    topology = _topology(settings, replicas=reads_only and settings.read_from_replicas)
    if settings.mode == "cluster" and topology.reads_replicas:
        options["redis_connect_func"] = _greet_replica

    def make(node: Node) -> Redis:
        return make_one(host=node[0], port=node[1])

    return RoutedRedis(topology, make)


def _topology(settings: RedisSettings, *, replicas: bool) -> Topology:
    if settings.mode == "cluster":
        options = connection_options(settings, timeout_s=limits.REDIS_CONNECT_S)
        return ClusterTopology(seeds(settings), options, replicas=replicas)
    sentinels = [node_of(text) for text in settings.sentinels]
    return SentinelTopology(
        sentinels, settings.sentinel_master, sentinel_options(settings), replicas=replicas
    )


async def _greet_replica(connection: Any) -> None:
    """Tell a node of a cluster that reads from its copy will do."""
    await connection.on_connect()
    await connection.send_command("READONLY")
    await connection.read_response()


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself.

    Attributes:
        run_id: of the process.
        history: of what it holds; it changes with every failover, also one that the same process
            comes back from.
        policy: by which it drops keys when it is full.
        evicted: keys that it has dropped since it began.
    """

    run_id: str
    history: str
    policy: str
    evicted: int

    @property
    def life(self) -> tuple[str, str]:
        """Name its life: another one means that acknowledged writes may be lost."""
        return self.run_id, self.history


async def ask_servers(
    client: OneRedis | RoutedRedis, keys: Sequence[str]
) -> dict[str, ServerFacts]:
    """Ask, for each key, the server that serves it; each server once.

    Raises:
        IndexUnavailable: a server did not answer.
    """
    with guard():
        servers = {key: await client.node_for(key) for key in keys}
        asked = list(set(servers.values()))
        # All end before the first failure is told, so that none is under way behind its back.
        answers = await asyncio.gather(*map(_facts, asked), return_exceptions=True)
        found: list[ServerFacts] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
    by_server = dict(zip(asked, found, strict=True))
    return {key: by_server[server] for key, server in servers.items()}


async def _facts(server: Redis) -> ServerFacts:
    info = await server.info()
    return ServerFacts(
        str(info["run_id"]),
        str(info["master_replid"]),
        str(info["maxmemory_policy"]),
        int(info["evicted_keys"]),
    )


def flat(fields: Mapping[Any, RedisArg]) -> list[RedisArg]:
    """Write fields and values one behind the other, as scripts take them."""
    return [part for pair in fields.items() for part in pair]


class _Guard:
    """A context without a state, so that one serves all: a generator would be made per call."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        del kind, trace
        if isinstance(error, (redis_errors.RedisError, OSError)):
            raise IndexUnavailable(_reason(error)) from error


_GUARD: Final = _Guard()


def guard() -> AbstractContextManager[None]:
    """Turn what redis-py raises into IndexUnavailable with a reason from a closed set."""
    return _GUARD


def _reason(error: redis_errors.RedisError | OSError) -> str:
    """Say why; a TimeoutError of Python's own is an OSError."""
    if isinstance(error, (redis_errors.TimeoutError, TimeoutError)):
        return "timeout"
    if isinstance(error, redis_errors.MaxConnectionsError):
        return "pool"
    if isinstance(error, redis_errors.AuthenticationError):
        return "auth"
    if isinstance(error, (redis_errors.ConnectionError, OSError)):
        # A login that is refused while a connection is made arrives wrapped.
        refused = isinstance(error.__cause__, redis_errors.AuthenticationError)
        return "auth" if refused else "connection"
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
        reads_only: it writes nothing. It is then called in the form that a user without the
            right to write may call, where the server knows it (Redis 7.0).
    """

    name: str
    reads_only: bool = False
    source: str = field(init=False, repr=False)
    digest: str = field(init=False)
    _suffix: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        path = resources.files("kvatlas.common").joinpath("lua", f"{self.name}.lua")
        self.source = path.read_text(encoding="utf-8")
        # Redis names scripts by SHA-1; nothing is protected by it.
        self.digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self._suffix = "_RO" if self.reads_only else ""

    async def run(self, client: Redis, keys: Sequence[str], args: Sequence[RedisArg]) -> Any:
        """Run the script.

        Raises:
            IndexUnavailable: Redis did not answer in time, or refused. Whether a script that
                writes ran is then unknown.
        """
        command = (len(keys), *keys, *args)
        suffix = self._suffix
        with guard():
            try:
                return await self._call(client, suffix, command)
            except redis_errors.ResponseError as error:
                if not (self.reads_only and _is_other_form(error)):
                    raise
            other = self._suffix = "" if suffix else "_RO"
            return await self._call(client, other, command)

    async def _call(self, client: Redis, suffix: str, command: tuple[RedisArg, ...]) -> Any:
        run: Callable[..., Awaitable[Any]] = client.execute_command
        try:
            return await run(f"EVALSHA{suffix}", self.digest, *command)
        except redis_errors.NoScriptError:
            return await run(f"EVAL{suffix}", self.source, *command)


def _is_other_form(error: redis_errors.ResponseError) -> bool:
    """Tell whether the server lacks, or does not let us use, this form of calling a script."""
    text = str(error).lower()
    return "unknown command" in text or "no permissions to run the 'eval" in text

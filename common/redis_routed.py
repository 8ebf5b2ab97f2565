"""A Redis client that sends each command to the server that serves its key.

redis-py has one of its own for clusters (RedisCluster, 8.1). It is not used: its search for the
nodes ends with the deadline of the command that began it, so that lookups of 20 ms may never
find a new master; it sends ASKING and the command after it on different connections; and it
sleeps and tries again by itself, up to sixteen times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.redis_options import Node
from kvatlas.common.redis_topology import Key, Topology

_SCRIPT_COMMANDS = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})
_KEYLESS_COMMANDS = frozenset({"PING", "INFO", "TIME", "SCRIPT LOAD", "CONFIG GET"})
_ASTRAY_WORDS = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "LOADING")
"""Words of a server that is not, or not yet, what it was taken for."""


def key_of(command: tuple[Any, ...]) -> Key | None:
    """Find the key that says where a command belongs; our commands name keys of one slot."""
    name = str(command[0]).upper()
    if name == "XREAD":
        stream: Key = command[command.index("STREAMS") + 1]
        return stream
    if name in _SCRIPT_COMMANDS:
        return command[3] if int(command[2]) else None
    return None if name in _KEYLESS_COMMANDS or len(command) < 2 else command[1]


def is_astray(error: redis_errors.RedisError) -> bool:
    """Tell whether another server should be asked next time."""
    text = f"{getattr(error, 'status_code', '') or ''} {error}"
    return any(word in text for word in _ASTRAY_WORDS)


class OneRedis(Redis):
    """A client of one address, which may come to mean another server."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command; a server that has become a replica is left."""
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except redis_errors.ResponseError as error:
            if is_astray(error):
                await self.connection_pool.disconnect(inuse_connections=False)
            raise

    async def node_for(self, key: Key) -> Redis:
        """Give the client of the server that serves a key."""
        del key
        return self


class RoutedRedis(Redis):
    """A client of many servers.

    Redirections are followed, since a command that is redirected has not been run. Everything
    else is told to the caller, and makes the topology look anew.

    Args:
        topology: says which server serves a key.
        make: makes the client of one server.
    """

    def __init__(self, topology: Topology, make: Callable[[Node], Redis]) -> None:
        super().__init__(connection_pool=NoPool())
        self._topology = topology
        self._make = make
        self._clients: dict[Node, Redis] = {}
        self._parting: list[tuple[float, Redis]] = []
        self._is_closed = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command where its key is."""
        node = await self._topology.locate(key_of(args))
        asking = False
        for _ in range(limits.REDIS_REDIRECTS_MAX + 1):
            try:
                return await self._run(node, args, options, asking=asking)
            except redis_errors.MovedError as error:
                node, asking = (error.host or node[0], error.port), False
                self._topology.moved(error.slot_id, node)
            except redis_errors.AskError as error:
                node, asking = (error.host or node[0], error.port), True
        raise redis_errors.TryAgainError("redirected too often", status_code="TRYAGAIN")

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - redis-py's
        """Collect commands; each server gets its own in one round trip."""
        if transaction or shard_hint:
            raise ValueError("a transaction cannot span servers")
        return _RoutedPipeline(self)

    async def node_for(self, key: Key) -> Redis:
        """Give the client of the server that serves a key."""
        return await self._client(await self._topology.locate(key))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's
        """Close all connections."""
        del close_connection_pool
        self._is_closed = True
        await self._topology.aclose()
        clients = [*self._clients.values(), *(client for _, client in self._parting)]
        await asyncio.gather(*(client.aclose() for client in clients))

    async def run_parts(
        self, stack: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    ) -> list[Any]:
        """Run commands, those of one server in one round trip; give replies or errors in order."""
        parts: dict[Node, list[int]] = {}
        for number, (args, _) in enumerate(stack):
            parts.setdefault(await self._topology.locate(key_of(args)), []).append(number)
        replies: list[Any] = [None] * len(stack)

        async def run_part(node: Node, numbers: list[int]) -> None:
            pipe = (await self._client(node)).pipeline(transaction=False)
            for number in numbers:
                args, options = stack[number]
                pipe.execute_command(*args, **options)
            found = await self._watched(node, pipe.execute(raise_on_error=False))
            for number, reply in zip(numbers, found, strict=True):
                redirected = isinstance(reply, redis_errors.AskError)
                args, options = stack[number]
                # A redirected command has not been run.
                replies[number] = (
                    await self.execute_command(*args, **options) if redirected else reply
                )

        await asyncio.gather(*(run_part(node, numbers) for node, numbers in parts.items()))
        return replies

    async def _run(
        self, node: Node, args: tuple[Any, ...], options: Mapping[str, Any], *, asking: bool
    ) -> Any:
        client = await self._client(node)
        if not asking:
            reply = client.execute_command(*args, **options)  # type: ignore[no-untyped-call]
            return await self._watched(node, reply)
        # ASKING holds for the next command of its connection.
        pipe = client.pipeline(transaction=False)
        pipe.execute_command("ASKING")
        pipe.execute_command(*args, **options)
        _, reply = await self._watched(node, pipe.execute(raise_on_error=False))
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _watched(self, node: Node, reply: Any) -> Any:
        """Wait for a reply; whatever speaks against the server is told to the topology."""
        try:
            return await reply
        except (
            redis_errors.ConnectionError,
            redis_errors.TimeoutError,
            OSError,
            # A lookup that is over its time is cancelled, also when the server is frozen.
            asyncio.CancelledError,
        ):
            self._topology.suspect(node)
            raise
        except redis_errors.ResponseError as error:
            if is_astray(error):
                self._topology.suspect(node)
            raise

    async def _client(self, node: Node) -> Redis:
        if self._is_closed:
            raise redis_errors.ConnectionError("the client is closed")
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = self._make(node)
            await self._part({node, *self._topology.nodes()})
        return client

    async def _part(self, known: set[Node]) -> None:
        """Part with servers that are no longer there, after the last call to them has ended."""
        now = monotonic()
        gone = self._clients.keys() - known
        self._parting += [(now, self._clients.pop(node)) for node in gone]
        over = [client for since, client in self._parting if now - since > limits.REDIS_PARTING_S]
        self._parting = [one for one in self._parting if one[1] not in over]
        await asyncio.gather(*(client.aclose() for client in over), return_exceptions=True)


class _RoutedPipeline(Pipeline):
    """Commands for several servers, without a transaction."""

    def __init__(self, routed: RoutedRedis) -> None:
        super().__init__(
            routed.connection_pool, routed.response_callbacks, transaction=False, shard_hint=None
        )
        self._routed = routed

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's
        """Run what was collected."""
        stack, self.command_stack = self.command_stack, []
        replies = await self._routed.run_parts(stack)
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies


class NoPool(ConnectionPool):
    """Stands where redis-py wants a pool; every server has its own."""

    async def get_connection(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse: a command came this way that cannot."""
        raise NotImplementedError("not a command that can be routed")

"""Which Redis server serves which key: of a cluster by hash slot, with sentinels the master.

It is asked when it is first needed, after a failure, after a redirection and now and then; never
more often than every TOPOLOGY_PAUSE_S, and in a task of its own, so that the deadline of a
lookup does not end the question. Until there is an answer, commands go where they last went.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from redis import exceptions as redis_errors
from redis.asyncio import Connection
from redis.asyncio.sentinel import Sentinel
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.log import logger
from kvatlas.common.redis_options import Node, Options

_LOG = logger("redis")

T = TypeVar("T")
Key = str | bytes


class Topology(ABC):
    """Where commands go.

    Args:
        replicas: reads go to replicas, each process keeping to one of each master's.
    """

    def __init__(self, *, replicas: bool) -> None:
        self._replicas = replicas
        self._salt = secrets.randbits(64)
        self._suspects: dict[Node, float] = {}
        self._asking: asyncio.Task[None] | None = None
        self._is_closed = False
        self._asked_at = float("-inf")
        self._known_at = float("-inf")

    @property
    def reads_replicas(self) -> bool:
        """Tell whether reads go to replicas."""
        return self._replicas

    async def locate(self, key: Key | None) -> Node:
        """Name the server to ask for a key, or any server when there is no key.

        Raises:
            RedisError, OSError: no server says who serves what.
        """
        now = monotonic()
        if now - self._known_at > limits.TOPOLOGY_AGE_MAX_S:
            self.ask()
        if not self.nodes():
            await self.known()
        master = self._master(key)
        return self._replica_of(master, now) if self._replicas else master

    async def known(self) -> None:
        """Wait for an answer; whoever stops waiting ends nothing."""
        self.ask()
        if self._asking is None:
            raise redis_errors.ConnectionError("closed")
        await asyncio.shield(self._asking)

    def ask(self) -> None:
        """Find out anew, in the background."""
        if self._asking is None and not self._is_closed:
            self._asking = asyncio.create_task(self._ask(), name="redis topology")
            self._asking.add_done_callback(self._note)

    def suspect(self, node: Node) -> None:
        """Note that a server failed, or is not what it was taken for."""
        self._suspects[node] = monotonic() + limits.REPLICA_AVOID_S
        self.ask()

    def moved(self, slot: int, node: Node) -> None:
        """Note what a redirection said."""
        del slot, node
        self.ask()

    async def aclose(self) -> None:
        """Stop asking."""
        self._is_closed = True
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    @abstractmethod
    def nodes(self) -> Iterable[Node]:
        """List the servers that are known."""

    @abstractmethod
    def _master(self, key: Key | None) -> Node:
        """Name the master that serves a key."""

    @abstractmethod
    def _replicas_of(self, master: Node) -> Sequence[Node]:
        """List the replicas of a master."""

    @abstractmethod
    async def _discover(self) -> None:
        """Ask who serves what, and keep the answer."""

    def _replica_of(self, master: Node, now: float) -> Node:
        """Choose a replica: always the same one, another process perhaps another."""
        well = [one for one in self._replicas_of(master) if self._suspects.get(one, 0.0) <= now]
        return min(well, key=lambda node: hash((self._salt, node)), default=master)

    async def _ask(self) -> None:
        await asyncio.sleep(max(0.0, self._asked_at + limits.TOPOLOGY_PAUSE_S - monotonic()))
        self._asked_at = monotonic()
        await self._discover()
        now = self._known_at = monotonic()
        self._suspects = {node: until for node, until in self._suspects.items() if until > now}

    def _note(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.warning("topology.unknown", error=type(error).__name__)


class ClusterTopology(Topology):
    """The hash slots of a Redis Cluster.

    Args:
        seeds: nodes that the configuration names; asked when the known ones do not answer.
        options: of a connection.
        replicas: as for Topology.
    """

    def __init__(self, seeds: Sequence[Node], options: Options, *, replicas: bool) -> None:
        super().__init__(replicas=replicas)
        self._seeds = seeds
        self._options = options
        self._slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._groups: dict[Node, tuple[Node, ...]] = {}

    def nodes(self) -> Iterable[Node]:
        """List masters and their replicas."""
        return [node for master, others in self._groups.items() for node in (master, *others)]

    def moved(self, slot: int, node: Node) -> None:
        """Send what follows to where the slot has gone."""
        self._slots[slot] = node
        self.ask()

    def _master(self, key: Key | None) -> Node:
        if key is None:
            return next(iter(self._groups))
        node = self._slots[key_slot(key.encode() if isinstance(key, str) else key)]
        if node is None:
            self.ask()
            raise redis_errors.ClusterDownError("slot not served", status_code="CLUSTERDOWN")
        return node

    def _replicas_of(self, master: Node) -> Sequence[Node]:
        return self._groups.get(master, ())

    async def _discover(self) -> None:
        well = [node for node in self.nodes() if node not in self._suspects]
        asked = dict.fromkeys([*well, *self._seeds, *self.nodes()])
        found = await first_answer(self._cluster_slots, list(asked)[: limits.REDIS_NODES_MAX])
        slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        groups: dict[Node, tuple[Node, ...]] = {}
        for first, last, master, *others in found:
            slots[first : last + 1] = [master] * (last + 1 - first)
            groups[master] = tuple(others)
        self._slots, self._groups = slots, groups

    async def _cluster_slots(self, node: Node) -> list[tuple[Any, ...]]:
        """Ask one node; it names itself without a host when it does not know its own."""
        host, port = node
        options = {"connection_class": Connection, **self._options, "host": host, "port": port}
        connection = options.pop("connection_class")(**options)
        try:
            await connection.connect()
            await connection.send_command("CLUSTER", "SLOTS")
            found = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        ranges = [
            (first, last, *((_host(name) or host, number) for name, number, *_ in servers))
            for first, last, *servers in found
        ]
        if not ranges:
            raise redis_errors.ClusterDownError("no slot is served", status_code="CLUSTERDOWN")
        return ranges


class SentinelTopology(Topology):
    """The master that sentinels name, and its replicas.

    Args:
        sentinels: their addresses.
        name: of the master, as the sentinels know it.
        options: of a connection to a sentinel.
        replicas: as for Topology.
    """

    def __init__(
        self, sentinels: Sequence[Node], name: str, options: Options, *, replicas: bool
    ) -> None:
        super().__init__(replicas=replicas)
        self._name = name
        self._sentinel = Sentinel(sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._found: Node | None = None
        self._others: Sequence[Node] = ()

    def nodes(self) -> Iterable[Node]:
        """List the master and its replicas."""
        return [] if self._found is None else [self._found, *self._others]

    async def aclose(self) -> None:
        """Stop asking."""
        await super().aclose()
        await self._sentinel.aclose()

    def _master(self, key: Key | None) -> Node:
        del key
        assert self._found is not None  # noqa: S101 - `locate` has waited for it
        return self._found

    def _replicas_of(self, master: Node) -> Sequence[Node]:
        del master
        return self._others

    async def _discover(self) -> None:
        found = await self._sentinel.discover_master(self._name)
        if self._replicas:
            replicas = await self._sentinel.discover_slaves(self._name)
            self._others = [(str(host), int(port)) for host, port in replicas]
        self._found = (_host(found[0]), int(found[1]))


async def first_answer(ask: Callable[[Node], Awaitable[T]], nodes: Sequence[Node]) -> T:
    """Ask one server after the other until one answers.

    The next one is asked when those before have failed, or have let TOPOLOGY_ASK_S pass.

    Raises:
        RedisError, OSError: the last failure, when all fail.
    """
    waiting = deque(nodes)
    asked: set[asyncio.Task[T]] = set()
    failure: BaseException = redis_errors.ConnectionError("no server is known")
    try:
        while waiting or asked:
            if waiting:
                asked.add(asyncio.ensure_future(ask(waiting.popleft())))
            patience = limits.TOPOLOGY_ASK_S if waiting else None
            done, asked = await asyncio.wait(
                asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            answers = [task for task in done if task.exception() is None]
            if answers:
                return answers[0].result()
            failure = next((error for task in done if (error := task.exception())), failure)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    raise failure


def _host(name: bytes | str | None) -> str:
    """Read a host; a server that does not know its own says nothing, or "?"."""
    text = name.decode() if isinstance(name, bytes) else name or ""
    return "" if text == "?" else text

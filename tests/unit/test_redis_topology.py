"""Which server serves which key, and how that is found out. No Redis needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest
from redis import exceptions as redis_errors

from kvatlas.common import limits
from kvatlas.common.redis_options import Node, node_of
from kvatlas.common.redis_routed import is_astray, key_of
from kvatlas.common.redis_topology import Key, Topology, first_answer

A, B, C = ("a", 1), ("b", 2), ("c", 3)


class Told(Topology):
    """A topology that finds what it is told.

    Attributes:
        asked: times that it was looked for.
    """

    def __init__(self, *, replicas: bool = False) -> None:
        super().__init__(replicas=replicas)
        self.asked = 0
        self.failing = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.found: Node | None = None

    def nodes(self) -> Iterable[Node]:
        """List what was found."""
        return [self.found] if self.found else []

    def _master(self, key: Key | None) -> Node:
        del key
        assert self.found is not None
        return self.found

    def _replicas_of(self, master: Node) -> Sequence[Node]:
        del master
        return [B, C]

    async def _discover(self) -> None:
        self.asked += 1
        await self.gate.wait()
        if self.failing:
            raise redis_errors.ConnectionError("no")
        self.found = A


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause for a moment only."""
    monkeypatch.setattr(limits, "TOPOLOGY_PAUSE_S", 0.05)


async def test_a_deadline_does_not_end_the_search() -> None:
    """Who stops waiting leaves the search running, and the next one profits."""
    topology = Told()
    topology.gate.clear()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(topology.locate("k"), 0.01)
    topology.gate.set()
    assert await topology.locate("k") == A
    assert topology.asked == 1
    await topology.aclose()


async def test_failures_make_it_look_anew_but_not_often() -> None:
    """A thousand failing commands are one question in each pause."""
    topology = Told()
    await topology.locate("k")
    for _ in range(1_000):
        topology.suspect(A)
    await asyncio.sleep(0.12)
    assert topology.asked == 2
    await topology.aclose()


async def test_a_failed_search_keeps_what_was_known() -> None:
    """Commands go where they last went until there is an answer."""
    topology = Told()
    await topology.locate("k")
    topology.failing = True
    topology.suspect(A)
    await asyncio.sleep(0.12)
    assert await topology.locate("k") == A
    await topology.aclose()


async def test_nobody_waits_for_a_closed_one() -> None:
    """After the end nothing is looked for any more."""
    topology = Told()
    await topology.aclose()
    with pytest.raises(redis_errors.ConnectionError):
        await topology.locate("k")
    assert topology.asked == 0


async def test_a_process_keeps_to_one_replica_until_it_fails() -> None:
    """Then it takes the other one, and the master when none is left."""
    topology = Told(replicas=True)
    first = await topology.locate("k")
    assert {await topology.locate("k") for _ in range(20)} == {first}
    topology.suspect(first)
    second = await topology.locate("k")
    assert {first, second} == {B, C}
    topology.suspect(second)
    assert await topology.locate("k") == A
    await topology.aclose()


async def test_the_next_is_asked_when_one_is_silent() -> None:
    """A server that neither answers nor refuses costs TOPOLOGY_ASK_S, and is not waited for."""

    async def ask(node: Node) -> str:
        if node == A:
            await asyncio.sleep(60)
        return node[0]

    async with asyncio.timeout(5):
        assert await first_answer(ask, [A, B]) == "b"


async def test_all_failing_is_a_failure() -> None:
    """The last failure is told."""

    async def ask(node: Node) -> str:
        raise OSError(node[0])

    with pytest.raises(OSError, match="b"):
        await first_answer(ask, [A, B])
    with pytest.raises(redis_errors.ConnectionError):
        await first_answer(ask, [])


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("EVALSHA", "digest", 2, "k", "l", "argument"), "k"),
        (("EVALSHA_RO", "digest", 1, "k"), "k"),
        (("EVAL", "return 1", 0), None),
        (("PING",), None),
        (("INFO", "server"), None),
        (("HSET", b"k", "a", "b"), b"k"),
    ],
)
def test_the_key_of_a_command(command: tuple[object, ...], key: Key | None) -> None:
    """Scripts name theirs behind the count of them."""
    assert key_of(command) == key


@pytest.mark.parametrize(
    ("error", "astray"),
    [
        (redis_errors.ReadOnlyError("You can't write", status_code="READONLY"), True),
        (redis_errors.ResponseError("Error running script: -READONLY You can't write"), True),
        (redis_errors.ResponseError("WRONGTYPE Operation against a key"), False),
    ],
)
def test_which_answers_mean_another_server(error: redis_errors.RedisError, *, astray: bool) -> None:
    """Redis 6.2 wraps what a script ran into."""
    assert is_astray(error) == astray


def test_addresses() -> None:
    """An IPv6 address stands in brackets."""
    assert node_of("redis-0.redis:6379") == ("redis-0.redis", 6379)
    assert node_of("[::1]:7000") == ("::1", 7000)

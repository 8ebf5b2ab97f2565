"""How lookups and memory grow with endpoints, with blocks, and with lookups at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import uvloop

from bench.index.fleet import Fleet, running_fleet
from bench.index.lookups import draw, nested, speed
from bench.index.machine import BenchError, cpu_s, resident_bytes
from bench.index.memory import PROMPT_BLOCKS, spread

LENGTH = 640
ENDPOINTS = (8, 64, 256, 512, 1_024)
BLOCKS = (10_000, 100_000, 1_000_000)
MANY_BLOCKS = 10_000_000
AT_ONCE = (1, 4, 16, 64, 256)
OTHERS = 131_072
ENGINES = 64
PROMPTS = 4


def endpoints(numbers: Sequence[int]) -> dict[str, Any]:
    """Let every endpoint hold the beginning of the prompts, three of them nearly all."""
    return {str(number): _or_why(_with_endpoints, number) for number in numbers}


def _with_endpoints(number: int) -> dict[str, Any]:
    with running_fleet(number) as fleet:
        fleet.fill(spread(number, max(OTHERS, number * PROMPT_BLOCKS), seed=1))
        return _at(fleet)


def blocks(numbers: Sequence[int]) -> dict[str, Any]:
    """Look up beside so many other blocks."""
    return {str(number): _or_why(_with_blocks, number) for number in numbers}


def _with_blocks(number: int) -> dict[str, Any]:
    with running_fleet(ENGINES) as fleet:
        redis, process = fleet.used_bytes(), resident_bytes(fleet.indexer.pid)
        fleet.fill(spread(ENGINES, number, seed=1))
        redis = fleet.used_bytes() - redis
        process = resident_bytes(fleet.indexer.pid) - process
        return {"redis_mb": redis / 1e6, "indexer_mb": process / 1e6, **_at(fleet)}


def _at(fleet: Fleet) -> dict[str, Any]:
    asked = draw(LENGTH, seed=21, prompts=PROMPTS)
    fleet.fill(nested(asked, len(fleet.names)))
    figures = uvloop.run(speed(fleet.redis.url, asked, [16]))
    figures["longest_value_bytes"] = _longest_value(fleet, asked.chains[0][0])
    return figures


def _longest_value(fleet: Fleet, block: int) -> int:
    text = f"{block:016x}"
    pattern = f"kvatlas:*}}:b:{text[:4]}"
    for key in fleet.client.scan_iter(match=pattern, count=10_000):
        return int(fleet.client.hstrlen(key, text[4:]))
    return 0


def lookups_at_once(fleet: Fleet) -> dict[str, Any]:
    """Ask more and more at once."""
    asked = draw(LENGTH, seed=22, prompts=PROMPTS)
    fleet.fill(nested(asked, len(fleet.names)))
    figures = {}
    for number in AT_ONCE:
        before = cpu_s(fleet.redis.pid)
        found = uvloop.run(speed(fleet.redis.url, asked, [number]))
        used = cpu_s(fleet.redis.pid) - before
        figures[str(number)] = {"per_s": found[f"per_s_at_{number}"], "redis_cpu_s": used}
    return figures


def _or_why(measure: Any, number: int) -> dict[str, Any]:
    """Measure, or tell why it cannot be done: where the product ends is a result."""
    try:
        found: dict[str, Any] = measure(number)
    except BenchError as error:
        return {"not_measured": _reason(str(error))}
    return found


def _reason(text: str) -> str:
    """Shorten the end of a log to the error that it tells of."""
    errors = re.findall(r'"exc_value": "([^"]+)"', text)
    return errors[-1] if errors else text[-120:]

"""How fast one indexer process takes events in, from ZMQ to what readers see in Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bench.index.events import EVENT_BLOCKS, MODEL, Prompt, PromptSource, removed, stamped
from bench.index.fleet import Fleet, running_fleet
from bench.index.machine import Deadline, Others, check_alive, cpu_s
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.decode import decode

ENGINES = 8
PROMPT_BLOCKS = 256
RESIDENT_BLOCKS = 20_000
"""Blocks per engine that stay while one-block events store the next and remove the oldest."""
POLL_S = 0.002
LAG_S = 8.0
DRAIN_S = 60.0
STAGE_EVENTS = 4_000

Work = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Load:
    """Batches of one event, dealt to the engines by turns."""

    name: str
    blocks_per_event: int
    before: Work
    work: Work


def many_blocks(events: int) -> Load:
    """Store prompts, 32 blocks per event."""
    source = PromptSource(seed=2)
    per_prompt = PROMPT_BLOCKS // EVENT_BLOCKS
    lanes = []
    for _ in range(ENGINES):
        prompts = (source.draw(PROMPT_BLOCKS) for _ in range(events // ENGINES // per_prompt))
        lanes.append([body for prompt in prompts for body in prompt.stores(prompt.blocks)])
    return Load("stores of 32 blocks", EVENT_BLOCKS, [], _deal(lanes))


def one_block(events: int) -> Load:
    """Store a block, remove the oldest one, and so on."""
    source = PromptSource(seed=3)
    before, lanes = [], []
    for _ in range(ENGINES):
        resident = [source.draw(PROMPT_BLOCKS) for _ in range(RESIDENT_BLOCKS // PROMPT_BLOCKS)]
        before.append([body for prompt in resident for body in prompt.stores(prompt.blocks)])
        lanes.append(list(islice(_turnover(source, resident), events // ENGINES)))
    return Load("one-block stores and removes", 1, _deal(before), _deal(lanes))


def _turnover(source: PromptSource, resident: list[Prompt]) -> Iterator[bytes]:
    queue = list(resident)
    for number in range(10**9):
        prompt = source.draw(PROMPT_BLOCKS)
        queue.append(prompt)
        # An engine frees the tail of a chain before its head.
        oldest = reversed(queue[number].engine_hashes)
        for body, engine_hash in zip(prompt.stores(PROMPT_BLOCKS, step=1), oldest, strict=True):
            yield body
            yield removed([engine_hash])


def _deal(lanes: list[list[bytes]]) -> Work:
    return [(engine, body) for bodies in zip(*lanes, strict=True)
            for engine, body in enumerate(bodies)]  # fmt: skip


def capacity(load: Load) -> dict[str, Any]:
    """Send everything at once and see how long the index takes."""
    with running_fleet(ENGINES) as fleet:
        fleet.fill(load.before)
        cpu = [cpu_s(fleet.indexer.pid), cpu_s(fleet.redis.pid)]
        begun = time.perf_counter()
        for engine, body in load.work:
            fleet.send(engine, body)
        sent_s = time.perf_counter() - begun
        fleet.settle()
        took = time.perf_counter() - begun
        after = [cpu_s(fleet.indexer.pid), cpu_s(fleet.redis.pid)]
        events = len(load.work)
        used_us = [(b - a) / events * 1e6 for a, b in zip(cpu, after, strict=True)]
        return {
            "events": events,
            "events_per_s": events / took,
            "blocks_per_s": events * load.blocks_per_event / took,
            "sending_s": sent_s,
            "took_s": took,
            "indexer_cpu_us_per_event": used_us[0],
            "redis_cpu_us_per_event": used_us[1],
            "faults": fleet.faults(),
        }


def lag(load: Load, events_per_s: float) -> dict[str, Any]:
    """Send at a steady rate and see when each event is visible, looking every 2 ms."""
    work = load.work[: int(events_per_s * LAG_S)]
    with running_fleet(ENGINES) as fleet:
        fleet.fill(load.before)
        first = list(fleet.sent)
        lags = _paced(fleet, work, events_per_s)
        faults = fleet.faults()
    lags.sort()
    return {
        "events_per_s": events_per_s,
        "events": len(work),
        "events_seen": len(lags),
        "batches_before": sum(first),
        "p50_ms": lags[len(lags) // 2] * 1e3,
        "p99_ms": lags[len(lags) * 99 // 100] * 1e3,
        "max_ms": lags[-1] * 1e3,
        "faults": faults,
    }


def _paced(fleet: Fleet, work: Work, events_per_s: float) -> list[float]:
    stamps: list[list[float]] = [[] for _ in range(ENGINES)]
    base, seen = list(fleet.sent), [0] * ENGINES
    lags: list[float] = []
    deadline = Deadline(LAG_S + DRAIN_S, "the index did not follow half of its capacity")
    begun, at = time.perf_counter(), 0
    while sum(seen) < len(work):
        due = min(len(work), int((time.perf_counter() - begun) * events_per_s))
        for engine, body in work[at:due]:
            stamp = time.time()
            stamps[engine].append(stamp)
            fleet.send(engine, body, stamp)
        at = due
        applied, now = fleet.applied(), time.time()
        for engine, count in enumerate(applied):
            new = max(0, count - base[engine])
            lags += [now - stamp for stamp in stamps[engine][seen[engine] : new]]
            seen[engine] = max(seen[engine], new)
        deadline.check()
        check_alive(fleet.indexer, fleet.log)
        time.sleep(POLL_S)
    return lags


def stages(load: Load) -> dict[str, float]:
    """Time decoding and applying alone, in this process: microseconds per event."""
    caches = [EndpointCache(MODEL) for _ in range(ENGINES)]
    for engine, body in load.before:
        caches[engine].apply(decode(stamped(body, 0.0)))
    work = load.work[:STAGE_EVENTS]
    payloads = [(engine, stamped(body, 0.0)) for engine, body in work]
    begun = time.perf_counter()
    batches = [(engine, decode(payload)) for engine, payload in payloads]
    decoded = time.perf_counter()
    for engine, batch in batches:
        caches[engine].apply(batch)
    applied = time.perf_counter()
    return {
        "decode_us": (decoded - begun) / len(work) * 1e6,
        "apply_us": (applied - decoded) / len(work) * 1e6,
    }


def measure(scale: float) -> dict[str, Any]:
    """Measure both kinds of events."""
    figures, others = {}, Others()
    for load in (many_blocks(int(32_768 * scale)), one_block(int(163_840 * scale))):
        others.cores()
        most = capacity(load)
        most["others_cores"] = others.cores()
        behind = lag(load, most["events_per_s"] / 2)
        behind["others_cores"] = others.cores()
        figures[load.name] = {"capacity": most, "lag": behind, "stages": stages(load)}
    return figures

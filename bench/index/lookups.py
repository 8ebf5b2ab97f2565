"""How long lookups take, one at a time and many at once, and how right they are."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from bench.index.events import Prompt, PromptSource, removed
from bench.index.fleet import SHARD, Fleet
from bench.index.machine import cpu_s
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.router.lookup import BlockIndex

LENGTHS = (64, 640, 6_400)
AT_ONCE = (16, 64)
DEEP = 3
"""Endpoints that hold nearly all of a prompt; all others hold its first eighth."""
ONE_S = 2.0
MANY_S = 3.0
PROMPTS = 8
RAGGED_PROMPTS = 150
RAGGED_BLOCKS = 640
RAGGED_ENGINES = 12
RAGGED_SHARES = (0.05, 0.6)
"""Of the holders of a prompt: how many hold it with holes, or without its beginning."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts of one length with their block hashes."""

    prompts: Sequence[Prompt]
    chains: Sequence[list[BlockHash]]


def draw(length: int, seed: int, prompts: int = PROMPTS) -> Asked:
    """Draw prompts to look up."""
    source = PromptSource(seed)
    drawn = [source.draw(length) for _ in range(prompts)]
    return Asked(drawn, [prompt.block_hashes() for prompt in drawn])


def nested(asked: Asked, engines: int) -> Iterator[tuple[int, bytes]]:
    """Let all engines hold an eighth of each prompt and three of them nearly all."""
    for prompt in asked.prompts:
        for engine in range(engines):
            deep = engine % engines < DEEP
            end = prompt.blocks - 7 * engine if deep else max(1, prompt.blocks // 8)
            for body in prompt.stores(end):
                yield engine, body


async def speed(url: str, asked: Asked, at_once: Sequence[int]) -> dict[str, Any]:
    """Look prompts up through the router's own call."""
    index = BlockIndex.connect(url, limit_s=5.0)
    try:
        for chain in asked.chains:
            found = await index.match([SHARD], chain)
            assert max(match.blocks for match in found.values()) == len(chain)
        figures: dict[str, Any] = {"p50_ms": await _one(index, asked) * 1e3}
        for number in at_once:
            figures[f"per_s_at_{number}"] = await _many(index, asked, number)
        return figures
    finally:
        await index.aclose()


async def _one(index: BlockIndex, asked: Asked) -> float:
    times: list[float] = []
    end = time.perf_counter() + ONE_S
    while time.perf_counter() < end:
        chain = asked.chains[len(times) % len(asked.chains)]
        begun = time.perf_counter()
        await index.match([SHARD], chain)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


async def _many(index: BlockIndex, asked: Asked, at_once: int) -> float:
    begun = time.perf_counter()
    end = begun + MANY_S

    async def ask(first: int) -> int:
        done = 0
        while time.perf_counter() < end:
            await index.match([SHARD], asked.chains[(first + done) % len(asked.chains)])
            done += 1
        return done

    done = sum(await asyncio.gather(*map(ask, range(at_once))))
    return done / (time.perf_counter() - begun)


def measure(fleet: Fleet, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Measure each length in a fleet that holds other blocks."""
    figures: dict[str, Any] = {}
    engines = len(fleet.names)
    for length in lengths:
        asked = draw(length, seed=length + engines)
        fleet.fill(nested(asked, engines))
        before = cpu_s(fleet.redis.pid)
        figures[str(length)] = uvloop.run(speed(fleet.redis.url, asked, AT_ONCE))
        figures[str(length)]["redis_cpu_s"] = cpu_s(fleet.redis.pid) - before
    return figures


# --- chains whose sets of holders are not nested ------------------------------------------------


@dataclass(slots=True)
class Ragged:
    """A prompt, and the blocks of it (counted from 0) that each engine holds."""

    chain: list[BlockHash]
    held: dict[int, set[int]]

    def truth(self, names: Sequence[EndpointName]) -> dict[EndpointName, int]:
        """Scan: leading blocks by endpoint."""
        found = {}
        for engine, positions in self.held.items():
            blocks = 0
            while blocks in positions:
                blocks += 1
            if blocks:
                found[names[engine]] = blocks
        return found


def ragged(fleet: Fleet, share: float) -> list[Ragged]:
    """Let engines hold prompts in part; a share of them with holes or without the beginning."""
    seed = 9 + int(100 * share)
    source, chance = PromptSource(seed), random.Random(seed)
    cases, work = [], []
    for _ in range(RAGGED_PROMPTS):
        prompt = source.draw(RAGGED_BLOCKS)
        case = Ragged(prompt.block_hashes(), {})
        for engine in chance.sample(range(len(fleet.names)), RAGGED_ENGINES):
            end = chance.randrange(1, RAGGED_BLOCKS + 1)
            gone = _holes(chance, end) if chance.random() < share else set()
            case.held[engine] = set(range(end)) - gone
            work += [(engine, body) for body in prompt.stores(end)]
            if gone:
                hashes = [prompt.engine_hashes[position] for position in sorted(gone)]
                work.append((engine, removed(hashes)))
        cases.append(case)
    fleet.fill(work)
    return cases


def _holes(chance: random.Random, end: int) -> set[int]:
    """Choose what is missing: the beginning, or some runs."""
    if chance.random() < 1 / 3:
        return set(range(chance.randrange(0, end)))
    gone: set[int] = set()
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(0, end)
        gone |= set(range(start, min(end, start + chance.choice((1, 2, 8, 32)))))
    return gone


async def accuracy(fleet: Fleet, cases: Sequence[Ragged]) -> dict[str, Any]:
    """Compare the router's lookup with a scan of what each engine holds."""
    index = BlockIndex.connect(fleet.redis.url, limit_s=5.0)
    pairs = longer = shorter = worse = strangers = 0
    try:
        for case in cases:
            truth = case.truth(fleet.names)
            matches = await index.match([SHARD], case.chain)
            found = {name: match.blocks for name, match in matches.items()}
            holders = {fleet.names[engine] for engine, held in case.held.items() if held}
            strangers += len(set(found) - holders)
            for name in set(truth) | set(found):
                pairs += 1
                longer += found.get(name, 0) > truth.get(name, 0)
                shorter += found.get(name, 0) < truth.get(name, 0)
            if truth:
                chosen = max(sorted(found), key=lambda name: found[name], default=None)
                best = max(truth.values())
                worse += chosen is None or truth.get(chosen, 0) < best
    finally:
        await index.aclose()
    return {
        "chains": len(cases),
        "endpoint_lengths": pairs,
        "too_long_share": longer / pairs,
        "too_short_share": shorter / pairs,
        "worse_choice_share": worse / len(cases),
        "endpoints_without_a_block": strangers,
    }


def measure_ragged(fleet: Fleet) -> dict[str, Any]:
    """Fill ragged chains in and compare: a few ragged holders, and most of them."""
    return {
        str(share): uvloop.run(accuracy(fleet, ragged(fleet, share))) for share in RAGGED_SHARES
    }

"""X1, an endpoint claims more than its GPU can hold: it is held to what its engine tells of itself.

Nobody honest is hurt by that: full caches, restarts with larger ones, engines that tell nothing.
"""

from __future__ import annotations

import asyncio
import io
import json
import time

import pytest

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName
from tests.chaos.conftest import Report, epochs_of
from tests.fakes.block_fleet import SIZE
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import PAGE, ChaosPlace, Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.publisher import removed, stored

BLOCKS = 2_000
MOST = BLOCKS + BLOCKS // 10
LIE = 1 << 50
OVER = "kvatlas_indexer_blocks_overclaimed_total"


def tell(engine: ChaosEngine, blocks: int) -> None:
    """Let an engine's page of metrics tell how many blocks its GPU has."""
    assert engine.upstream is not None
    engine.upstream.metrics = PAGE.replace(b'"100000"', b'"%d"' % blocks)


async def is_bounded(place: ChaosPlace, engine: ChaosEngine, most: int) -> None:
    """Wait until the indexer knows how much an endpoint may hold."""
    name = engine.name
    await until(lambda: place.count("kvatlas_indexer_gpu_blocks_max", endpoint=name) == most)


async def compute(engine: ChaosEngine, blocks: int, batch: int = 500) -> None:
    """Compute that many blocks of new prompts, each prompt announced at once."""
    for start in range(0, blocks, batch):
        count = min(batch, blocks - start)
        hashes = list(range(engine.next_hash, engine.next_hash + count))
        tokens = [each % 99_991 for number in hashes for each in range(number, number + SIZE)]
        engine.next_hash += count
        engine.prompts.append((tokens, hashes))
        await engine.publisher.publish(stored(list(hashes), list(tokens)))


def held_by(engine: ChaosEngine) -> int:
    """Count an engine's blocks, the chat's among them."""
    return len(engine.blocks())


async def in_index(place: ChaosPlace, name: EndpointName) -> int:
    """Count the blocks that Redis says an endpoint holds."""
    return len((await place.indexed()).get(name, set()))


async def test_x1_claims_stay_within_the_gpu(
    scale: Scale, canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times its blocks: neither index nor memory takes them, and each epoch ends in a doubt."""
    monkeypatch.setattr(limits, "DOUBT_BACKOFF_S", 0.2)
    async with chaos_place(scale, canary) as place:
        liar, other = place.engines[0], place.engines[1]
        tell(liar, BLOCKS)
        await is_bounded(place, liar, MOST)
        feed, most_held, most_indexed = place.feed(liar), 0, 0
        for start in range(0, 10 * BLOCKS, 500):
            tokens = [each % 997 for each in range(start, start + 500 * SIZE)]
            await liar.publisher.publish(
                stored(list(range(LIE + start, LIE + start + 500)), tokens)
            )
            await asyncio.sleep(0)
            most_held = max(most_held, feed.cache.held)
        began = time.monotonic()
        while epochs_of(place, liar, "overclaimed") < 3 or time.monotonic() - began < 1.0:
            most_held = max(most_held, feed.cache.held)
            most_indexed = max(most_indexed, await in_index(place, liar.name))
            assert await place.is_matched(other)
            assert time.monotonic() - began < 15.0
        known = sum(len(page) for page in feed.cache._known)
        assert (most_held <= MOST, most_indexed <= MOST) == (True, True)
        assert most_held > BLOCKS
        assert known <= limits.FORGOTTEN_HASHES_MIN + MOST
        assert place.count(OVER, endpoint=liar.name) > 0
        assert place.count(OVER, endpoint=other.name) == epochs_of(place, other, "overclaimed") == 0
        told = [json.loads(each) for each in log.getvalue().splitlines()]
        doubts = [each for each in told if each["event"] == "endpoint.overclaimed"]
        ended = [each for each in told if each.get("reason") == "overclaimed"]
        assert len(doubts) == len([e for e in ended if e["event"] == "epoch.ended"])
        assert {(each["endpoint"], each["gpu_blocks_max"]) for each in doubts} == {
            (liar.name, MOST)
        }
        # Pauses grow: of 0.2 s each there would be many more.
        assert len(doubts) <= 2 + (time.monotonic() - began) / 0.2 / 2
    seen = f"held to {BLOCKS} and a slack, in doubt each time"
    Report("X1", f"an endpoint that claims ten times its {BLOCKS} num_gpu_blocks", seen).tell()


async def test_x1_what_was_claimed_before_its_gauges_are_known(
    scale: Scale, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held to it as soon as they are, though nothing more is claimed."""
    monkeypatch.setattr(limits, "DOUBT_BACKOFF_S", 0.2)
    async with chaos_place(scale, canary) as place:
        liar = place.engines[0]
        await compute(liar, 3 * BLOCKS)
        await place.settled()
        tell(liar, BLOCKS)
        await until(lambda: epochs_of(place, liar, "overclaimed") > 0)
        await until(lambda: place.feed(liar).cache.held <= MOST)
        await asyncio.sleep(0.1)
        assert await in_index(place, liar.name) <= MOST


async def test_x1_an_honest_engine_at_its_cap_is_exact(scale: Scale, canary: Canary) -> None:
    """A full cache that evicts for each new prompt is never doubted, and the index is the cache."""
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        tell(engine, BLOCKS)
        await is_bounded(place, engine, MOST)
        await compute(engine, BLOCKS - held_by(engine))
        assert held_by(engine) == BLOCKS
        await place.settled()
        for _ in range(scale.batches):
            number = engine.source.randrange(len(engine.prompts))
            tokens, hashes = engine.prompts[number]
            gone = min(len(hashes), engine.source.randint(1, 9))
            await engine.publisher.publish(*map(removed, reversed(hashes[-gone:])))
            del hashes[-gone:], tokens[-gone * SIZE :]
            if not hashes:
                del engine.prompts[number]
            await compute(engine, gone)
        assert held_by(engine) == BLOCKS
        await place.settled()
        assert place.count(OVER, endpoint=engine.name) == 0
    seen = "never doubted, the index is exact"
    Report("X1", f"an honest engine with all of its {BLOCKS} blocks in use", seen).tell()


async def test_x1_a_restart_with_a_larger_cache(
    scale: Scale, canary: Canary, short_replays: None
) -> None:
    """Ten times the blocks, filled before its gauges are seen: known in full a moment later."""
    del short_replays
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        tell(engine, BLOCKS)
        await is_bounded(place, engine, MOST)
        engine.lose_all()
        await engine.publisher.restart()
        tell(engine, 10 * BLOCKS)
        await compute(engine, 9 * BLOCKS)
        seconds = await place.recovered(time.monotonic())
        assert await in_index(place, engine.name) == 9 * BLOCKS
        doubts = epochs_of(place, engine, "overclaimed")
        assert doubts <= 3
    seen = f"{doubts:.0f} doubts, then exact"
    Report("X1", "a restart with ten times the blocks, filled at once", seen, [seconds]).tell()


@pytest.mark.parametrize("status", ["404 Not Found", "200 OK"])
async def test_x1_engines_that_tell_nothing(scale: Scale, canary: Canary, status: str) -> None:
    """Without a page, or a number on it, the fixed bound alone holds."""
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        assert engine.upstream is not None
        engine.upstream.metrics, engine.upstream.metrics_status = b"up 1\n", status
        feed = place.feed(engine)
        feed._gpu_bound._until = 0.0
        await is_bounded(place, engine, 0)
        await compute(engine, 3 * BLOCKS)
        await place.settled()
        assert place.count(OVER, endpoint=engine.name) == 0

"""E11, one endpoint floods: what it sends is bounded, and the others do not wait for it."""

from __future__ import annotations

import asyncio
import time
from statistics import quantiles

from tests.chaos.conftest import Report, loop_stalls
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import ChaosPlace, Options, Scale, chaos_place
from tests.fakes.publisher import FakePublisher, batch, removed, stored
from tests.fakes.publisher_process import PublisherProcess

BLOCKS = 20
QUEUED_MAX = 100_000
KEPT_MAX = 10_000
"""vLLM's own bounds: for a slow subscriber, and for replays."""
LAG_MAX_S = 0.2
"""Beside a flood, on two cores that publisher, indexer, Redis, router and this test share."""


async def test_e11_a_flood_delays_nobody_else(scale: Scale, canary: Canary) -> None:
    """The flooded endpoint falls behind, is replayed or doubted, and is right in the end."""
    flood_s = 3.0 if scale.is_full else 1.0
    recovered, rates, lags = [], [], []
    async with (
        PublisherProcess(queue_max=QUEUED_MAX, replay_max=KEPT_MAX) as flooding,
        FakePublisher() as calm,
        chaos_place(scale, canary, Options(publishers=[flooding, calm], engines=2)) as place,
    ):
        flooded, other = place.engines
        for _ in range(scale.rounds):
            flood = asyncio.create_task(flooding.call("flood", payloads(), flood_s))
            async with loop_stalls() as stalls:
                while not flood.done():
                    lags.append(await lag(place, other))
            sent = await flood
            rates.append(sent / flood_s)
            flooding.next_seq += sent
            # Ten thousand batches back is all that it remembers: what came before may be unknown.
            flooded.lose_all()
            began = time.monotonic()
            await flooding.publish({"type": "AllBlocksCleared"})
            recovered.append(await place.recovered(began, 30.0))
        dropped = place.feed(flooded).sequencer.counts["dropped"]
        assert dropped > 0, "what is held while a gap is replayed is bounded"
        assert place.feed(other).sequencer.counts["dropped"] == 0
    worst = quantiles(lags, n=20)[-1] if len(lags) > 1 else lags[0]
    assert worst < LAG_MAX_S, lags
    Report(
        "E11",
        f"one publisher sends batches as fast as it can for {flood_s:.0f} s, the first one lost",
        f"{max(rates):,.0f} batches per second; {dropped:,} of them dropped and asked for again; "
        f"the other endpoint's blocks are visible after {1e3 * worst:.0f} ms (p95); longest stall "
        f"{1e3 * max(stalls):.0f} ms",
        recovered,
    ).tell()


def payloads() -> list[bytes]:
    """Write batches that leave nothing behind when all have been sent in turn."""
    stores = [batch(stored([5_000 + n], [n] * 4)) for n in range(BLOCKS)]
    return stores + [batch(removed(5_000 + n)) for n in range(BLOCKS)]


async def lag(place: ChaosPlace, engine: ChaosEngine) -> float:
    """Give the seconds from the sending of a batch until a lookup finds it."""
    before = len(engine.prompts)
    while len(engine.prompts) <= before:
        before = len(engine.prompts)
        await engine.step()
    newest = engine.prompt_chain(-1)
    began = time.monotonic()
    while await place.match_of(engine.name, newest) != len(newest):  # noqa: ASYNC110 - in Redis
        await asyncio.sleep(0.002)
    return time.monotonic() - began

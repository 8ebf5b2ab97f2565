"""R5, Redis is full: what is gone goes, what is new waits, and nobody asks without end."""

from __future__ import annotations

import asyncio
import io
import time

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ChaosPlace, Scale, chaos_place
from tests.fakes.engines import until

WATCHED_S = 1.0
COMMANDS_PER_S_MAX = 25
"""Of one endpoint, beside what leases and looks take in quiet hours: 0.1 s after the first
refusal, then ever more seldom, up to 2 s."""


async def test_r5_a_full_redis_is_told_what_is_gone(
    scale: Scale, canary: Canary, log: io.StringIO
) -> None:
    """No match names a block that is gone; new blocks are there when there is room again."""
    recovered = []
    async with chaos_place(scale, canary) as place:
        for _ in range(scale.rounds):
            await place.batches()
            await place.settled()
            await asyncio.sleep(WATCHED_S)  # memory is written down
            quiet = await commands_per_s(place)
            fill(place, full=True)
            before = await place.indexed()
            await place.batches()
            for engine in place.engines:
                await engine.drop_oldest()
            await place.claims_nothing()
            rate = await commands_per_s(place)
            assert rate - quiet < COMMANDS_PER_S_MAX
            for name, blocks in (await place.indexed()).items():
                assert blocks < before[name], "something was added, or nothing removed"
            assert place.count("kvatlas_indexer_store_full") == len(place.engines)
            assert place.indexer._fault is None
            assert (await place.ask(place.engines[0])).fallback is None
            fill(place, full=False)
            recovered.append(await place.recovered(time.monotonic()))
        await until(lambda: place.count("kvatlas_indexer_store_full") == 0)
    assert '"store.full"' in log.getvalue()
    assert '"store.has_room"' in log.getvalue()
    Report(
        "R5",
        "CONFIG SET maxmemory below what is used, noeviction",
        "removals are applied, new blocks wait, lookups go on; "
        f"{rate:.1f} commands per second and endpoint ({quiet:.1f} in quiet hours)",
        recovered,
    ).tell()


async def test_r5_a_block_of_several_holders_loses_one(scale: Scale, canary: Canary) -> None:
    """To shorten a value is refused to a full Redis, too: the field is deleted before."""
    async with chaos_place(scale, canary) as place:
        one, other = place.engines[:2]
        await other.take(one)
        await place.settled()
        fill(place, full=True)
        shared = one.blocks() & other.blocks()
        assert shared
        while one.prompts:
            await one.drop_oldest()
        await place.claims_nothing()
        assert shared <= (await place.indexed())[other.name]
        fill(place, full=False)
        await place.settled()


async def test_r5_a_full_redis_is_told_to_forget(scale: Scale, canary: Canary) -> None:
    """A new epoch needs a little room, and gets it."""
    async with chaos_place(scale, canary) as place:
        fill(place, full=True)
        engine = place.engines[0]
        engine.lose_all()
        await engine.publisher.publish({"type": "AllBlocksCleared"})
        await place.claims_nothing()
        fill(place, full=False)
        await place.recovered(time.monotonic())


def fill(place: ChaosPlace, *, full: bool) -> None:
    """Leave Redis no room, or all that there is."""
    with place.server.client() as client:
        client.config_set("maxmemory", "1" if full else "0")


async def commands_per_s(place: ChaosPlace) -> float:
    """Count the commands per second and endpoint for a while."""
    commands, began = commands_of(place), time.monotonic()
    await asyncio.sleep(WATCHED_S)
    took_s = (time.monotonic() - began) * len(place.engines)
    return (commands_of(place) - commands) / took_s


def commands_of(place: ChaosPlace) -> int:
    """Count the commands that Redis was sent."""
    with place.server.client() as client:
        return int(client.info("stats")["total_commands_processed"])

"""R10, connections to Redis break: in the middle of a reply, or without a word."""

from __future__ import annotations

import asyncio
import random
import time

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.router.lookup import BlockIndex
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ChaosPlace, Options, Scale, chaos_place

CUTS = 30
AT_ONCE = 6


async def test_r10_a_reply_that_breaks_off_is_nobodys(scale: Scale, canary: Canary) -> None:
    """Resets after any number of bytes: who gets an answer gets the own one."""
    source = random.Random(1)
    failed, answered, recovered = 0, 0, []
    async with chaos_place(scale, canary) as place:
        index = BlockIndex.connect(f"redis://{place.redis.address}/0", limit_s=0.5)
        for _ in range(scale.rounds):
            for _ in range(CUTS):
                place.redis.reset_after = source.randint(0, 800)
                answers = await look_up(place, index)
                failed += sum(isinstance(answer, IndexUnavailable) for answer in answers)
                answered += sum(answer is True for answer in answers)
                assert all(isinstance(a, IndexUnavailable) or a is True for a in answers), answers
                place.redis.heal()
                await asyncio.sleep(0.01)
            place.redis.reset_after = 0
            await place.batches()
            await asyncio.sleep(0.1)
            place.redis.heal()
            recovered.append(await place.recovered(time.monotonic()))
        await index.aclose()
        assert place.count("kvatlas_indexer_store_errors_total", reason="connection") > 0
    assert failed
    assert answered
    Report(
        "R10",
        "proxy resets connections after 0 to 800 bytes of replies",
        f"{failed} lookups failed, {answered} got their own answers, none another's",
        recovered,
    ).tell()


async def test_r10_a_half_open_connection_is_left(scale: Scale, canary: Canary) -> None:
    """What is silent is given up: lookups after a few deadlines, writes after theirs."""
    recovered = []
    async with chaos_place(scale, canary, Options(lookup_s=limits.LOOKUP_S)) as place:
        for _ in range(scale.rounds):
            # Those that are there never work again; new ones do.
            place.redis.lose()
            began = time.monotonic()
            await place.batches()
            answer = await place.ask(place.engines[0])
            assert (answer.status, answer.fallback) == (200, "lookup:timeout")
            recovered.append(await place.recovered(began))
    Report(
        "R10",
        "proxy swallows everything on connections that are there (half-open)",
        "requests by load; the connection is left, a new one works",
        recovered,
    ).tell()


async def test_r10_a_black_hole_ends(scale: Scale, canary: Canary) -> None:
    """Nothing gets through, new connections neither; then everything does."""
    recovered = []
    async with chaos_place(scale, canary, Options(lookup_s=limits.LOOKUP_S)) as place:
        for _ in range(scale.rounds):
            place.redis.blackhole = True
            answers = [await place.ask(engine) for engine in place.engines * 4]
            await place.batches()
            await asyncio.sleep(1.0)
            place.redis.heal()
            recovered.append(await place.recovered(time.monotonic()))
            assert {answer.status for answer in answers} == {200}
            assert answers[-1].fallback == "lookup:paused"
    Report(
        "R10",
        "proxy swallows everything for some seconds",
        "requests by load; all is written afterwards",
        recovered,
    ).tell()


async def look_up(place: ChaosPlace, index: BlockIndex) -> list[bool | BaseException]:
    """Look up a chain of each engine several times at once: is each answer the own one?"""

    async def once(number: int) -> bool:
        engine = place.engines[number % len(place.engines)]
        longest = engine.longest()
        found = await index.match(place.fleet.all_shards(), longest)
        return {name: match.blocks for name, match in found.items()} == {engine.name: len(longest)}

    return await asyncio.gather(*(once(n) for n in range(AT_ONCE)), return_exceptions=True)

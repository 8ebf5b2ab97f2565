"""R11, more lookups at once than fit; R12, lookups that are left: nobody gets another's answer."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.router.lookup import BlockIndex
from tests.chaos.conftest import Report
from tests.fakes.index_writer import SHARD, Writer, chain_of, matched, named

pytestmark = pytest.mark.usefixtures("patient")

CHAINS = 20
ROUNDS = 50


async def test_r11_a_thousand_at_once_share_a_connection(
    writer: Writer, index: BlockIndex, redis_url: str
) -> None:
    """All are answered, over one connection."""
    for number in range(CHAINS):
        await writer.set(named(number), chain_of(8, number))
    async with Redis.from_url(redis_url) as client:
        before = (await client.info("stats"))["total_connections_received"]
        found = await asyncio.gather(
            *(matched(index, [SHARD], chain_of(8, n % CHAINS)) for n in range(1_000))
        )
        assert (await client.info("stats"))["total_connections_received"] == before
    assert found == [{named(n % CHAINS): 8} for n in range(1_000)]


async def test_r11_beyond_the_bound_lookups_fall_back_at_once(
    writer: Writer, index: BlockIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those within it are answered; the reason of the others is `pool`, and it passes."""
    await writer.set(named(1), chain_of(8))
    monkeypatch.setattr(limits, "REDIS_WAITING_MAX", 100)
    found = await asyncio.gather(
        *(matched(index, [SHARD], chain_of(8)) for _ in range(1_000)), return_exceptions=True
    )
    refused = [one for one in found if isinstance(one, BaseException)]
    assert {one.reason for one in refused if isinstance(one, IndexUnavailable)} == {"pool"}
    assert len(refused) == 900
    began = time.monotonic()
    assert await matched(index, [SHARD], chain_of(8)) == {named(1): 8}
    Report(
        "R11",
        "1,000 lookups at once, bound at 1,000 and at 100",
        "all share one connection; beyond the bound at once `pool`, then as before",
        [time.monotonic() - began],
    ).tell()


async def test_r12_lookups_that_are_left_harm_nobody(writer: Writer, index: BlockIndex) -> None:
    """A thousand lookups, many cancelled at any moment: who stays gets the own chain's holder."""
    source = random.Random(1)
    for number in range(CHAINS):
        await writer.set(named(number), chain_of(8, number))
    for _ in range(ROUNDS):
        tasks = [
            asyncio.create_task(matched(index, [SHARD], chain_of(8, n))) for n in range(CHAINS)
        ]
        await asyncio.sleep(source.choice([0, 0, 0.0003, 0.001]))
        left = {n for n in range(CHAINS) if source.random() < 0.4}
        for n in left:
            tasks[n].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for n, one in enumerate(found):
            assert one == {named(n): 8} or (n in left and isinstance(one, asyncio.CancelledError))
    Report(
        "R12",
        f"{ROUNDS} times {CHAINS} lookups, four of ten cancelled at any moment",
        "who stays gets the own answer",
    ).tell()

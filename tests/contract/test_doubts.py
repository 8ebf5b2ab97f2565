"""Notes of doubt that routers leave, and what the indexer tells of itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from kvatlas.common import limits
from tests.contract.test_indexer import NAME, SHARDS, TOKENS, Fleet, eventually, running
from tests.fakes.publisher import FakePublisher, removed, stored

pytestmark = pytest.mark.usefixtures("patient")

DOUBTS = SHARDS[0].doubts
STATE = SHARDS[0].endpoint(NAME)


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    """Run a fake engine and an indexer that is live on it and has blocks of it."""
    async with FakePublisher() as publisher, running(publisher, redis_url) as started:
        await started.live()
        await publisher.publish(stored([11, 12], TOKENS[:8]))
        await started.expect(2)
        yield started


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    """Give a client that writes what routers write."""
    async with Redis.from_url(redis_url, decode_responses=True) as made:
        yield made


async def taken(client: Redis) -> None:
    """Wait until the indexer has taken the notes."""

    async def gone() -> bool:
        return not await client.exists(DOUBTS)

    await eventually(gone, "no notes")


async def epoch(client: Redis) -> str:
    """Read the endpoint's epoch."""
    return str(await client.hget(STATE, "epoch"))


async def test_an_endpoint_that_overpredicts_is_learned_anew(fleet: Fleet, client: Redis) -> None:
    """A new epoch at once, then a replay of everything that the engine has."""
    before = await epoch(client)
    await client.hset(DOUBTS, NAME, f"{before} 40 of 50 answers ran over")
    await fleet.expect(0)
    await fleet.expect(2)
    assert fleet.epochs("overpredicted") == 1
    assert int(await epoch(client)) == int(before) + 1
    assert await client.hget(STATE, "reason") == "overpredicted"
    await taken(client)


async def test_notes_of_other_epochs_are_dropped(fleet: Fleet, client: Redis) -> None:
    """What was said of a former epoch says nothing of this one."""
    await client.hset(DOUBTS, NAME, f"{int(await epoch(client)) - 1} late")
    await taken(client)
    await client.hset(DOUBTS, NAME, f"{int(await epoch(client)) + 1} early")
    await taken(client)
    assert await fleet.match() == 2
    assert fleet.epochs("overpredicted") == 0


async def test_doubts_that_go_on_cost_pauses(fleet: Fleet, client: Redis) -> None:
    """A second doubt waits for longer before it replays."""
    for number in (1, 2):
        await client.hset(DOUBTS, NAME, f"{await epoch(client)} over")

        def begun(wanted: int = number) -> bool:
            return fleet.epochs("overpredicted") == wanted

        await eventually(begun, "an epoch")
        await fleet.expect(2)
    sequencer = fleet.indexer.feeds[0].sequencer
    assert sequencer._doubts == 2
    assert sequencer._resume_at - sequencer._epoch_at == 2 * limits.DOUBT_BACKOFF_S


@pytest.mark.parametrize(
    "notes",
    [
        {NAME: "spam"},
        {NAME: ""},
        {NAME: "-1 x"},
        {NAME: "9" * 5_000},
        {NAME: "¹ x"},
        {b"\xff\xfe": b"\xff\xfe"},
        {"10.0.0.9:8000": "1 unknown endpoint"},
        {str(number): "1 x" for number in range(limits.DOUBTS_PER_SHARD_MAX + 1)},
    ],
)
async def test_garbage_is_taken_away(
    fleet: Fleet, client: Redis, notes: dict[str | bytes, str | bytes]
) -> None:
    """Nothing that stands in the notes stops the indexer or doubts an endpoint."""
    await client.hset(DOUBTS, mapping=notes)  # type: ignore[arg-type]
    await taken(client)
    await fleet.publisher.publish(stored([13], TOKENS[8:12], parent=12))
    await fleet.expect(3)
    assert fleet.epochs("overpredicted") == 0


async def test_a_key_of_a_wrong_type_is_an_error_and_no_more(fleet: Fleet, client: Redis) -> None:
    """It is counted, and the index goes on."""
    await client.set(DOUBTS, "spam")
    registry = fleet.indexer.metrics.registry

    def counted() -> bool:
        value = registry.get_sample_value(
            "kvatlas_indexer_store_errors_total", {"reason": "wrongtype"}
        )
        return bool(value)

    await eventually(counted, "an error")
    await fleet.publisher.publish(stored([13], TOKENS[8:12], parent=12))
    await fleet.expect(3)
    assert fleet.indexer._fault is None


async def test_the_state_tells_how_the_indexer_stands(fleet: Fleet, client: Redis) -> None:
    """Phase and counts, within seconds of a change."""

    async def told() -> bool:
        state = await client.hgetall(STATE)
        counts = ("live", "1", "1", "1")
        names = ("phase", "gaps", "orphans", "unknown_removals")
        return tuple(state.get(name) for name in names) == counts and int(state["replays"]) >= 2

    fleet.publisher.record(removed(99))
    await fleet.publisher.publish(stored([77], [1, 2, 3, 4], parent=76))
    await eventually(told, f"{await client.hgetall(STATE)}")
    fleet.publisher.close()

    async def away() -> bool:
        return bool(await client.hget(STATE, "phase") == "connecting")

    await eventually(away, "connecting")
    assert float(str(await client.hget(STATE, "followed"))) > 0
    await fleet.publisher.open()

"""Hybrid models through the indexer, a real Redis and the router's lookup."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash
from tests.contract.test_indexer import MODEL, NAME, SHARDS, Fleet, eventually, hashes, running
from tests.fakes.publisher import CLEARED, FakePublisher, removed, stored

pytestmark = pytest.mark.usefixtures("patient")

TOKENS = list(range(100, 132))
"""Eight blocks of four."""
WINDOWED: dict[str, Any] = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
FULL: dict[str, Any] = {"group_idx": 1}


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    """Run a fake engine and an indexer that is live on it."""
    async with FakePublisher() as publisher, running(publisher, redis_url) as started:
        await started.live()
        yield started


def windowed(numbers: list[int], **more: Any) -> dict[str, Any]:
    """Write a store of some blocks of the first ones of TOKENS in a group with a window of 8."""
    return stored(numbers, TOKENS, kv_cache_spec_sliding_window=8, **WINDOWED, **more)


def full(first: int = 1, last: int = 8) -> dict[str, Any]:
    """Write a store of consecutive blocks of TOKENS in the group that attends to everything."""
    parent = first - 1 or None
    tokens = TOKENS[4 * (first - 1) : 4 * last]
    return stored(list(range(first, last + 1)), tokens, parent, **FULL)


async def test_a_hit_is_what_all_groups_can_serve(fleet: Fleet) -> None:
    """A window of 8 tokens needs the two blocks before the end of the hit."""
    await fleet.publisher.publish(windowed([7, 8]), full())
    await fleet.expect(8, TOKENS)
    await fleet.expect(0, TOKENS[:24])
    await fleet.publisher.publish(windowed([3, 4]))
    await fleet.expect(4, TOKENS[:24])
    await fleet.publisher.publish({**removed(8), "group_idx": 0})
    await fleet.expect(4, TOKENS)


async def test_a_group_that_is_silent_in_this_epoch_serves_nothing(fleet: Fleet) -> None:
    """What is known of groups outlives a clear, what they hold does not."""
    await fleet.publisher.publish(windowed([7, 8]), full())
    await fleet.expect(8, TOKENS)
    await fleet.publisher.publish(CLEARED, full())
    await fleet.expect(0, TOKENS)
    await fleet.publisher.publish(windowed([1, 2]))
    await fleet.expect(2, TOKENS)


async def test_windows_do_not_mix_with_prefixes(fleet: Fleet, redis_url: str) -> None:
    """Their entries stand in buckets of their own, and the sweep empties these, too."""
    await fleet.publisher.publish(windowed([7, 8]), full())
    await fleet.expect(8, TOKENS)
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        holders = {str(k): str(v) for k, v in (await client.hgetall(SHARDS[0].holders)).items()}
        texts = {text.split(" ", 2)[2]: number for number, text in holders.items() if " " in text}
        window = texts["medium=gpu group=0 kind=sliding_window window=8 block_size=4"]
        whole = texts["medium=gpu group=1 kind=full_attention"]
        assert await buckets(client, "w") == {(block, window) for block in hashes(TOKENS)[6:]}
        assert await buckets(client, "b") == {(block, whole) for block in hashes(TOKENS)}
        state = await client.hgetall(SHARDS[0].endpoint(NAME))
        assert state["groups"] == "0=sliding_window/8 1=full_attention"
        assert state["unmatched"] == ""
        await fleet.publisher.publish(CLEARED)

        async def no_prefixes() -> bool:
            return not await buckets(client, "b")

        async def no_windows() -> bool:
            return not await buckets(client, "w") and not await client.exists(SHARDS[0].dead)

        await eventually(no_prefixes, "no entries in b:")
        await eventually(no_windows, "no entries in w:")


async def buckets(client: Any, letter: str) -> set[tuple[BlockHash, str]]:
    """Read all buckets of one kind as blocks and lists of holders."""
    return {
        (BlockHash(int(key[-4:] + name, 16)), value)
        async for key in client.scan_iter(f"kvatlas:*:{letter}:*")
        for name, value in (await client.hgetall(key)).items()
    }


async def test_what_cannot_be_followed_is_not_indexed(fleet: Fleet, redis_url: str) -> None:
    """Blocks of two sizes: the match is 0 and the state says why; a new life is judged anew."""
    await fleet.publisher.publish(windowed([7, 8]), full())
    await fleet.expect(8, TOKENS)
    coarse = stored([8], TOKENS[:32], None, 32, group_idx=2, kv_cache_spec_kind="mamba")
    await fleet.publisher.publish(coarse)
    await fleet.expect(0, TOKENS)
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        state = await client.hgetall(SHARDS[0].endpoint(NAME))
    assert (state["unmatched"], state["reason"]) == ("block_sizes", "regrouped")
    value = fleet.indexer.metrics.registry.get_sample_value(
        "kvatlas_indexer_unmatched", {"endpoint": NAME}
    )
    assert value == 1
    await fleet.publisher.restart()
    fleet.publisher.record(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2, TOKENS)


async def test_long_prompts_are_read_as_far_as_needed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps from the end, and not without bound: what is not decided then is no match."""
    monkeypatch.setattr(limits, "WINDOW_BLOCKS_FIRST", 1)
    await fleet.publisher.publish(windowed([1, 2]), full())
    await fleet.expect(2, TOKENS)
    assert fleet.index.undecided == 0
    monkeypatch.setattr(limits, "WINDOW_BLOCKS_MAX", 5)
    assert await fleet.match(TOKENS) == 0
    assert fleet.index.undecided == 1


async def test_others_cost_one_call(redis_url: str) -> None:
    """A model without hybrid endpoints is looked up with a single script call."""
    async with FakePublisher() as publisher, running(publisher, redis_url) as fleet:
        await fleet.live()
        await publisher.publish(stored([1, 2], TOKENS[:8]))
        await fleet.expect(2, TOKENS)
        await fleet.index.match(SHARDS, hashes(TOKENS))
        async with Redis.from_url(redis_url) as client:
            before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
            view = fleet.index._places[SHARDS[0]].view
            assert view.hybrids == {}
            await fleet.index.match(SHARDS, hashes(TOKENS))
            # The indexer's own calls are writes of batches and one for doubts each second.
            after = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert after - before <= 2


def captured(shared: Path) -> list[dict[str, Any]]:
    """Read what the capture's own decoder wrote beside the frames."""
    path = shared / "data" / "vllm-events" / "pod3_swa.manifest.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_captured_hybrid_engine_is_predicted_exactly(shared: Path, redis_url: str) -> None:
    """Before each request of the capture the match is where the engine began to store anew."""
    folder = shared / "data" / "vllm-events"
    lines = captured(shared)
    scenario = [
        json.loads(s) for s in (folder / "pod3_swa.scenario.jsonl").read_text().split("\n") if s
    ]
    prompts: dict[int, list[int]] = {}
    checked = []
    async with FakePublisher() as publisher, running(publisher, redis_url) as fleet:
        await fleet.live()
        for step in scenario:
            length = int((re.search(r"(\d+) tok", step["label"]) or [0, 0])[1])
            for seq in step["seqs"]:
                event = lines[seq]["decoded"][1][-1]
                parent = event["parent_block_hash"]
                before = prompts.get(parent, [])
                tokens = before + event["token_ids"]
                for number, value in enumerate(event["block_hashes"], 1):
                    prompts[value] = before + event["token_ids"][: 32 * number]
                full_blocks = (max(length, len(tokens) + 1 if not length else 0) - 1) // 32
                asked = chain(root_hash(MODEL, 32), tokens, 32)[:full_blocks]

                async def begun(asked: list[BlockHash] = asked, start: int = len(before)) -> bool:
                    found = (await fleet.index.match(SHARDS, asked)).get(NAME)
                    return (found.blocks if found else 0) == start // 32

                await eventually(begun, f"{step['label']}: a match of {len(before) // 32}")
                checked.append((step["label"], len(before)))
                await publisher.publish(payload=(folder / lines[seq]["file"]).read_bytes())
    assert ("300 tok shared 200", 192) in checked
    assert ("64 tok", 0) in checked
    assert ("70 tok", 32) in checked
    assert len(checked) == len(lines)

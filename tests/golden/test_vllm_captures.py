"""Frames captured from a real vLLM: all decode, and counting them gives what counting gives."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.gauges import Sample, SharedSample
from kvatlas.common.ids import BlockHash, EngineHash, ModelName, Pool
from kvatlas.common.metrics_page import read_gauges
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.decode import decode, engine_hash
from kvatlas.indexer.events import AllBlocksCleared, BlockRemoved, BlockStored
from kvatlas.indexer.gpu_bound import GpuBound

CAPTURES = ("pod1", "pod2_cbor_bytes", "pod3_swa")
MODEL = ModelName("tiny")
Counts = Counter[tuple[str, int, int]]


def manifest(shared: Path, capture: str) -> list[dict[str, Any]]:
    """Read what the capture's own decoder wrote beside the frames."""
    path = shared / "data" / "vllm-events" / f"{capture}.manifest.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def payload(shared: Path, line: dict[str, Any]) -> bytes:
    """Read a frame."""
    return (shared / "data" / "vllm-events" / str(line["file"])).read_bytes()


def plain_hash(value: Any) -> int:
    """Fold a hash as the manifest writes it: an integer, or bytes as hex."""
    if isinstance(value, dict):
        value = next(iter(value.values()))
    return value if isinstance(value, int) else int(str(value)[-16:], 16)


def count_plainly(lines: list[dict[str, Any]]) -> Counts:
    """Count stores and removes, sharing no code with the product."""
    counts: Counts = Counter()
    for line in lines:
        for event in line["decoded"][1]:
            if event["type"] == "AllBlocksCleared":
                counts.clear()
                continue
            step = 1 if event["type"] == "BlockStored" else -1
            for value in event["block_hashes"]:
                key = (event["medium"].lower(), event.get("group_idx") or 0, plain_hash(value))
                counts[key] = max(0, counts[key] + step)
    return +counts


@pytest.mark.parametrize("capture", CAPTURES)
def test_every_frame_decodes(shared: Path, capture: str) -> None:
    """Each event comes out with the hashes and tokens of the manifest."""
    for line in manifest(shared, capture):
        batch = decode(payload(shared, line))
        time_s, events, _rank = line["decoded"]
        assert batch.time_s == time_s
        assert batch.unknown == 0
        assert len(batch.events) == len(events)
        for event, plain in zip(batch.events, events, strict=True):
            if isinstance(event, AllBlocksCleared):
                assert plain["type"] == "AllBlocksCleared"
                continue
            assert type(event).__name__ == plain["type"]
            assert list(event.hashes) == [plain_hash(value) for value in plain["block_hashes"]]
            if isinstance(event, BlockStored):
                assert list(event.token_ids) == plain["token_ids"]
                assert event.kind == plain["kv_cache_spec_kind"]


@pytest.mark.parametrize("capture", CAPTURES)
def test_playing_a_capture_leaves_what_counting_gives(shared: Path, capture: str) -> None:
    """After the last frame the copies per pool and hash are those of a plain count."""
    lines = manifest(shared, capture)
    cache = EndpointCache(MODEL)
    for line in lines:
        cache.apply(decode(payload(shared, line)))
    counted = {
        (pool.medium, pool.group, int(key)): copies
        for pool, hashes in cache.counts().items()
        for key, copies in hashes.items()
    }
    assert counted == dict(count_plainly(lines))


@pytest.mark.parametrize("capture", CAPTURES)
def test_transitions_add_up_to_what_is_present(shared: Path, capture: str) -> None:
    """What deltas say, applied one after the other, is what the cache holds; all is placed."""
    cache = EndpointCache(MODEL)
    mirrored: set[tuple[Pool, BlockHash]] = set()
    for line in manifest(shared, capture):
        delta = cache.apply(decode(payload(shared, line)))
        assert delta.orphans == 0
        if delta.cleared:
            mirrored.clear()
        for pool, blocks in delta.present.items():
            mirrored |= {(pool, block) for block, present in blocks.items() if present}
            mirrored -= {(pool, block) for block, present in blocks.items() if not present}
    assert mirrored == set(cache.entries())
    assert len(mirrored) == sum(len(hashes) for hashes in cache.counts().values())


@pytest.mark.parametrize("capture", ["pod1", "pod2_cbor_bytes"])
def test_no_engine_claims_more_than_its_gpu_holds(shared: Path, capture: str) -> None:
    """The 24 blocks of these engines' pages, with the slack, are never exceeded.

    One of them is exceeded without it: a hit that was announced at a client's wish counts as a
    copy, which stays when the block has gone.
    """
    page = (shared / "data" / "vllm-events" / "metrics_sample.txt").read_bytes()
    bound = GpuBound()
    bound.told(SharedSample(1, 1, Sample(is_up=True, gauges=read_gauges(page)[0])), 0.0)
    cache = EndpointCache(MODEL)
    cache.gpu_max = bound.most(0.0)
    assert cache.gpu_max == 24 + limits.GPU_BLOCKS_SLACK_MIN
    most = 0
    for line in manifest(shared, capture):
        assert cache.apply(decode(payload(shared, line))).overclaimed == 0
        most = max(most, cache.held_on_gpu)
    assert most <= 24


def test_groups_share_one_gpu(shared: Path) -> None:
    """The hybrid engine evicts for all groups together: what it holds in all of them stays level.

    Its capture does not tell how many blocks it has, but what it holds stops growing once that is.
    """
    cache = EndpointCache(MODEL)
    sums, evicts = [], False
    for line in manifest(shared, "pod3_swa"):
        batch = decode(payload(shared, line))
        evicts = evicts or any(isinstance(event, BlockRemoved) for event in batch.events)
        cache.apply(batch)
        if evicts:
            sums.append(cache.held_on_gpu)
    assert (min(sums), max(sums)) == (43, 52)
    assert len(cache.counts()) == 3


def test_blocks_are_found_under_the_hashes_of_their_tokens(shared: Path) -> None:
    """A prompt that was cached is found by its tokens, a salted one only by its salt."""
    cache = EndpointCache(MODEL)
    plain: list[int] = []
    salted: list[int] = []
    for line in manifest(shared, "pod1")[:10]:
        batch = decode(payload(shared, line))
        cache.apply(batch)
        for event in batch.events:
            if isinstance(event, BlockStored) and event.parent is None:
                if ("abc",) in event.extras[:1]:
                    salted = list(event.token_ids)
                elif not event.extras:
                    plain = list(event.token_ids)
    present = {block for _, block in cache.entries()}
    root = root_hash(MODEL, 32)
    assert set(chain(root, plain, 32)) <= present
    assert salted
    assert set(chain(root, salted, 32, [("abc",)])) <= present


def test_removed_and_cleared_events_are_in_the_captures(shared: Path) -> None:
    """The captures exercise what the tests above rely on."""
    kinds: Counter[str] = Counter()
    for capture in CAPTURES:
        for line in manifest(shared, capture):
            for event in decode(payload(shared, line)).events:
                kinds[type(event).__name__] += 1
    assert kinds["BlockStored"] > 50
    assert kinds[BlockRemoved.__name__] > 50
    assert kinds[AllBlocksCleared.__name__] >= 1


def test_byte_hashes_fold_to_their_last_eight_bytes() -> None:
    """A 32-byte hash and its integer form are the same engine hash."""
    digest = bytes(range(32))
    assert engine_hash(digest) == EngineHash(int.from_bytes(digest[24:], "big"))

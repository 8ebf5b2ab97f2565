"""The simulated cache beside a real vLLM's: the same requests give the same events."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from kvatlas.simulator.block_pool import BlockPool, BlockTable
from kvatlas.simulator.cache_events import CacheEvent, Cleared, Removed, Stored, encode_batch

SIZE = 32
BLOCKS = 24

Told = tuple[str, tuple[Any, ...]]


@dataclass
class Capture:
    """What a vLLM published, with its blocks named by their text."""

    folder: Path
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def batches(self) -> list[list[dict[str, Any]]]:
        """Read the events of each batch."""
        lines = (self.folder / "pod1.manifest.jsonl").read_text().splitlines()
        return [json.loads(line)["decoded"][1] for line in lines]

    def payloads(self) -> list[bytes]:
        """Read each batch as it came."""
        return [path.read_bytes() for path in sorted(self.folder.glob("pod1_*.bin"))]

    def told(self, event: dict[str, Any]) -> Told:
        """Write an event without hashes."""
        if event["type"] == "AllBlocksCleared":
            return "cleared", ()
        if event["type"] == "BlockRemoved":
            return "removed", self.texts[event["block_hashes"][0]]
        before = self.texts.get(event["parent_block_hash"], ())
        for index, engine_hash in enumerate(event["block_hashes"]):
            self.texts[engine_hash] = (*before, *event["token_ids"][: (index + 1) * SIZE])
        return "stored", self.texts[event["block_hashes"][-1]]


@dataclass
class Engine:
    """One sequence after the other, each computed in one step, then token by token."""

    pool: BlockPool = field(default_factory=lambda: BlockPool(BLOCKS))
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def serve(
        self, tokens: tuple[int, ...], prompt: int, salt: str | None = None, *, read: bool = True
    ) -> list[list[Told]]:
        """Compute a prompt and what follows it; give the batches that were published."""
        table = BlockTable(self.pool, SIZE, list(tokens[:prompt]), salt)
        matched = table.match() if read else []
        count = prompt - len(matched) * SIZE
        batches = []
        for step in range(len(tokens) - prompt + 1):
            assert table.grow(count, matched)
            table.computed = prompt + step
            table.tokens.extend(tokens[prompt + step : prompt + step + 1])
            count, matched = 1, []
            if events := self.pool.take_events():
                batches.append([self.told(event) for event in events])
        table.free()
        return batches

    def told(self, event: CacheEvent) -> Told:
        """Write an event without hashes."""
        if isinstance(event, Cleared):
            return "cleared", ()
        if isinstance(event, Removed):
            return "removed", self.texts[event.hash]
        before = self.texts.get(event.parent or 0, ())
        for index, engine_hash in enumerate(event.hashes):
            self.texts[engine_hash] = (*before, *event.token_ids[: (index + 1) * SIZE])
        return "stored", self.texts[event.hashes[-1]]


def test_eviction_order_is_that_of_vllm(shared: Path) -> None:
    """The requests of a capture, 24 blocks for all, evict the same blocks in the same order."""
    capture = Capture(shared / "data" / "vllm-events")
    expected = [[capture.told(event) for event in batch] for batch in capture.batches()[:21]]

    # Where requests caused no event their tokens are free, but for the blocks that they touch; the
    # one labelled "450 + 60 out" has a prompt of under 448 tokens, as its events show.
    def stored(number: int) -> tuple[int, ...]:
        return next(text for kind, text in expected[number] if kind == "stored")

    base, hundred = stored(8), stored(9)
    chat = (*stored(1), *range(900, 927))
    salted = (*stored(6), *range(6))
    decoded = (*stored(16), *range(30))
    engine = Engine()
    batches = [
        *engine.serve(chat, 52),
        *engine.serve(base[:64], 64),
        *engine.serve(base[:64], 64),
        *engine.serve((*base[:64], 1), 65),
        *engine.serve(base[:96], 96),
        *engine.serve(base[:31], 31),
        *engine.serve((*stored(5), 1), 32),
        *engine.serve(salted, 70, "abc"),
        *engine.serve(salted, 70, "abc"),
        *engine.serve(base[:96], 96),
        *engine.serve((*base, 1, 2, 3, 4), 100, read=False),
        *engine.serve((*hundred, 1, 2, 3, 4), 100),
        *engine.serve((*hundred, 1, 2, 3, 4), 100),
        *engine.serve((*hundred[:64], *range(16)), 80),
        *engine.serve((*stored(10), 1, 2), 450),
        *engine.serve((*stored(11), 1, 2), 450),
        *engine.serve(base[:64], 64),
        *engine.serve(decoded[:499], 440),
        *engine.serve((*stored(18), *range(8)), 40),
        *engine.serve((*stored(19), *range(8)), 40),
    ]
    assert engine.pool.reset()
    batches += engine.serve(base[:64], 64)
    # A request that asked to be told of its match as well: only what it stored is compared.
    expected[7] = expected[7][1:]
    assert batches == expected


def test_payloads_are_those_of_vllm_byte_for_byte(shared: Path) -> None:
    """What a vLLM published, read and written by our publisher, is the same bytes."""
    payloads = Capture(shared / "data" / "vllm-events").payloads()
    checked = 0
    for payload in payloads:
        timestamp, events, rank = msgpack.unpackb(payload)
        if any(event.get("lora_name") for event in events):
            continue
        assert encode_batch(timestamp, [_read(event) for event in events], "map", rank) == payload
        checked += 1
    assert checked > 20


def _read(event: dict[str, Any]) -> CacheEvent:
    if event["type"] == "AllBlocksCleared":
        return Cleared()
    if event["type"] == "BlockRemoved":
        return Removed(event["block_hashes"][0])
    return Stored(
        tuple(event["block_hashes"]),
        event["parent_block_hash"],
        tuple(event["token_ids"]),
        event["block_size"],
        tuple(None if extra is None else tuple(extra) for extra in event["extra_keys"]),
    )

"""What the engines' caches hold, counted from their events by code that the product does not share.

Each engine has a thread that receives with plain pyzmq and decodes with msgpack. Copies are
counted per engine hash, hashes of our own are made here a second time from docs/REDIS.md and
common/block_hash.py's description: xxh3-64 over tokens (little-endian, 4 bytes) and extra keys,
seeded with the parent.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgpack
import zmq
from redis import Redis
from xxhash import xxh3_64_intdigest

MASK = 2**64 - 1


def root(model: str, block_size: int, lora: str | None) -> int:
    """Hash what a chain begins with."""
    parts = (b"kvatlas-1", model.encode(), str(block_size).encode(), (lora or "").encode())
    return xxh3_64_intdigest(b"".join(struct.pack("<Q", len(p)) + p for p in parts))


def block(parent: int, tokens: Sequence[int], salt: str | None = None) -> int:
    """Hash one block."""
    data = struct.pack(f"<{len(tokens)}I", *tokens)
    if salt is not None:
        data += b"s" + struct.pack("<Q", len(salt.encode())) + salt.encode()
    return xxh3_64_intdigest(data, parent)


def chain(
    model: str,
    size: int,
    tokens: Sequence[int],
    *,
    salt: str | None = None,
    lora: str | None = None,
) -> list[int]:
    """Hash all full blocks of a prompt."""
    hashes, parent = [], root(model, size, lora)
    for start in range(0, len(tokens) - size + 1, size):
        parent = block(parent, tokens[start : start + size], None if start else salt)
        hashes.append(parent)
    return hashes


class EngineCounter(threading.Thread):
    """Count one engine's blocks, for as long as the process lives.

    Attributes:
        totals: events seen, by type, in blocks.
        last_event: number of the newest event, to wait for news.
    """

    def __init__(self, context: zmq.Context[Any], events: str, model: str) -> None:
        super().__init__(daemon=True)
        self._model = model
        self._lock = threading.Lock()
        self._copies: Counter[int] = Counter()
        self._blocks: dict[int, int] = {}
        self.totals: Counter[str] = Counter()
        self.batches = 0
        self._socket = context.socket(zmq.SUB)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.subscribe(b"")
        self._socket.connect(events)

    def run(self) -> None:
        """Receive until the socket is closed."""
        while True:
            try:
                _topic, seq, payload = self._socket.recv_multipart()
            except zmq.ZMQError:
                return
            with self._lock:
                if int.from_bytes(seq, "big") == 0:
                    # Another life of the engine.
                    self._copies.clear()
                for event in msgpack.unpackb(payload)[1]:
                    self._count(event)
                self.batches += 1

    def _count(self, event: dict[str, Any]) -> None:
        hashes = [value & MASK for value in event.get("block_hashes", [])]
        self.totals[event["type"]] += max(1, len(hashes))
        if event["type"] == "BlockStored":
            self._learn(event, hashes)
            self._copies.update(hashes)
        elif event["type"] == "BlockRemoved":
            self._copies.subtract(hashes)
        else:
            self._copies.clear()

    def _learn(self, event: dict[str, Any], hashes: list[int]) -> None:
        size, tokens, lora = event["block_size"], event["token_ids"], event["lora_name"]
        parent = event["parent_block_hash"]
        at = root(self._model, size, lora) if parent is None else self._blocks[parent & MASK]
        for number, engine_hash in enumerate(hashes):
            extras = (event.get("extra_keys") or [None] * len(hashes))[number] or []
            salts = [key for key in extras if key != lora]
            at = block(at, tokens[number * size : (number + 1) * size], *salts)
            self._blocks[engine_hash] = at

    def present(self) -> set[int]:
        """List what the engine's cache holds, by hashes of our own."""
        with self._lock:
            return {self._blocks[one] for one, copies in self._copies.items() if copies > 0}


class RawIndex:
    """The index as plain Redis commands see it."""

    def __init__(self, url: str, model: str) -> None:
        self._client: Any = Redis.from_url(url)
        self._base = f"kvatlas:{{{model}/0}}:"

    def _holders(self) -> dict[int, str]:
        """Map holder ids to endpoints."""
        found = {}
        for key, text in self._client.hgetall(self._base + "holders").items():
            if key != b"version":
                fields = dict(part.split("=", 1) for part in text.decode().split())
                found[int(key)] = fields["endpoint"]
        return found

    def present(self) -> dict[str, set[int]]:
        """Read every entry: what each endpoint holds."""
        holders = self._holders()
        found: dict[str, set[int]] = {name: set() for name in holders.values()}
        for key in self._client.scan_iter(self._base + "b:*", count=1_000):
            bucket = key.decode()[-4:]
            for name, value in self._client.hgetall(key).items():
                for one in map(int, value.split()):
                    if one in holders:
                        found[holders[one]].add(int(bucket + name.decode(), 16))
        return found

    def scan(self, hashes: Sequence[int]) -> dict[str, int]:
        """Read every block of a chain: leading blocks per endpoint."""
        holders = self._holders()
        pipeline = self._client.pipeline(transaction=False)
        for one in hashes:
            text = f"{one:016x}"
            pipeline.hget(f"{self._base}b:{text[:4]}", text[4:])
        sets = [
            {holders[one] for one in map(int, (value or b"").split()) if one in holders}
            for value in pipeline.execute()
        ]
        return {
            name: next((i for i, here in enumerate(sets) if name not in here), len(sets))
            for name in set(holders.values())
        }

"""The yardstick: an index in Redis by llm-d's schema, written from its description.

One HASH per block whose fields are holders as JSON, one ZSET per engine hash whose members are
the blocks behind it. A lookup sends HKEYS for every block of the prompt in one pipeline, reads the
JSON of all holders, and walks to the first block that nobody holds.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis import Redis

from kvatlas.cli.redis_server import running_redis

BLOCKS_PER_PIPELINE = 2_000
ROUNDS = 30


class Baseline:
    """Such an index."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.fetch_s = 0.0
        """What the last lookup took without the reading of JSON, which depends on the language."""

    def add(self, blocks: Sequence[int], endpoints: Sequence[int]) -> None:
        """Let endpoints hold blocks; the engine's hashes are made up from the blocks'."""
        fields: dict[Any, Any] = {_field(endpoint): "" for endpoint in endpoints}
        for start in range(0, len(blocks), BLOCKS_PER_PIPELINE):
            pipe = self._client.pipeline(transaction=False)
            for block in blocks[start : start + BLOCKS_PER_PIPELINE]:
                pipe.zadd(f"engine:{block ^ 1}", {str(block): 0})
                pipe.hset(str(block), mapping=fields)
            pipe.execute()

    def lookup(self, chain: Sequence[int]) -> dict[str, int]:
        """Find how many leading blocks each endpoint holds."""
        pipe = self._client.pipeline(transaction=False)
        for block in chain:
            pipe.hkeys(str(block))
        begun = time.perf_counter()
        answers = pipe.execute()
        self.fetch_s = time.perf_counter() - begun
        matches: dict[str, int] = {}
        active: set[str] | None = None
        for position, fields in enumerate(answers, 1):
            holders = {json.loads(field)["PodIdentifier"] for field in fields}
            active = holders if active is None else active & holders
            if not active:
                break
            for name in active:
                matches[name] = position
        return matches


def _field(endpoint: int) -> str:
    return json.dumps(
        {
            "PodIdentifier": f"10.1.{endpoint // 250}.{endpoint % 250 + 1}:8000",
            "DeviceTier": "gpu",
            "Speculative": False,
            "HasGroup": False,
            "GroupIdx": 0,
        },
        separators=(",", ":"),
    )


def _used(client: Redis) -> int:
    return int(client.info("memory")["used_memory"])


def measure(pairs: int, lengths: Sequence[int], endpoints: int) -> dict[str, Any]:
    """Measure memory, writes from one client, and lookups, on a Redis of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_redis(Path(folder)) as server,
        Redis.from_url(server.url) as client,
    ):
        index, source = Baseline(client), random.Random(6)
        before, begun = _used(client), time.perf_counter()
        index.add(_draw(source, pairs), [0])
        took = time.perf_counter() - begun
        spread_bytes = (_used(client) - before) / pairs
        before, shared_blocks = _used(client), max(1, pairs // 16 // endpoints)
        index.add(_draw(source, shared_blocks), range(endpoints))
        shared_bytes = (_used(client) - before) / (shared_blocks * endpoints)
        return {
            "pairs": pairs,
            "redis_bytes_per_pair": spread_bytes,
            "redis_bytes_per_holder": shared_bytes,
            "blocks_per_s": pairs / took,
            "lookups": {
                length: _lookup(index, _draw(source, length), endpoints) for length in lengths
            },
        }


def _draw(source: random.Random, blocks: int) -> list[int]:
    return [source.getrandbits(64) for _ in range(blocks)]


def _lookup(index: Baseline, chain: list[int], endpoints: int) -> dict[str, float]:
    length, common = len(chain), len(chain) // 8
    index.add(chain[:common], range(endpoints))
    for deep in range(3):
        index.add(chain[common : length - 7 * deep], [deep])
    times, fetches = [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        found = index.lookup(chain)
        times.append(time.perf_counter() - begun)
        fetches.append(index.fetch_s)
    assert max(found.values()) == length
    p50 = statistics.median(times)
    return {"p50_ms": p50 * 1e3, "fetch_ms": statistics.median(fetches) * 1e3, "per_s": 1 / p50}

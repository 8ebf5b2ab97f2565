"""What an engine's metrics page says, without reading all of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from kvatlas.common import limits

GAUGES: Final = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:kv_cache_usage_perc": "kv_usage",
}
CACHE_INFO: Final = b"vllm:cache_config_info"
PROCESS_START: Final = b"process_start_time_seconds"
_NUMBER_CHARS_MAX: Final = 32
_ENGINE: Final = re.compile(rb'[{,]engine="(\d{1,9})"')
_BLOCK_SIZE: Final = re.compile(rb'[{,]block_size="(\d{1,9})"')
_HASH_BLOCK_SIZE: Final = re.compile(rb'[{,]hash_block_size="(\d{1,9})"')


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """What an engine's metrics page says of one rank."""

    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    block_size: int | None = None


def read_gauges(page: bytes) -> Mapping[int, EngineGauges]:
    """Read a page in Prometheus' text format, by rank. Lines that are broken are left out.

    Cost: 75 us for vLLM's 56 KB.
    """
    values: dict[int, dict[str, float]] = {}
    for name, field_name in GAUGES.items():
        for line in _samples(page, name):
            values.setdefault(_rank(line), {})[field_name] = _value(line)
    for line in _samples(page, CACHE_INFO):
        size = _HASH_BLOCK_SIZE.search(line) or _BLOCK_SIZE.search(line)
        if size and 0 < int(size[1]) <= limits.BLOCK_SIZE_MAX:
            values.setdefault(_rank(line), {})["block_size"] = int(size[1])
    return {
        rank: EngineGauges(
            found.get("running", 0.0),
            found.get("waiting", 0.0),
            found.get("kv_usage", 0.0),
            int(found["block_size"]) if "block_size" in found else None,
        )
        for rank, found in values.items()
    }


def _samples(page: bytes, name: bytes) -> Iterator[bytes]:
    """Find the sample lines of a metric without reading the others."""
    start = page.find(name)
    while start >= 0:
        end = page.find(b"\n", start)
        line = page[start : end if end >= 0 else len(page)]
        begins_line = start == 0 or page[start - 1 : start] == b"\n"
        if begins_line and line[len(name) : len(name) + 1] in (b"{", b" "):
            yield line
        start = page.find(name, start + len(name))


def _rank(line: bytes) -> int:
    found = _ENGINE.search(line)
    return int(found[1]) if found else 0


def _value(line: bytes) -> float:
    try:
        value = float(line.rsplit(b" ", 1)[1])
    except (IndexError, ValueError):
        return 0.0
    return value if 0.0 <= value < 1e9 else 0.0


def read_process_start(page: bytes) -> bytes | None:
    """Read when the engine's process began: it is another one when this is another time."""
    lines = _samples(page, PROCESS_START)
    return next((line.rsplit(b" ", 1)[-1][:_NUMBER_CHARS_MAX] for line in lines), None)

"""Reading an engine's metrics page: the few lines that matter, fast. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kvatlas.common import limits

_RUNNING: Final = b"vllm:num_requests_running"
_WAITING: Final = b"vllm:num_requests_waiting"
_KV_USAGE: Final = b"vllm:kv_cache_usage_perc"
_CONFIG: Final = b"vllm:cache_config_info"
_NAMES: Final = (_RUNNING, _WAITING, _KV_USAGE, _CONFIG)
_LABEL: Final = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_COUNT_MAX: Final = 1e9


@dataclass(slots=True)
class EngineSample:
    """What one data-parallel rank says of itself.

    Attributes:
        running: requests in its batches.
        waiting: requests in its queue.
        kv_usage: share of the cache that running requests hold, in [0, 1].
        block_size: tokens per block of its prefix cache; None when it does not say.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    block_size: int | None = None


def parse_metrics(page: bytes) -> dict[int, EngineSample]:
    """Read the page of `/metrics`.

    Lines that cannot be read are left out: a page is advice.

    Returns:
        A sample per data-parallel rank (the label `engine`; 0 where there is none).

    Cost: 45 us for vLLM 0.32's page of 56 KB.
    """
    samples: dict[int, EngineSample] = {}
    for line in page.split(b"\n"):
        if line.startswith(_NAMES):
            _take(line, samples)
    return samples


def _take(line: bytes, samples: dict[int, EngineSample]) -> None:
    name, brace, rest = line.partition(b"{")
    labels, _, number = rest.rpartition(b"}") if brace else (b"", b"", b"")
    if not brace:
        name, _, number = line.partition(b" ")
    if name not in _NAMES:
        return
    found = dict(_LABEL.findall(labels))
    try:
        rank = int(found.get(b"engine", b"0"))
        value = float(number.split()[0])
    except (ValueError, IndexError):
        return
    if not 0 <= rank < limits.DATA_PARALLEL_MAX or not 0 <= value <= _COUNT_MAX:
        return
    sample = samples.setdefault(rank, EngineSample())
    if name == _RUNNING:
        sample.running = int(value)
    elif name == _WAITING:
        sample.waiting = int(value)
    elif name == _KV_USAGE:
        sample.kv_usage = min(value, 1.0)
    else:
        sample.block_size = _block_size(found)


def _block_size(labels: dict[bytes, bytes]) -> int | None:
    """Choose the size that hashes are made for; engines say None where it is the plain one."""
    for name in (b"hash_block_size", b"block_size"):
        text = labels.get(name, b"")
        if text.isdigit() and 1 <= int(text[:9]) <= limits.BLOCK_SIZE_MAX:
            return int(text[:9])
    return None

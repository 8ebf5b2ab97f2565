"""T7, caches on a prompt's way: exact keys, bounded in bytes, whatever text comes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.prompt import demo_model_path
from kvatlas.common.prompt.backends import Fastokens, Tokenizers
from kvatlas.router.render_service import PromptCache
from tests.chaos.conftest import Report
from tests.fakes.chaos_place import Scale

PROCESS_MB_MAX = 700
"""What the issue allows a router with one model; this is its tokenizer's process."""
ROUTER_MB = 60
"""What a router takes beside: aiohttp, Redis, metrics, and what is under way."""
BOUND = 200_000


def new_texts(count: int) -> list[str]:
    """Write chats of words that never come twice."""
    chance = random.Random(3)
    words = ["".join(chance.choices("abcdefghijklmnop", k=9)) for _ in range(20 * count)]
    turns = [" ".join(words[n * 20 : n * 20 + 20]) for n in range(count)]
    return [f"<|im_start|>user\n{turn}<|im_end|>" for turn in turns]


def test_t7_segments_are_bounded_in_bytes_and_exact() -> None:
    """Both libraries keep within their bound, and cached ids are those of encoding anew."""
    path = demo_model_path() / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    ours, plain = Tokenizers(library, cache_bytes=BOUND), Tokenizers(library, cache_bytes=0)
    fast = Fastokens(path.read_text(encoding="utf-8"), cache_bytes=BOUND)
    texts = new_texts(2_000)
    for text in [*texts, *texts[:100]]:
        for backend in (ours, fast):
            backend.encode([text], add_special_tokens=False)
    assert ours._cache is not None
    assert 0 < ours._cache.bytes_used <= BOUND
    stats = fast._tokenizer.segment_cache_stats()
    assert 0 < stats["bytes"] <= BOUND
    wanted = plain.encode(texts[-50:], add_special_tokens=False)
    for backend in (ours, fast):
        assert list(map(list, backend.encode(texts[-50:], add_special_tokens=False))) == wanted
    Report("T7", "chats that never come twice", f"segment caches within {BOUND} bytes").tell()


def test_t7_rendered_prompts_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of render services keeps to its bytes; its keys are SHA-256."""
    monkeypatch.setattr(limits, "RENDER_CACHE_BYTES_MAX", BOUND)
    cache = PromptCache(monotonic)
    for number in range(1_000):
        cache.put(number.to_bytes(32, "big"), (array("I", range(1_000)),))
    held = [n for n in range(1_000) if cache.get(n.to_bytes(32, "big")) is not None]
    assert 0 < len(held) <= BOUND // 4_000
    assert held[-1] == 999


def measured(folder: Path, millions: float) -> dict[str, Any]:
    """Tokenize text that never repeats in a process of its own; give what it told."""
    line = [sys.executable, "-m", "tests.fakes.prompt_memory", str(folder), "2", str(millions)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.timeout(120)
def test_t7_memory_is_flat_after_warm_up(scale: Scale, shared: Path) -> None:
    """Qwen3's tokenizer on new text for ever: within the bound, and at the end not growing."""
    millions = 60.0 if scale.is_full else 4.0
    told = measured(shared / "data/models/qwen3", millions)
    seen = told["resident_mb"]
    assert told["kind"] == "fastokens"
    assert max(seen) + ROUTER_MB <= PROCESS_MB_MAX, seen
    if scale.is_full:
        assert seen[-1] - seen[-3] <= 0.02 * seen[-1], seen
    Report(
        "T7",
        f"{millions:.0f} M characters of new words, Qwen3's tokenizer",
        f"{seen[0]} MB loaded, {seen[-1]} MB at the end ({seen[-3]} MB two tenths before)",
    ).tell()

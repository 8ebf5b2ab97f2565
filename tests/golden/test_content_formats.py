"""Templates at random, and what vLLM 0.32 took their contents to be: we take them for the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from kvatlas.common.prompt.template import ChatTemplate

CASES = Path(__file__).resolve().parent / "content_formats.jsonl"


def test_content_formats_are_the_engines() -> None:
    """Each of 300 templates, half of them for parts, is told apart as the engine does it."""
    seen: Counter[str] = Counter()
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        template = ChatTemplate.compile(case["template"], "test")
        assert template.content_format == case["format"], case["template"]
        seen[case["format"]] += 1
    assert min(seen["openai"], seen["string"]) >= 150

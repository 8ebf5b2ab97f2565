"""What vLLM 0.32's render endpoint made of 1,300 odd requests, against what we make of them.

`rendered_cases.jsonl` was recorded from a real render server (Qwen3's tokenizer, 32,768 tokens,
a tool parser) with the three templates beside it, which print whatever they are given. A case has
the text by template (null where that one refused it), or the status.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from kvatlas.common.errors import KvatlasError
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder
from kvatlas.common.prompt.chat import ChatRenderer
from kvatlas.common.prompt.special_tokens import SpecialTokens
from kvatlas.common.prompt.template import ChatTemplate
from kvatlas.common.settings import ModelSettings

HERE = Path(__file__).resolve().parent
MAX_MODEL_LEN = 32_768
TEMPLATES = ("string", "parts", "developer")
FALLBACKS_MAX = 49
"""Requests that vLLM accepts and that we leave to it: texts that are numbers, `tokenize`, ..."""

Case = dict[str, Any]


def cases() -> Iterator[Case]:
    """Read the cases as the router would: with the same JSON reader."""
    for line in (HERE / "rendered_cases.jsonl").read_bytes().splitlines():
        yield orjson.loads(line)


@pytest.fixture(scope="module")
def renderers() -> dict[str, ChatRenderer]:
    """Load the three templates."""
    return {name: renderer(name) for name in TEMPLATES}


def renderer(name: str) -> ChatRenderer:
    """Make a renderer like the one that was recorded."""
    source = (HERE / f"printed_{name}.jinja").read_text(encoding="utf-8")
    return ChatRenderer(
        templates={"default": ChatTemplate.compile(source, name)},
        special_tokens=SpecialTokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
        max_model_len=MAX_MODEL_LEN,
    )


@cache
def completions() -> PromptBuilder:
    """Load a model whose completions are read; its tokenizer is another than the recorded one."""
    return PromptBuilder.load(
        ModelSettings(name="m", tokenizer="demo", max_model_len=MAX_MODEL_LEN)
    )


def ours(case: Case, chat: ChatRenderer) -> str | None:
    """Render a case; None where we fall back."""
    try:
        if case["path"] == CHAT_PATH:
            return chat.render(case["body"]).texts[0]
        completions().tokenize(completions().prepare(case["path"], case["body"]))
    except KvatlasError:
        return None
    return "a completion"


def test_texts_are_those_that_vllm_tokenized(renderers: dict[str, ChatRenderer]) -> None:
    """Whatever vLLM accepted is rendered to its text, or left to it; hardly ever the latter."""
    wrong, fallbacks = [], []
    for case in cases():
        for name, theirs in case.get("texts", {}).items():
            text = ours(case, renderers[name])
            if text is None and theirs is not None:
                fallbacks.append(case["name"])
            elif text != theirs:
                wrong.append((case["name"], name, theirs, text))
    assert wrong == []
    assert len(set(fallbacks)) <= FALLBACKS_MAX, sorted(set(fallbacks))


def test_what_vllm_refused_has_no_text(renderers: dict[str, ChatRenderer]) -> None:
    """A request that vLLM answered with an error gets a fallback, with every template."""
    refused = [case for case in cases() if case.get("status", 200) >= 400]
    assert len(refused) > 400
    rendered = [
        case["name"]
        for case in refused
        for chat in renderers.values()
        if ours(case, chat) is not None
    ]
    assert rendered == []


def test_cases_are_told_apart() -> None:
    """No two cases share a name, so that a failure names one request."""
    names = [json.dumps(case["name"]) for case in cases()]
    assert len(names) == len(set(names)) > 1_000

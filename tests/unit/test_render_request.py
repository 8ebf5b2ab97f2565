"""What a render service is asked, and what its answers are worth."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH
from kvatlas.router.render_request import read_render, render_request

MODEL = ModelName("base")
CHAT: dict[str, Any] = {"model": "adapter", "messages": [{"role": "user", "content": "x"}]}


def why(api: Any, path: str, content: bytes) -> str:
    """Give the reason why an answer is none."""
    with pytest.raises(PromptUnavailable) as raised:
        read_render(api, path, content)
    return raised.value.reason


def test_the_base_model_is_asked_and_unknown_fields_go_along() -> None:
    """What decides no token is left out; a model's own renderer may read what nobody knows."""
    body = {**CHAT, "stream": True, "cache_salt": "s", "new_field": {"b": 1, "a": 2}}
    path, content = render_request("render", CHAT_PATH, MODEL, body)
    assert path == "/v1/chat/completions/render"
    expected = {"messages": CHAT["messages"], "new_field": {"b": 1, "a": 2}, "model": "base"}
    assert orjson.loads(content) == expected


def test_the_order_of_fields_makes_no_other_question() -> None:
    """But the order within them does: templates print objects as they come."""
    tools = [{"b": 1, "a": 2}]
    one = render_request("render", CHAT_PATH, MODEL, {"tools": tools, **CHAT})
    two = render_request("render", CHAT_PATH, MODEL, {**CHAT, "tools": tools})
    other = render_request("render", CHAT_PATH, MODEL, {**CHAT, "tools": [{"a": 2, "b": 1}]})
    assert one == two != other


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("\ud800", "encoding"),
        ([{"type": "text", "text": "x"}, {"type": "image_url"}], "multimodal"),
    ],
)
def test_what_cannot_be_asked(content: Any, reason: str) -> None:
    """Lone surrogates are no UTF-8, images have identities that are not known here."""
    body = {**CHAT, "messages": [*CHAT["messages"], {"role": "user", "content": content}]}
    with pytest.raises(PromptUnavailable, match=reason):
        render_request("render", CHAT_PATH, MODEL, body)


def test_parts_of_text_can_be_asked() -> None:
    """Of every kind, and parts that are no objects are the service's to refuse."""
    parts = [{"type": "text"}, {"type": "thinking"}, {"text": "x"}, "bare"]
    body = {**CHAT, "messages": [{"role": "user", "content": parts}, "no message"]}
    assert render_request("render", CHAT_PATH, MODEL, body)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"[1]", b'[{"token_ids": [1]}, 7]', b'[{"token_ids": []}]']
)
def test_answers_to_completions_are_lists_of_results(content: bytes) -> None:
    """Anything else is no answer."""
    assert why("render", COMPLETIONS_PATH, content) == "render_answer"


def test_answers_are_told_apart_by_the_way_of_asking() -> None:
    """Each has its own name for token ids."""
    assert [list(ids) for ids in read_render("render", CHAT_PATH, b'{"token_ids": [1]}')] == [[1]]
    assert [list(i) for i in read_render("tokenize", COMPLETIONS_PATH, b'{"tokens": [2]}')] == [[2]]
    assert why("tokenize", CHAT_PATH, b'{"token_ids": [1]}') == "render_answer"

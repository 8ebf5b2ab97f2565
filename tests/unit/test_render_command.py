"""`kvatlas render`: one answer per line, whatever the line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvatlas.cli.render import render_lines
from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings, Settings

DEMO = ModelSettings(name="demo", tokenizer=str(demo_model_path()))


def answers(*lines: Any, models: tuple[ModelSettings, ...] = (DEMO,)) -> list[dict[str, Any]]:
    """Render lines, given as text or as what is to be written as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return [json.loads(answer) for answer in render_lines(Settings(models=list(models)), texts)]


def test_a_chat_and_a_completion() -> None:
    """Each line gives its token ids and the text that they were made of."""
    builder = PromptBuilder.load(DEMO)
    chat = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    first, second = answers(
        {"path": CHAT_PATH, "body": chat},
        {"path": COMPLETIONS_PATH, "body": {"prompt": [[40, 41], [42]]}},
    )
    assert first["text"] == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"]
    assert first["token_ids"] == [builder.encode_text(first["text"][0], add_special_tokens=False)]
    assert first["fallback"] is None
    assert second["token_ids"] == [[40, 41], [42]]
    assert second["text"] == [builder.decode([40, 41]), builder.decode([42])]


@pytest.mark.parametrize(
    ("line", "fallback"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ("{}", "malformed"),
        ("[" * 100_000, "malformed"),
        ({"path": "/v1/embeddings", "body": {}}, "malformed"),
        ({"path": [], "body": {}}, "malformed"),
        ({"path": CHAT_PATH, "body": []}, "malformed"),
        ({"path": CHAT_PATH, "body": {"model": "other"}}, "model_not_found"),
        ({"path": CHAT_PATH, "body": {"model": 7}}, "invalid_request"),
        ({"path": CHAT_PATH, "body": {"messages": 7}}, "invalid_request"),
        ({"path": CHAT_PATH, "body": {"messages": []}}, "refused"),
    ],
)
def test_lines_without_token_ids(line: Any, fallback: str) -> None:
    """A line that cannot be rendered says why, and the next one is rendered all the same."""
    good = {"path": COMPLETIONS_PATH, "body": {"prompt": "x"}}
    first, second = answers(line, good)
    assert first == {"token_ids": [], "text": [], "fallback": fallback}
    assert second["fallback"] is None


def test_empty_lines_are_skipped() -> None:
    """Nothing in, nothing out."""
    assert answers("", "  \n") == []


def test_several_models_need_a_name() -> None:
    """A body without a model is only clear where there is one model."""
    two = (DEMO, DEMO.model_copy(update={"name": "twin"}))
    body = {"prompt": "x"}
    nameless, named = answers(
        {"path": COMPLETIONS_PATH, "body": body},
        {"path": COMPLETIONS_PATH, "body": {**body, "model": "twin"}},
        models=two,
    )
    assert nameless["fallback"] == "invalid_request"
    assert named["fallback"] is None


def test_no_models() -> None:
    """Without a model there is nothing to render for."""
    with pytest.raises(ConfigError):
        answers("x", models=())

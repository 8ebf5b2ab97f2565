"""`kvatlas render`: one answer per line, whatever the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvatlas.cli.console import read_lines
from kvatlas.cli.render import render_lines
from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings, Settings

DEMO = ModelSettings(name="demo", tokenizer=str(demo_model_path()))


def answers(*lines: Any, models: tuple[ModelSettings, ...] = (DEMO,)) -> list[dict[str, Any]]:
    """Render lines, given as they are or as what is to be written as JSON."""
    texts = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    return [json.loads(answer) for answer in render_lines(Settings(models=list(models)), raw)]


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
        (b"\xff\xfe", "malformed"),
        ('{"path": "/v1/completions", "body": {"prompt": "\\ud800"}}', "malformed"),
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


def test_line_ends_and_a_null_for_the_model() -> None:
    """A carriage return before the line feed is white space; null is no name of a model."""
    line = json.dumps({"path": COMPLETIONS_PATH, "body": {"model": None, "prompt": "x"}}) + "\r\n"
    [answer] = answers(line)
    assert answer["fallback"] is None


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    """Line and paragraph separators within a text are part of it, from a file as well."""
    prompt = "a\u2028b\u2029c\x85d"
    request = {"path": COMPLETIONS_PATH, "body": {"prompt": prompt}}
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(request, ensure_ascii=False) + "\n", encoding="utf-8")
    [answer] = map(json.loads, render_lines(Settings(models=[DEMO]), read_lines(file)))
    assert answer["text"] == [prompt]
    with pytest.raises(ConfigError):
        list(read_lines(tmp_path / "nope"))


def test_a_long_line_among_others() -> None:
    """A text beyond our bounds has no ids, and does not keep the next line from its own."""
    huge = {"path": COMPLETIONS_PATH, "body": {"prompt": "x " * limits.PROMPT_CHARS_MAX}}
    first, second = answers(huge, {"path": COMPLETIONS_PATH, "body": {"prompt": ["a", "b"]}})
    assert first["fallback"] == "too_long"
    assert len(second["token_ids"]) == len(second["text"]) == 2

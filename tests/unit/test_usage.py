"""Asking for usage, and reading it from whole answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.router.usage import (
    Unread,
    Usage,
    WholeAnswer,
    asking_options,
    usage_from,
    usage_of_message,
    usage_of_response,
    wish_of,
)


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        ({}, "none"),
        ({"stream_options": None}, "none"),
        ({"stream_options": {}}, "none"),
        ({"stream_options": {"include_usage": False}}, "none"),
        ({"stream_options": {"include_usage": None}}, "none"),
        ({"stream_options": {"continuous_usage_stats": True}}, "none"),
        ({"stream_options": {"include_usage": True}}, "asked"),
        ({"stream_options": {"include_usage": 1}}, "unclear"),
        ({"stream_options": {"continuous_usage_stats": "yes"}}, "unclear"),
        ({"stream_options": []}, "unclear"),
        ({"stream_options": "usage"}, "unclear"),
    ],
)
def test_what_a_client_asks_for(body: dict[str, Any], wish: str) -> None:
    """What is no boolean is for the engine to judge."""
    assert wish_of(body) == wish


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False, "x": 1}, {"include_usage": True, "x": 1}),
        (
            {"continuous_usage_stats": True},
            {"include_usage": True, "continuous_usage_stats": False},
        ),
        (
            {"continuous_usage_stats": None},
            {"include_usage": True, "continuous_usage_stats": None},
        ),
    ],
)
def test_asking_gives_nothing_else(given: dict[str, Any] | None, options: dict[str, Any]) -> None:
    """Statistics in every chunk had no effect without usage, so they must not get one."""
    assert json.loads(asking_options({"stream_options": given})) == options


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": 5}, Usage(5, None)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, Usage(5, None)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}}, Usage(5, None)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}, Usage(5, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4.0}}, Usage(5, None)),
    ],
)
def test_reading_a_usage(value: Any, usage: Usage | None) -> None:
    """Whatever an engine writes there: counts are whole numbers, all else is not told."""
    assert usage_from(value) == usage


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        (None, None),
        ({"prompt_tokens": 5}, None),
        ({"input_tokens": "5"}, None),
        ({"input_tokens": 5}, Usage(5, None)),
        ({"input_tokens": 5, "output_tokens": 2, "input_tokens_details": None}, Usage(5, None, 2)),
        ({"input_tokens": 5, "input_tokens_details": {"cached_tokens": 4}}, Usage(5, 4)),
        ({"input_tokens": 5, "input_tokens_details": {"cached_tokens": None}}, Usage(5, None)),
    ],
)
def test_reading_the_usage_of_a_response(value: Any, usage: Usage | None) -> None:
    """In its own words, by the same rules."""
    assert usage_of_response(value) == usage


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        (None, None),
        ({"prompt_tokens": 5}, None),
        ({"input_tokens": -1}, None),
        ({"input_tokens": 5, "output_tokens": 3}, Usage(5, None, 3)),
        ({"input_tokens": 5, "output_tokens": None, "cache_read_input_tokens": 4}, Usage(9, 4)),
        ({"input_tokens": 5, "cache_read_input_tokens": None}, Usage(5, None)),
        (
            {
                "input_tokens": 5,
                "cache_creation_input_tokens": 2,
                "cache_read_input_tokens": 4,
            },
            Usage(11, 4),
        ),
    ],
)
def test_reading_the_usage_of_a_message(value: Any, usage: Usage | None) -> None:
    """The prompt is all of it: what was cached, what is from here on, and the rest."""
    assert usage_of_message(value) == usage


def test_the_usage_of_a_stream_of_messages_is_the_last_one() -> None:
    """The first event has one as well, which knows of no cache yet."""
    events = (
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":9}}}\n\n'
        b'event: message_delta\ndata: {"delta":{},"usage":{"input_tokens":1,"output_tokens":3,'
        b'"cache_read_input_tokens":8}}\n\nevent: message_stop\ndata: {}\n\n'
    )
    reader = WholeAnswer(usage_of_message)
    for at in range(0, len(events), 11):
        reader.feed(events[at : at + 11])
    reader.end()
    assert reader.usage == Usage(9, 8, 3)


def whole(**fields: Any) -> bytes:
    """Write an answer as vLLM orders it."""
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps({"choices": [{"text": "x" * 100_000}], "usage": usage, **fields}).encode()


@pytest.mark.parametrize("step", [1_000, 7, 1_000_000])
def test_the_usage_at_the_end_is_read_however_the_answer_is_cut(step: int) -> None:
    """Every piece passes at once and as it is."""
    answer = whole(kv_transfer_params=None, metrics={"usage": "no", "deep": {"usage": {}}})
    reader = WholeAnswer()
    for at in range(0, len(answer), step):
        assert reader.feed(answer[at : at + step]) == answer[at : at + step]
        assert reader._kept_bytes <= limits.ANSWER_TAIL_BYTES_MAX + step
    assert reader.end() == b""
    assert reader.usage == Usage(9, 4)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b'{"usage": null}',
        b'{"usage": {"prompt_tokens": 9',
        b'{"usage": {nonsense}}',
        b'{"choices": [{"text": "\\"usage\\": {\\"prompt_tokens\\": 9}"}]}',
    ],
)
def test_answers_without_usage(answer: bytes) -> None:
    """What is not there is not read, nor what a text makes up."""
    reader = WholeAnswer()
    reader.feed(answer)
    reader.end()
    assert reader.usage is None


def test_a_usage_too_far_from_the_end_is_not_read() -> None:
    """Memory is bounded; the answer passes all the same."""
    answer = whole(prompt_token_ids=list(range(10_000)))
    reader = WholeAnswer()
    assert reader.feed(answer) == answer
    reader.end()
    assert reader.usage is None


def test_unread_answers() -> None:
    """Nothing is looked at, nothing held."""
    reader = Unread()
    assert reader.feed(whole()) == whole()
    assert reader.end() == b""
    assert reader.usage is None

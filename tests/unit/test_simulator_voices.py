"""How the simulated engine tells an answer: in Anthropic's words, and as a response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.simulator import messages, responses
from kvatlas.simulator.answers import Choice
from kvatlas.simulator.generation import Answer, FinishReason
from kvatlas.simulator.messages import MessageVoice
from kvatlas.simulator.responses import Keeper, Kept, ResponseVoice


def choice(
    *texts: str, reason: FinishReason = "length", stop: str | None = None, cached: int = 16
) -> Choice:
    """Give a whole answer to a prompt of 40 tokens."""
    answer = Answer(tuple(range(len(texts))), texts, reason, stop)
    return Choice(0, range(40), answer, cached, len(texts))


def sent(whole: Choice, count: int) -> Choice:
    """Give an answer as it was after some tokens."""
    return Choice(whole.index, whole.prompt, whole.answer, whole.cached_tokens, count)


def message_voice(*, tells_cache: bool = True) -> MessageVoice:
    """Give what tells a message."""
    return MessageVoice("msg", "m", 16, tells_cache)


def response_voice(**body: Any) -> ResponseVoice:
    """Give what tells a response."""
    return ResponseVoice("resp", "item", 1, "m", body, 9, 16)


def events(written: bytes) -> list[Any]:
    """Read events; each is named as its type says."""
    told = []
    for event in written.split(b"\n\n")[:-1]:
        name, data = event.split(b"\n")
        told.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + told[-1]["type"].encode()
    return told


@pytest.mark.parametrize(
    ("said", "reason", "sequence"),
    [
        (choice("a"), "max_tokens", None),
        (choice("a", reason="stop"), "end_turn", None),
        (choice("a", reason="stop", stop="b"), "stop_sequence", "b"),
    ],
)
def test_why_a_message_ended(said: Choice, reason: str, sequence: str | None) -> None:
    """A member without a value is not in a whole message, and null in a stream."""
    whole = message_voice().whole([said])
    assert whole["stop_reason"] == reason
    assert whole.get("stop_sequence") == sequence
    assert ("stop_sequence" in whole) == (sequence is not None)
    (last, _) = events(message_voice().ending([said]))
    assert last["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_message_counts_what_was_cached_and_what_is_from_here_on() -> None:
    """Together they are the prompt; without the option only the prompt is told."""
    usage = message_voice().whole([choice("a", "b")])["usage"]
    assert usage == {
        "input_tokens": 8,
        "output_tokens": 2,
        "cache_creation_input_tokens": 16,
        "cache_read_input_tokens": 16,
    }
    silent = message_voice(tells_cache=False).whole([choice("a", "b")])["usage"]
    assert silent == {"input_tokens": 40, "output_tokens": 2}


def test_a_message_in_events() -> None:
    """A token without text has none; the block begins with the first text."""
    voice, whole = message_voice(), choice("", "a", "b")
    assert voice.opening() == b""
    told = [each["type"] for n in (1, 2, 3) for each in events(voice.token(sent(whole, n)))]
    told += [each["type"] for each in events(voice.ending([whole]))]
    assert told == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]


def test_a_response_in_events() -> None:
    """Numbered, with the whole of it first as taken in and last as it is."""
    voice, whole = response_voice(tools=[{"type": "function", "name": "f"}]), choice("a", "b")
    written = voice.opening() + voice.token(sent(whole, 1)) + voice.token(whole)
    told = events(written + voice.ending([whole]))
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    assert [each["type"].removeprefix("response.") for each in told] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    first, last = told[0]["response"], told[-1]["response"]
    assert first.keys() == last.keys()
    assert (first["usage"], first["tool_choice"]) == (None, "auto")
    assert last["output"][0]["content"][0]["text"] == "ab"
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_response_that_ends_by_itself_is_complete() -> None:
    """One without a word has no message."""
    whole = response_voice().whole([choice("a", reason="stop")])
    assert (whole["status"], whole["incomplete_details"]) == ("completed", None)
    assert whole["tool_choice"] == "none"
    voice = response_voice()
    empty = choice("", reason="stop", stop="x")
    assert voice.whole([empty])["output"] == []
    assert events(voice.ending([empty]))[2]["item"]["content"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 1, "messages": []},
        {"model": "m", "max_tokens": 1},
        {"model": "m", "messages": []},
        {"model": "m", "messages": [], "max_tokens": 0},
    ],
)
def test_bodies_that_are_no_messages(body: dict[str, Any]) -> None:
    """Each is the client's fault."""
    with pytest.raises(InvalidRequest):
        messages.read_options(body)


def test_what_is_asked_for() -> None:
    """One answer, as long and until what its own members say."""
    said = {"model": "m", "messages": [], "max_tokens": 3, "stop_sequences": ["x"], "stream": True}
    options = messages.read_options(said)
    assert (options.max_tokens, options.stop, options.choices) == (3, ("x",), 1)
    assert options.stream
    options = responses.read_options({"input": "a", "max_output_tokens": 4, "stop": "y"})
    assert (options.max_tokens, options.stop, options.stream) == (4, ("y",), False)


def test_errors_are_those_of_their_api() -> None:
    """With vLLM's names of kinds."""
    told = messages.error(404, "no")["error"]
    assert told == {"type": "NotFoundError", "message": "no"}
    told = responses.not_found("resp_x")["error"]
    assert (told["param"], told["type"]) == ("response_id", "invalid_request_error")
    assert messages.counted(3)["context_management"] == {"original_input_tokens": 3}


def test_bodies_that_are_no_responses() -> None:
    """An input is needed."""
    with pytest.raises(InvalidRequest):
        responses.read_options({"model": "m"})


def test_what_is_kept_goes_on() -> None:
    """With the later instructions in the place of the earlier ones, and within a bound."""
    kept = Kept([{"role": "system", "content": "old"}, {"role": "user", "content": "a"}], "b")
    later = [{"role": "system", "content": "new"}, {"role": "user", "content": "c"}]
    contents = [each["content"] for each in kept.continued(later)]
    assert contents == ["new", "a", "b", "c"]
    assert [each["content"] for each in kept.continued(later[1:])] == ["a", "b", "c"]
    keeper = Keeper()
    for number in range(limits.ENGINE_RESPONSES_MAX + 1):
        keeper.keep(f"resp_{number}", kept)
    assert keeper.find("resp_0") is None
    assert keeper.find(7) is None
    assert keeper.find("resp_1") is kept

"""Anthropic's Messages in vLLM's JSON: what is asked for, whole answers, events, errors. Pure.

Source: vLLM 0.32, entrypoints/anthropic, and what its server answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvatlas.common.errors import InvalidRequest
from kvatlas.simulator.answers import Choice, Json, error_type, named_event
from kvatlas.simulator.generation import Answer
from kvatlas.simulator.request import Options, plain_options


def read_options(body: dict[str, Any]) -> Options:
    """Check the options of a request.

    Raises:
        InvalidRequest: with the field at fault.
    """
    check_members(body)
    if type(body.get("max_tokens")) is not int:
        raise InvalidRequest("max_tokens: Field required", "body.max_tokens")
    return plain_options(body, limit="max_tokens", stop="stop_sequences")


def check_members(body: dict[str, Any]) -> None:
    """Check what counting and generating need alike.

    Raises:
        InvalidRequest: with the field at fault.
    """
    if not body.get("model"):
        raise InvalidRequest("model: Field required", "body.model")
    if not isinstance(body.get("messages"), list):
        raise InvalidRequest("messages: Field required", "body.messages")


def error(status: int, message: str) -> Json:
    """Write an error."""
    return {"type": "error", "error": {"type": error_type(status), "message": message}}


def counted(tokens: int) -> Json:
    """Write the answer of `count_tokens`."""
    return {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}


@dataclass(slots=True)
class MessageVoice:
    """Tell one answer.

    Attributes:
        block_size: of the cache, whose full blocks count as created.
        tells_cache: whether the usage tells what the cache held.
    """

    id: str
    model: str
    block_size: int
    tells_cache: bool
    _is_open: bool = False

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Write the message; members without a value are left out."""
        (choice,) = choices
        reason, stop = _ending(choice.answer)
        told = self._message([{"type": "text", "text": "".join(choice.answer.texts)}])
        told["stop_reason"] = reason
        if stop is not None:
            told["stop_sequence"] = stop
        return {**told, "usage": self._usage(choice)}

    def opening(self) -> bytes:
        """Write nothing: the first event goes out with the first token."""
        return b""

    def token(self, choice: Choice) -> bytes:
        """Write the events of a token; an empty text has none."""
        before = self._start(choice) if choice.sent == 1 else b""
        text = choice.answer.texts[choice.sent - 1]
        if not text:
            return before
        if not self._is_open:
            block = {"type": "text", "text": ""}
            start = {"type": "content_block_start", "content_block": block, "index": 0}
            before += named_event(start)
            self._is_open = True
        delta = {"type": "text_delta", "text": text}
        return before + named_event({"type": "content_block_delta", "delta": delta, "index": 0})

    def ending(self, choices: Sequence[Choice]) -> bytes:
        """Write why it ended, and the usage."""
        (choice,) = choices
        reason, stop = _ending(choice.answer)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        usage = self._usage(choice)
        last = named_event({"type": "message_delta", "delta": delta, "usage": usage})
        closed = named_event({"type": "content_block_stop", "index": 0}) if self._is_open else b""
        return closed + last + named_event({"type": "message_stop"})

    def _start(self, choice: Choice) -> bytes:
        usage = {"input_tokens": len(choice.prompt), "output_tokens": 0}
        ends = {"stop_reason": None, "stop_sequence": None}
        message = {**self._message([]), **ends, "usage": usage}
        return named_event({"type": "message_start", "message": message})

    def _message(self, content: list[Json]) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.model,
        }

    def _usage(self, choice: Choice) -> Json:
        """Count tokens: those of the cache are no input of this message."""
        tokens, cached = len(choice.prompt), choice.cached_tokens
        if not self.tells_cache:
            return {"input_tokens": tokens, "output_tokens": choice.sent}
        created = tokens // self.block_size * self.block_size - cached
        return {
            "input_tokens": tokens - cached - created,
            "output_tokens": choice.sent,
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": cached,
        }


def _ending(answer: Answer) -> tuple[str, str | None]:
    if answer.finish_reason == "length":
        return "max_tokens", None
    if answer.stop_reason is not None:
        return "stop_sequence", answer.stop_reason
    return "end_turn", None

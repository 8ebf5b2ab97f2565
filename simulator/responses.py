"""OpenAI's Responses in vLLM's JSON: what is asked for, whole ones, events, those kept. Pure.

Source: vLLM 0.32, entrypoints/openai/responses, and what its server answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.simulator.answers import Choice, Json, error, named_event
from kvatlas.simulator.request import Options, plain_options

PREVIOUS: Final = "previous_response_id"
_ECHOED: Final[dict[str, Any]] = {
    "instructions": None, "metadata": None, "parallel_tool_calls": True, "temperature": 1.0,
    "top_p": 1.0, "background": False, "max_tool_calls": None, PREVIOUS: None, "prompt": None,
    "reasoning": None, "service_tier": "auto", "text": None, "truncation": "disabled",
    "user": None, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""Members of a request that its response repeats, with what they are where it has none."""
_MEMBERS: Final = (
    "id", "created_at", "incomplete_details", "instructions", "metadata", "model", "object",
    "output", "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p", "background",
    "max_output_tokens", "max_tool_calls", PREVIOUS, "prompt", "reasoning", "service_tier",
    "status", "text", "top_logprobs", "truncation", "usage", "user", "presence_penalty",
    "frequency_penalty", "kv_transfer_params", "ec_transfer_params", "input_messages",
    "output_messages",
)  # fmt: skip
"""Those of a response, in vLLM's order."""
_OF_A_TOOL: Final = (
    "name", "parameters", "strict", "type", "allowed_callers", "async", "defer_loading",
    "description", "output_schema",
)  # fmt: skip


def read_options(body: dict[str, Any]) -> Options:
    """Check the options of a request.

    Raises:
        InvalidRequest: with the field at fault.
    """
    if not isinstance(body.get("input"), str | list):
        raise InvalidRequest("input: Field required", "body.input")
    return plain_options(body, limit="max_output_tokens", stop="stop")


def not_found(previous: Any) -> Json:
    """Write the error for a response that is not kept here."""
    message = f"Response with id '{previous}' not found."
    return error(404, message, "response_id", "invalid_request_error")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a later request goes on from.

    Attributes:
        messages: of the chat that the request became.
        text: of the answer.
    """

    messages: list[Any]
    text: str

    def continued(self, messages: list[Any]) -> list[Any]:
        """Put the messages of a later request behind; its instructions replace the earlier ones."""
        own = [each for each in messages[:1] if each["role"] == "system"]
        earlier = [each for each in self.messages if each["role"] != "system"]
        said = [{"role": "assistant", "content": self.text}]
        return [*own, *earlier, *said, *messages[len(own) :]]


class Keeper:
    """Keep responses, the latest ones: vLLM keeps all, until its memory is full."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def find(self, response_id: Any) -> Kept | None:
        """Find what was kept."""
        return self._kept.get(response_id) if isinstance(response_id, str) else None

    def keep(self, response_id: str, kept: Kept) -> None:
        """Keep a response."""
        self._kept[response_id] = kept
        if len(self._kept) > limits.ENGINE_RESPONSES_MAX:
            self._kept.popitem(last=False)


@dataclass(slots=True)
class ResponseVoice:
    """Tell one answer.

    Attributes:
        item_id: of the message in it.
        body: of the request.
        max_tokens: of the answer.
        block_size: of the cache, whose full blocks count as written.
    """

    id: str
    item_id: str
    created: int
    model: str
    body: dict[str, Any]
    max_tokens: int
    block_size: int
    text: str = ""
    _number: int = field(default=0)

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Write the response."""
        (choice,) = choices
        self.text = "".join(choice.answer.texts)
        is_cut = choice.answer.finish_reason == "length"
        output = [self._item("completed", [self._part(None)])] if self.text else []
        told = self._response("incomplete" if is_cut else "completed", output, self._usage(choice))
        if is_cut:
            told["incomplete_details"] = {"reason": "max_output_tokens"}
        return told

    def opening(self) -> bytes:
        """Write that it was taken in: before anything is computed."""
        response = self._response("in_progress", [], None)
        events = ("response.created", "response.in_progress")
        return b"".join(self._event(kind, response=response) for kind in events)

    def token(self, choice: Choice) -> bytes:
        """Write the delta of a token, behind the beginning of the message."""
        before = b""
        if choice.sent == 1:
            item = self._item("in_progress", [])
            before = self._event("response.output_item.added", item=item, output_index=0)
            before += self._of_part("response.content_part.added", part=self._part([]))
        text = choice.answer.texts[choice.sent - 1]
        self.text += text
        return before + self._of_part("response.output_text.delta", delta=text, logprobs=[])

    def ending(self, choices: Sequence[Choice]) -> bytes:
        """Write the ends of part and message, and the response as a whole."""
        item = self._item("completed", [self._part(None)] if self.text else [])
        told = self._of_part("response.output_text.done", text=self.text, logprobs=[])
        told += self._of_part("response.content_part.done", part=self._part(None))
        told += self._event("response.output_item.done", item=item, output_index=0)
        return told + self._event("response.completed", response=self.whole(choices))

    def _of_part(self, kind: str, **members: Any) -> bytes:
        where = {"content_index": 0, "output_index": 0, "item_id": self.item_id}
        return self._event(kind, **where, **members)

    def _event(self, kind: str, **members: Any) -> bytes:
        content = {**members, "sequence_number": self._number, "type": kind}
        self._number += 1
        return named_event(content)

    def _part(self, logprobs: list[Any] | None) -> Json:
        """Write the text so far."""
        text = {"annotations": [], "text": self.text, "type": "output_text"}
        return {**text, "logprobs": logprobs}

    def _item(self, status: str, content: list[Json]) -> Json:
        said = {"role": "assistant", "status": status, "type": "message", "phase": None}
        return {"id": self.item_id, "content": content, **said}

    def _response(self, status: str, output: list[Json], usage: Json | None) -> Json:
        given = {name: self.body.get(name) for name in _ECHOED if self.body.get(name) is not None}
        tools = [_tool(tool) for tool in self.body.get("tools") or []]
        choice = self.body.get("tool_choice", "auto") if tools else "none"
        told = {
            **_ECHOED,
            **given,
            "id": self.id,
            "created_at": self.created,
            "model": self.model,
            "object": "response",
            "output": output,
            "tool_choice": choice,
            "tools": tools,
            "max_output_tokens": self.max_tokens,
            "status": status,
            "usage": usage,
        }
        return {name: told.get(name) for name in _MEMBERS}

    def _usage(self, choice: Choice) -> Json:
        """Count tokens; unlike other answers a response always tells of the cache."""
        tokens, cached = len(choice.prompt), choice.cached_tokens
        return {
            "input_tokens": tokens,
            "input_tokens_details": {
                "cached_tokens": cached,
                "cache_write_tokens": tokens // self.block_size * self.block_size - cached,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": choice.sent,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": tokens + choice.sent,
        }


def _tool(tool: Json) -> Json:
    return {name: tool.get(name) for name in _OF_A_TOOL}

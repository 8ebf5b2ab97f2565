"""Answers in vLLM's JSON: whole ones, chunks of a stream, usage and errors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from kvatlas.simulator.generation import Answer

Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"

_ERROR_TYPES = {
    400: "BadRequestError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to one prompt.

    Attributes:
        index: its number in the request, over all prompts.
        prompt: token ids of its prompt.
        cached_tokens: how many of them were found in the cache.
        sent: tokens generated so far.
    """

    index: int
    prompt: Sequence[int]
    answer: Answer
    cached_tokens: int
    sent: int


@dataclass(frozen=True, slots=True)
class Report:
    """What is said of tokens, and where.

    Attributes:
        at_end: with a chunk of its own at the end of a stream.
        in_chunks: with every chunk of a stream.
        details: with the cached tokens among them.
    """

    at_end: bool
    in_chunks: bool
    details: bool


class Voice(Protocol):
    """The words of one API in which an answer is told, whole or piece by piece."""

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Write the answer of a request without `stream`."""

    def opening(self) -> bytes:
        """Write what a stream begins with, before anything is computed."""

    def token(self, choice: Choice) -> bytes:
        """Write what the token that was generated last brings."""

    def ending(self, choices: Sequence[Choice]) -> bytes:
        """Write what a stream ends with."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of an answer in OpenAI's words for chats and completions have in common.

    Attributes:
        samples: answers to each prompt.
        fingerprint: on a whole answer; in a stream on the chunk with the usage, and where there
            is none on the last chunk of each choice.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    chat: bool
    token_ids: bool
    report: Report
    samples: int

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Write the answer to a request that is not streamed."""
        answer: Json = {
            "id": self.id,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._whole_choice(choice) for choice in choices],
            "system_fingerprint": self.fingerprint,
            "usage": self._usage(choices, choices[-1].cached_tokens),
            "kv_transfer_params": None,
        }
        if self.chat:
            answer["prompt_logprobs"] = None
            answer["prompt_token_ids"] = list(choices[0].prompt) if self.token_ids else None
        return answer

    def opening(self) -> bytes:
        """Write nothing: the first chunk goes out with the first token."""
        return b""

    def token(self, choice: Choice) -> bytes:
        """Write the chunk of a token, behind the first one of a chat."""
        chunks = [self._token_chunk(choice)]
        if self.chat and choice.sent == 1:
            chunks.insert(0, self._first_chunk(choice))
        return server_sent(map(orjson.dumps, chunks))

    def ending(self, choices: Sequence[Choice]) -> bytes:
        """Write the usage, if it is wanted, and [DONE]."""
        if not self.report.at_end:
            return DONE
        return server_sent([orjson.dumps(self._usage_chunk(choices))]) + DONE

    def _first_chunk(self, choice: Choice) -> Json:
        """Write the chunk of a chat that names the role; it goes out with the first token."""
        entry = {**_choice(choice.index), "delta": {"role": "assistant", "content": ""}}
        chunk = self._chunk([entry])
        if self.report.in_chunks:
            chunk["usage"] = _counts(len(choice.prompt), 0)
        chunk["prompt_token_ids"] = list(choice.prompt) if self.token_ids else None
        return chunk

    def _token_chunk(self, choice: Choice) -> Json:
        """Write the chunk of the token that was generated last."""
        text = choice.answer.texts[choice.sent - 1]
        entry = _choice(choice.index)
        entry |= {"delta": {"content": text}} if self.chat else {"text": text}
        if self.token_ids:
            entry["token_ids"] = [choice.answer.tokens[choice.sent - 1]]
            if not self.chat and choice.sent == 1:
                entry["prompt_token_ids"] = list(choice.prompt)
        is_last = choice.sent == len(choice.answer.tokens)
        if is_last:
            entry |= _ending(choice.answer)
        chunk = self._chunk([entry])
        if self.report.in_chunks:
            chunk["usage"] = _counts(len(choice.prompt), choice.sent)
        if is_last and not self.report.at_end:
            chunk["system_fingerprint"] = self.fingerprint
        return chunk

    def _usage_chunk(self, choices: Sequence[Choice]) -> Json:
        """Write the last chunk of a stream whose client asked for the usage."""
        counted = self._usage(choices, choices[0].cached_tokens)
        return {**self._chunk([]), "usage": counted, "system_fingerprint": self.fingerprint}

    def _usage(self, choices: Sequence[Choice], cached_tokens: int) -> Json:
        """Count tokens: prompts once each, however many answers they get.

        The cached tokens are one sequence's, as with vLLM: a stream tells the first one's, a whole
        answer the last one's.
        """
        counted: Json = _counts(
            sum(len(choice.prompt) for choice in choices[:: self.samples]),
            sum(choice.sent for choice in choices),
        )
        if self.report.details:
            counted["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
        return counted

    def _chunk(self, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _whole_choice(self, choice: Choice) -> Json:
        text = "".join(choice.answer.texts)
        entry = {**_choice(choice.index), **_ending(choice.answer)}
        if self.chat:
            entry["message"] = {"role": "assistant", "content": text, "tool_calls": []}
        else:
            entry["text"] = text
            entry["prompt_token_ids"] = list(choice.prompt) if self.token_ids else None
        entry["token_ids"] = list(choice.answer.tokens) if self.token_ids else None
        return entry


def _counts(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def error_type(status: int) -> str:
    """Give the name of an error's kind."""
    return _ERROR_TYPES.get(status, "InternalServerError")


def error(status: int, message: str, param: str | None, kind: str | None = None) -> Json:
    """Write an error, of the kind that its status names unless another is given."""
    told = {"message": message, "type": kind or error_type(status), "param": param}
    return {"error": {**told, "code": status}}


def model_list(
    model: str, root: str, max_model_len: int, created: int, adapters: Sequence[str] = ()
) -> Json:
    """Write the answer of /v1/models: the model, then its adapters."""
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [],
    }
    loras = [
        {**card, "id": name, "root": f"/adapters/{name}", "parent": model, "max_model_len": None}
        for name in adapters
    ]
    return {"object": "list", "data": [card, *loras]}


def rendered(model: str, token_ids: Sequence[int], cache_salt: str | None, chat: bool) -> Json:  # noqa: FBT001 - one of two kinds
    """Write what a render endpoint answers for one prompt; what nobody reads of it is left out."""
    return {
        "request_id": f"{'chatcmpl' if chat else 'cmpl'}-render",
        "token_ids": list(token_ids),
        "token_offsets": None,
        "features": None,
        "content_parts": None,
        "sampling_params": {},
        "model": model,
        "stream": False,
        "cache_salt": cache_salt,
        "priority": 0,
        "kv_transfer_params": None,
    }


def server_sent(parts: Iterable[bytes]) -> bytes:
    """Write parts of a stream as server-sent events."""
    return b"".join(b"data: " + part + b"\n\n" for part in parts)


def named_event(content: Json) -> bytes:
    """Write an event that is named as its `type` says."""
    kind: str = content["type"]
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(content) + b"\n\n"


def _choice(index: int) -> Json:
    return {"index": index, "logprobs": None, "finish_reason": None}


def _ending(answer: Answer) -> Json:
    return {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}

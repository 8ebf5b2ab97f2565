"""What an engine says of a prompt's tokens: asking for it, and reading it from an answer. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol, TypeGuard, cast

import orjson

from kvatlas.common import limits
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH
from kvatlas.common.records import record

STREAM_OPTIONS: Final = "stream_options"
_OPTION_NAMES: Final = ("include_usage", "continuous_usage_stats")
_NAME: Final = b'"usage"'
_COLON: Final = re.compile(rb"\s*:\s*(?=\{)")

Wish = Literal["none", "asked", "unclear"]
"""Whether a stream's client asked for its usage: no, yes, or in words that the engine judges."""


@record
class Usage:
    """What an engine reports of one request.

    Attributes:
        prompt_tokens: length of its prompt.
        cached_tokens: how many of them it found in its cache; None where it does not tell.
        output_tokens: length of the answer; 0 where it does not tell.
    """

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int = 0


class AnswerReader(Protocol):
    """What sees an answer's bytes on their way to the client.

    Attributes:
        usage: what was read of it so far.
        takes_out: whether the client may get fewer bytes than were read.
    """

    usage: Usage | None
    takes_out: bool

    def feed(self, piece: bytes) -> bytes:
        """Take a piece as it was read; give what the client gets at once."""

    def end(self) -> bytes:
        """Give what was held back, when nothing more comes."""


def usage_from(value: Any) -> Usage | None:
    """Read the `usage` of a chat or completion; None where it is something else."""
    if not isinstance(value, dict):
        return None
    prompt_tokens = value.get("prompt_tokens")
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if not _is_count(prompt_tokens):
        return None
    output = value.get("completion_tokens")
    return Usage(
        prompt_tokens,
        cached if _is_count(cached) else None,
        output if _is_count(output) else 0,
    )


def usage_of_response(value: Any) -> Usage | None:
    """Read the `usage` of a response, alike."""
    if not isinstance(value, dict) or not _is_count(value.get("input_tokens")):
        return None
    details, output = value.get("input_tokens_details"), value.get("output_tokens")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        value["input_tokens"],
        cached if _is_count(cached) else None,
        output if _is_count(output) else 0,
    )


def usage_of_message(value: Any) -> Usage | None:
    """Read the `usage` of a message, alike: what was cached, or is from here on, is told apart."""
    if not isinstance(value, dict) or not _is_count(value.get("input_tokens")):
        return None
    cached, created = value.get("cache_read_input_tokens"), value.get("cache_creation_input_tokens")
    output = value.get("output_tokens")
    parts = (value["input_tokens"], cached, created)
    return Usage(
        sum(part for part in parts if _is_count(part)),
        cached if _is_count(cached) else None,
        output if _is_count(output) else 0,
    )


USAGE_WORDS: Final[Mapping[str, Callable[[Any], Usage | None]]] = {
    CHAT_PATH: usage_from,
    COMPLETIONS_PATH: usage_from,
    MESSAGES_PATH: usage_of_message,
    RESPONSES_PATH: usage_of_response,
}
"""How the usage is read of the answers of a path; of those of all others it is not."""


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def wish_of(body: Mapping[str, Any]) -> Wish:
    """Tell whether the client of a stream asked for its usage."""
    options = body.get(STREAM_OPTIONS)
    if options is None:
        return "none"
    if not isinstance(options, dict) or any(
        not isinstance(options.get(name), bool | None) for name in _OPTION_NAMES
    ):
        return "unclear"
    return "asked" if options.get("include_usage") else "none"


def asking_options(body: Mapping[str, Any]) -> bytes:
    """Write the `stream_options` that ask for the usage, once and at the end.

    Without usage the client's `continuous_usage_stats` had no effect, so it must not get one.
    """
    given = cast("Mapping[str, Any]", body.get(STREAM_OPTIONS) or {})
    options = {**given, "include_usage": True}
    if options.get("continuous_usage_stats"):
        options["continuous_usage_stats"] = False
    return orjson.dumps(options)


class Unread:
    """Pass an answer on without looking at it."""

    __slots__ = ("takes_out", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.takes_out = False

    def feed(self, piece: bytes) -> bytes:
        """Pass a piece on."""
        return piece

    def end(self) -> bytes:
        """Hold nothing back."""
        return b""


class Wrapped:
    """What sees an answer's bytes along with another reader; a base.

    Args:
        inner: the other one.

    Attributes:
        usage: what the other one read.
        takes_out: as it says.
    """

    __slots__ = ("_inner", "takes_out")

    def __init__(self, inner: AnswerReader) -> None:
        self._inner = inner
        self.takes_out = inner.takes_out

    @property
    def usage(self) -> Usage | None:
        """Give what the other reader read."""
        return self._inner.usage

    @usage.setter
    def usage(self, usage: Usage | None) -> None:
        self._inner.usage = usage


class WholeAnswer:
    """Read the usage of an answer from its end, without delaying it.

    Engines write the usage behind the choices, and in streams of messages and responses into one of
    the last events. What stands too far before the end, behind a long `prompt_logprobs` or
    `prompt_token_ids`, is not read.

    Args:
        read: what is a usage in the words of this answer.

    Cost: 0.2 us per piece.
    """

    __slots__ = ("_kept", "_kept_bytes", "_read", "takes_out", "usage")

    def __init__(self, read: Callable[[Any], Usage | None] = usage_from) -> None:
        self._read = read
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self.takes_out = False
        self.usage: Usage | None = None

    def feed(self, piece: bytes) -> bytes:
        """Pass a piece on and remember its end."""
        kept = self._kept
        kept.append(piece[-limits.ANSWER_TAIL_BYTES_MAX :])
        self._kept_bytes += len(kept[-1])
        while self._kept_bytes - len(kept[0]) >= limits.ANSWER_TAIL_BYTES_MAX:
            self._kept_bytes -= len(kept.popleft())
        return piece

    def end(self) -> bytes:
        """Read what there is."""
        self.usage = self._usage_in(b"".join(self._kept))
        self._kept.clear()
        self._kept_bytes = 0
        return b""

    def _usage_in(self, tail: bytes) -> Usage | None:
        end = len(tail)
        while (at := tail.rfind(_NAME, 0, end)) >= 0:
            end = at
            found = _COLON.match(tail, at + len(_NAME))
            if found is None:
                continue
            if (usage := self._read(_object_at(tail, found.end()))) is not None:
                return usage
        return None


def _object_at(raw: bytes, start: int) -> Any:
    """Read the object that begins at `start`; a usage holds no braces in texts."""
    end = start
    while (end := raw.find(b"}", end) + 1) > 0:
        found = raw[start:end]
        if found.count(b"{") == found.count(b"}"):
            try:
                return orjson.loads(found)
            except orjson.JSONDecodeError:
                return None
    return None

"""What a client asks an engine for, checked as vLLM checks it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.common.settings import EngineSettings
from kvatlas.simulator.answers import Report

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"

COMPLETION_TOKENS_DEFAULT = 16
TOKEN_IDS = "prompt_token_ids"  # noqa: S105 - the name of a field


@dataclass(frozen=True, slots=True)
class Options:
    """What of a request decides the answer, besides its prompt.

    Attributes:
        max_tokens: length of the answer, or None if the client does not say.
        choices: answers to each prompt (`n`).
        stop: texts at which an answer ends.
        include_usage: send the usage at the end of a stream.
        continuous_usage: send it with every chunk, too.
        token_ids: send the token ids of prompt and answer.
        announces_hits: announce cached blocks that the prompt hits as if they were stored.
    """

    chat: bool
    max_tokens: int | None
    choices: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    token_ids: bool
    announces_hits: bool


def read_options(path: str, body: dict[str, Any]) -> Options:
    """Check the options of a request.

    Raises:
        InvalidRequest: with the field at fault.
    """
    chat = path == CHAT_PATH
    messages = body.get("messages")
    # With token ids the messages may be none: they are not looked at.
    enough = bool(messages) or handed_over(path, body) is not None
    if chat and not (isinstance(messages, list) and enough):
        raise InvalidRequest("messages: a list with at least one message is needed", "messages")
    stream = _flag(body, "stream")
    stream_options = body.get("stream_options")
    if stream_options is not None and not stream:
        raise InvalidRequest("Stream options can only be defined when `stream=True`.")
    if stream_options is not None and not isinstance(stream_options, dict):
        raise InvalidRequest("stream_options: is not an object", "stream_options")
    include_usage = _flag(stream_options or {}, "include_usage")
    continuous_usage = _flag(stream_options or {}, "continuous_usage_stats")
    return Options(
        chat=chat,
        max_tokens=_max_tokens(body, chat=chat),
        choices=_whole(body, "n", limits.ENGINE_CHOICES_MAX) or 1,
        stop=_stop(body.get("stop")),
        stream=stream,
        include_usage=include_usage,
        continuous_usage=include_usage and continuous_usage,
        token_ids=_flag(body, "return_token_ids"),
        announces_hits=_announces_hits(body),
    )


def plain_options(body: dict[str, Any], *, limit: str, stop: str) -> Options:
    """Read the options of a request for one answer whose API asks for no more.

    Args:
        body: of the request.
        limit: member with the most tokens of the answer.
        stop: member with the texts at which it ends.

    Raises:
        InvalidRequest: with the field at fault.
    """
    return Options(
        chat=True,
        max_tokens=_whole(body, limit, None),
        choices=1,
        stop=_stop(body.get(stop)),
        stream=_flag(body, "stream"),
        include_usage=False,
        continuous_usage=False,
        token_ids=False,
        announces_hits=_announces_hits(body),
    )


def handed_over(path: str, body: dict[str, Any]) -> list[Any] | None:
    """Find token ids that a chat brings with it; what they are is not checked here."""
    params = body.get("kv_transfer_params")
    if path != CHAT_PATH or not isinstance(params, dict) or body.get("echo"):
        return None
    return params.get(TOKEN_IDS)


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    """Give a body as it is rendered where the ids that it brings do not count."""
    params = body.get("kv_transfer_params")
    if not isinstance(params, dict):
        return body
    kept = {name: value for name, value in params.items() if name != TOKEN_IDS}
    return {**body, "kv_transfer_params": kept}


def report_of(options: Options, settings: EngineSettings) -> Report:
    """Decide what is said of tokens in an answer, and where."""
    forced = settings.force_include_usage
    return Report(
        at_end=forced or options.include_usage,
        in_chunks=forced or options.continuous_usage,
        details=settings.prompt_tokens_details,
    )


def checked_ids(ids: Any, vocab_size: int) -> list[int]:
    """Check token ids that were handed over.

    Raises:
        InvalidRequest: they are not a list of known ids, or an empty one.
    """
    if (
        not isinstance(ids, list)
        or not ids
        or any(type(token) is not int or token < 0 for token in ids)
    ):
        raise InvalidRequest(
            f"`kv_transfer_params['{TOKEN_IDS}']` must be a non-empty list of non-negative"
            " integers.",
            f"kv_transfer_params.{TOKEN_IDS}",
        )
    if max(ids) >= vocab_size:
        raise InvalidRequest(
            f"Token id {max(ids)} is out of vocabulary", f"kv_transfer_params.{TOKEN_IDS}"
        )
    return ids


def _announces_hits(body: dict[str, Any]) -> bool:
    xargs = body.get("vllm_xargs")
    return isinstance(xargs, dict) and xargs.get("kv_cache_report_mode") == "full"


def answer_tokens_max(options: Options, prompt: Sequence[int], max_model_len: int) -> int:
    """Decide how long the answer to a prompt may get.

    Raises:
        InvalidRequest: prompt and answer are longer than the model's context.
    """
    room = max_model_len - len(prompt)
    wanted = 1 if options.max_tokens is None else options.max_tokens
    if not prompt:
        raise InvalidRequest("The decoder prompt cannot be empty", "prompt")
    if wanted > room:
        raise InvalidRequest(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested"
            f" {wanted} output tokens and your prompt contains {len(prompt)} input tokens.",
            "messages" if options.chat else "prompt",
        )
    return options.max_tokens or min(room, limits.ENGINE_ANSWER_TOKENS_DEFAULT)


def _max_tokens(body: dict[str, Any], *, chat: bool) -> int | None:
    given = _whole(body, "max_completion_tokens", None) if chat else None
    given = given or _whole(body, "max_tokens", None)
    return given if chat or given else COMPLETION_TOKENS_DEFAULT


def _whole(body: dict[str, Any], name: str, most: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"{name}: must be at least 1", name)
    if most is not None and value > most:
        raise InvalidRequest(f"{name}: must be at most {most}", name)
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name}: is not a boolean", name)
    return value


def _stop(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InvalidRequest("stop: is neither a string nor a list of strings", "stop")
    if len(words) > limits.ENGINE_STOP_WORDS_MAX:
        raise InvalidRequest(f"stop: more than {limits.ENGINE_STOP_WORDS_MAX} texts", "stop")
    return tuple(words)

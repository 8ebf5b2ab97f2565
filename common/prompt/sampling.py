"""Fields that shape no prompt, but for which the engine refuses a request.

Ids for such a request would do no harm: the engine answers 400 whatever is matched. They are
checked so that what is said of a request, by `kvatlas render` and in metrics, is true.
Deliberately absent: what depends on the engine's options (`logprobs` at most, a tool parser).
Source: vLLM 0.32, measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.lax import as_bool, as_float, as_int
from kvatlas.common.prompt.reasons import unavailable

_Check = Callable[[Any], object]
_Checks = Mapping[str, _Check]

_INT64_MAX: Final = 2**63 - 1
_STOP_STRINGS_MAX: Final = 4
_FORMATS: Final = frozenset({"text", "json_object", "json_schema"})


def _is(kind: type, value: Any) -> None:
    if not isinstance(value, kind):
        unavailable("refused")


def _integer(low: int, value: Any) -> None:
    if not low <= as_int(value) <= _INT64_MAX:
        unavailable("refused")


def _number(low: float, high: float, value: Any) -> None:
    if not low <= as_float(value) <= high:
        unavailable("refused")


def _positive_number(high: float, value: Any) -> None:
    if not 0 < as_float(value) <= high:
        unavailable("refused")


def _list(check: _Check, value: Any) -> None:
    _is(list, value)
    for item in value:
        check(item)


def _word(value: Any) -> None:
    if not isinstance(value, str) or not value:
        unavailable("refused")


def _stop(value: Any) -> None:
    words = value if isinstance(value, list) else [value]
    if len(words) > _STOP_STRINGS_MAX:
        unavailable("refused")
    _list(_word, words)


def _biases(value: Any) -> None:
    _is(dict, value)
    for token, bias in value.items():
        as_int(token)
        as_float(bias)


def _extra_arguments(value: Any) -> None:
    _is(dict, value)
    for item in value.values():
        for one in item if isinstance(item, list) else [item]:
            _is(str | int | float, one)  # type: ignore[arg-type]  # isinstance takes unions


def _no_options(value: Any) -> None:
    # Options for media come from clients only where the engine is told to trust them.
    if value != {}:
        unavailable("refused")


def _response_format(value: Any) -> None:
    _is(dict, value)
    kind = value.get("type")
    if kind == "structural_tag":
        unavailable("unsure")
    if not isinstance(kind, str) or kind not in _FORMATS:
        unavailable("refused")
    if kind == "json_schema":
        schema = value.get("json_schema")
        _is(dict, schema)
        _is(str, schema.get("name"))
        _is(dict, schema.get("schema"))


def _stream_options(value: Any) -> None:
    _is(dict, value)
    for name in ("include_usage", "continuous_usage_stats"):
        if value.get(name) is not None:
            as_bool(value[name])


def _one_of(words: tuple[str, ...], value: Any) -> None:
    if value not in words:
        unavailable("refused")


def _structured_outputs(value: Any) -> None:
    _is(dict, value)
    given = [key for key, item in value.items() if item is not None]
    if given == ["structural_tag"]:
        unavailable("unsure")
    constraints = ("json", "regex", "choice", "grammar", "json_object")
    if sum(key in constraints for key in given) != 1:
        unavailable("refused")


def _no_beam_search(value: Any) -> None:
    # Every beam is a request of its own whose prompt grows with each step.
    if as_bool(value):
        unavailable("unsure")


_ANY_INTEGER: Final = partial(_integer, -_INT64_MAX - 1)
_PENALTY: Final = partial(_number, -2, 2)

_NULLABLE: Final[_Checks] = {
    "stream": as_bool,
    "return_token_ids": as_bool,
    "return_tokens_as_token_ids": as_bool,
    "seed": _ANY_INTEGER,
    "top_k": partial(_integer, -1),
    "temperature": partial(_number, 0, 2),
    "top_p": partial(_positive_number, 1),
    "min_p": partial(_number, 0, 1),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "repetition_penalty": partial(_positive_number, float("inf")),
    "prompt_logprobs": partial(_integer, -1),
    "stop": _stop,
    "stop_token_ids": partial(_list, as_int),
    "allowed_token_ids": partial(_list, as_int),
    "logit_bias": _biases,
    "user": partial(_is, str),
    "session_id": partial(_is, str),
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "vllm_xargs": _extra_arguments,
    "kv_transfer_params": partial(_is, dict),
    "ec_transfer_params": partial(_is, dict),
    "mm_processor_kwargs": _no_options,
    "media_io_kwargs": _no_options,
    "stream_options": _stream_options,
    "stream_interval": partial(_integer, 1),
    "thinking_token_budget": partial(_integer, -1),
}
_NEVER_NULL: Final[_Checks] = {
    "use_beam_search": _no_beam_search,
    "include_stop_str_in_output": as_bool,
    "ignore_eos": as_bool,
    "skip_special_tokens": as_bool,
    "spaces_between_special_tokens": as_bool,
    "length_penalty": as_float,
    "min_tokens": partial(_integer, 0),
    "bad_words": partial(_list, _word),
    "priority": _ANY_INTEGER,
    "request_id": partial(_is, str),
    "echo": as_bool,
    "routed_experts_prompt_start": partial(_integer, 0),
    "mm_payload": partial(_one_of, ("tensors", "none")),
}
_CHAT: Final[_Checks] = {
    **_NULLABLE,
    "n": partial(_integer, 1),
    "logprobs": as_bool,
    "top_logprobs": partial(_integer, -1),
    "parallel_tool_calls": as_bool,
    "max_tokens": _ANY_INTEGER,
    "max_completion_tokens": _ANY_INTEGER,
}
_CHAT_NEVER_NULL: Final[_Checks] = {**_NEVER_NULL, "include_reasoning": as_bool}
_COMPLETION: Final[_Checks] = {
    **_NULLABLE,
    "logprobs": partial(_integer, -1),
    "max_tokens": _ANY_INTEGER,
}
_COMPLETION_NEVER_NULL: Final[_Checks] = {**_NEVER_NULL, "n": partial(_integer, 1)}


def check_chat(body: Body) -> None:
    """Check what a chat request says about sampling.

    Raises:
        PromptUnavailable: the engine would refuse it.
    """
    _check(body, _CHAT, _CHAT_NEVER_NULL)
    if body.get("top_logprobs") and not body.get("logprobs"):
        unavailable("refused")


def check_completion(body: Body) -> None:
    """Check what a completion request says about sampling.

    Raises:
        PromptUnavailable: the engine would refuse it.
    """
    _check(body, _COMPLETION, _COMPLETION_NEVER_NULL)


def answer_tokens(body: Body, *, is_chat: bool, max_model_len: int | None) -> int | None:
    """Give the longest answer that a request asks for, None where it leaves that to the engine.

    Raises:
        PromptUnavailable: the engine would refuse it.
    """
    tokens = _answer_tokens(body, is_chat=is_chat)
    bounds = [bound for bound in (tokens, max_model_len) if bound is not None]
    if tokens is not None and tokens > min(bounds):
        unavailable("refused")
    # A prompt takes at least one of the tokens that the model takes.
    least = as_int(body.get("min_tokens", 0)) + (tokens is None)
    if bounds and least > max(min(bounds), 1):
        unavailable("refused")
    return tokens


def _answer_tokens(body: Body, *, is_chat: bool) -> int | None:
    wanted = body.get("max_completion_tokens") if is_chat else None
    if wanted is None:
        wanted = body.get("max_tokens")
    if wanted is None:
        return None if is_chat else _COMPLETION_ANSWER_TOKENS
    tokens = as_int(wanted)
    # A completion that only echoes its prompt needs no answer.
    only_echoes = tokens == 0 and not is_chat and as_bool(body.get("echo", False))
    if tokens < 1 and not only_echoes:
        unavailable("refused")
    return tokens


_COMPLETION_ANSWER_TOKENS: Final = 16


def _check(body: Body, nullable: _Checks, never_null: _Checks) -> None:
    for name, value in body.items():
        check = never_null.get(name) or (None if value is None else nullable.get(name))
        if check is not None:
            check(value)
    if body.get("stream_options") and not body.get("stream"):
        unavailable("refused")
    if body.get("logprob_token_ids") and not body.get("logprobs"):
        unavailable("refused")
    if body.get("stream") and body.get("prompt_logprobs"):
        unavailable("refused")
    # Greedy sampling gives the same answer n times, so the engine gives it once or not at all.
    if as_int(body.get("n") or 1) > 1 and as_float(_or(body.get("temperature"), 1)) == 0:
        unavailable("refused")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value

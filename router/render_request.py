"""What a render service is asked, and what it answers. Pure.

Fields that decide no token are left out, so that a prompt is cached whatever its sampling; fields
that nobody knows are kept, since a model's own renderer may read them. Nested objects keep their
order of keys: templates print tools as they come.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, Final, Literal

import orjson

from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH
from kvatlas.router.engine_answers import read_json, token_ids_of

RenderApi = Literal["render", "tokenize"]
Sequences = tuple["array[int]", ...]

ASKED_FOR: Final = frozenset({
    "own_renderer", "harmony", "no_template", "template_error", "template_refused",
    "template_killed", "template_busy", "unsure", "tokenizer_error", "tokenizer_differs",
})  # fmt: skip
"""Reasons of ours for which the service may know better."""
_NOT_BY_TOKENIZE: Final = frozenset({"harmony"})
"""Of these, those for which `/tokenize` gives other ids than the engine's chats have."""

NO_TOKENS: Final = frozenset({
    "model", "stream", "stream_options", "stream_interval", "n", "best_of", "seed", "user",
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "length_penalty", "repetition_detection", "logit_bias", "logprobs",
    "top_logprobs", "prompt_logprobs", "logprob_token_ids", "max_tokens", "max_completion_tokens",
    "min_tokens", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "bad_words", "allowed_token_ids", "use_beam_search", "skip_special_tokens",
    "spaces_between_special_tokens", "return_token_ids", "return_tokens_as_token_ids",
    "return_token_offsets", "return_prompt_text", "request_id", "session_id", "priority",
    "cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs", "metadata", "store",
    "service_tier", "safety_identifier", "prompt_cache_key", "watermarking", "echo",
})  # fmt: skip

_TOKENIZE_CHAT: Final = frozenset({
    "messages", "tools", "add_generation_prompt", "continue_final_message", "add_special_tokens",
    "chat_template_kwargs",
})  # fmt: skip
_TOKENIZE_TEXT: Final = frozenset({"prompt", "add_special_tokens"})
_NOT_FOR_TOKENIZE: Final = frozenset({
    "reasoning_effort", "documents", "truncate_prompt_tokens", "truncation_side", "suffix",
})  # fmt: skip
"""What `/tokenize` takes without a word and leaves out of account."""
_TEXT_PARTS: Final = frozenset({
    "text", "input_text", "output_text", "refusal", "thinking", "tool_reference",
})  # fmt: skip


def may_be_asked(api: RenderApi, reason: str) -> bool:
    """Tell whether a service may have a prompt that is not to be had here for this reason."""
    return reason in ASKED_FOR and not (api == "tokenize" and reason in _NOT_BY_TOKENIZE)


def render_request(
    api: RenderApi, path: str, model: ModelName, body: Mapping[str, Any]
) -> tuple[str, bytes]:
    """Write the question.

    Args:
        api: what the service is asked with.
        path: of the client's request.
        model: base model; adapters are rendered as it is.
        body: the client's, in which `cache_salt` and the like have been checked.

    Returns:
        Path and body; equal ones have equal answers.

    Raises:
        PromptUnavailable: "render_unsupported", "multimodal" or "encoding".
    """
    if has_media(body):
        raise PromptUnavailable("multimodal")
    asked = {name: body[name] for name in sorted(body) if name not in NO_TOKENS}
    asked["model"] = model
    if api == "tokenize":
        asked = _for_tokenize(path, asked)
    try:
        content = orjson.dumps(asked)
    except orjson.JSONEncodeError:
        raise PromptUnavailable("encoding") from None
    return "/tokenize" if api == "tokenize" else f"{path}/render", content


def has_media(body: Mapping[str, Any]) -> bool:
    """Tell whether a chat holds anything but texts.

    The ids of images and the like are part of a block's identity. Here is where their extra keys
    would begin: from `features.mm_hashes` and `features.mm_placeholders` of a render answer that
    is asked for with `mm_payload: "none"`, into `Prompt` beside `cache_salt`.
    """
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and part.get("type", "text") not in _TEXT_PARTS:
                return True
    return False


def read_render(api: RenderApi, path: str, content: bytes) -> Sequences:
    """Read the answer: the token ids of every prompt of the request.

    Raises:
        PromptUnavailable: "render_answer" where it is none, "multimodal" where it has features.
    """
    answer = read_json(content)
    results = answer if path == COMPLETIONS_PATH and api == "render" else [answer]
    if not isinstance(results, list) or not results:
        raise PromptUnavailable("render_answer")
    return tuple(_token_ids(api, result) for result in results)


def _token_ids(api: RenderApi, result: Any) -> array[int]:
    if not isinstance(result, dict):
        raise PromptUnavailable("render_answer")
    if result.get("features"):
        raise PromptUnavailable("multimodal")
    ids = token_ids_of(result.get("tokens" if api == "tokenize" else "token_ids"))
    if not ids:
        raise PromptUnavailable("render_answer")
    return array("I", ids)


def _for_tokenize(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Keep what `/tokenize` reads, if it reads all that matters."""
    if path in (MESSAGES_PATH, RESPONSES_PATH):
        raise PromptUnavailable("render_unsupported")
    chat = path != COMPLETIONS_PATH
    given = {name for name, value in asked.items() if value is not None}
    if given & _NOT_FOR_TOKENIZE or asked.get("tool_choice") not in (None, "auto"):
        raise PromptUnavailable("render_unsupported")
    if not chat and not isinstance(asked.get("prompt"), str):
        raise PromptUnavailable("render_unsupported")
    names = (_TOKENIZE_CHAT if chat else _TOKENIZE_TEXT) | {"model"}
    return {name: value for name, value in asked.items() if name in names}

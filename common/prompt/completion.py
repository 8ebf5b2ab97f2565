"""A completion brings its text, or its token ids, as they are."""

from __future__ import annotations

from typing import Any

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.common.prompt.fields import Body, cache_salt, check_common, checked_text, flag
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.prompt.rendered import Rendered
from kvatlas.common.prompt.sampling import answer_tokens, check_completion
from kvatlas.common.prompt.truncation import truncation_of


def read_completion(body: Body, *, id_max: int, max_model_len: int | None) -> Rendered:
    """Read the prompts of a completion request.

    Args:
        body: with `prompt` a string, token ids, or a list of either.
        id_max: the largest token id that the engine knows.
        max_model_len: tokens that the engine takes at most, or None if unknown.

    Raises:
        InvalidRequest: a field that is read here has a plainly wrong type.
        PromptUnavailable: the engine would refuse it, or it is beyond our bounds.
    """
    check_common(body)
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list | None):
        raise InvalidRequest("prompt must be a string or an array", "prompt")
    if not prompt or body.get("suffix") is not None:
        unavailable("refused")
    check_completion(body)
    texts, ids = _split(prompt, id_max)
    if sum(map(len, texts)) > limits.PROMPT_CHARS_MAX:
        unavailable("too_long")
    return Rendered(
        texts=texts,
        token_ids=ids,
        add_special_tokens=flag(body, "add_special_tokens", default=True),
        truncation=truncation_of(
            body,
            max_model_len=max_model_len,
            answer_tokens=answer_tokens(body, is_chat=False, max_model_len=max_model_len),
        ),
        cache_salt=cache_salt(body),
    )


def _split(prompt: str | list[Any], id_max: int) -> tuple[tuple[str, ...], tuple[list[int], ...]]:
    """Tell the four forms of a prompt apart: texts, or sequences of ids."""
    if isinstance(prompt, str):
        return (checked_text(prompt),), ()
    if isinstance(prompt[0], int):
        return (), (_ids(prompt, id_max),)
    if len(prompt) > limits.COMPLETION_PROMPTS_MAX:
        unavailable("too_many_prompts")
    if isinstance(prompt[0], str):
        # An empty text is refused where the tokenizer adds nothing to it: see PromptBuilder.
        if not all(isinstance(text, str) for text in prompt):
            unavailable("refused")
        return tuple(map(checked_text, prompt)), ()
    if not all(isinstance(ids, list) and ids for ids in prompt):
        unavailable("refused")
    if sum(map(len, prompt)) > limits.PROMPT_CHARS_MAX:
        unavailable("too_long")
    return (), tuple(_ids(ids, id_max) for ids in prompt)


def _ids(ids: list[Any], id_max: int) -> list[int]:
    if len(ids) > limits.PROMPT_CHARS_MAX:
        unavailable("too_long")
    # A boolean is an int to Python; the engine takes it, but nobody means it.
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > id_max:
        unavailable("refused")
    return ids

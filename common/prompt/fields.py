"""Reading single fields of a body: what the engine would refuse is not rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.prompt.rendered import TruncationSide

Body = Mapping[str, Any]

_SALT_FORBIDDEN = frozenset("@/\\\0")


def check_common(body: Body) -> None:
    """Refuse wrong types in the fields that every route reads.

    Raises:
        InvalidRequest: `model` is no string or `stream` neither a boolean nor null.
        PromptUnavailable: the body brings embeddings.
    """
    if not isinstance(body.get("model", ""), str):
        raise InvalidRequest("model must be a string", "model")
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidRequest("stream must be a boolean or null", "stream")
    if body.get("prompt_embeds") is not None:
        unavailable("prompt_embeds")


def flag(body: Body, name: str, *, default: bool) -> bool:
    """Read a boolean; null is not one for the engine either."""
    value = body.get(name, default)
    if not isinstance(value, bool):
        unavailable("refused")
    return value


def optional_mapping(body: Body, name: str) -> Mapping[str, Any]:
    """Read an object that may be absent or null."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        unavailable("refused")
    return cast("Mapping[str, Any]", value)


def cache_salt(body: Body) -> str | None:
    """Read the salt of the first block's identity within the engine's own bounds."""
    salt = body.get("cache_salt")
    if salt is None:
        return None
    if not isinstance(salt, str) or not 1 <= len(salt) <= limits.CACHE_SALT_CHARS_MAX:
        unavailable("refused")
    if not _SALT_FORBIDDEN.isdisjoint(salt):
        unavailable("refused")
    return checked_text(salt)


def truncation(body: Body, max_model_len: int | None) -> tuple[int | None, TruncationSide]:
    """Read how many tokens to keep and at which end the others go.

    Returns:
        The tokens to keep (None: all of them; -1 in the body means as many as the model takes),
        and the side that is cut, by default the left one.
    """
    side = body.get("truncation_side")
    if side not in (None, "left", "right"):
        unavailable("refused")
    keep = body.get("truncate_prompt_tokens")
    if keep is None:
        return None, side or "left"
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < -1 or keep == 0:
        unavailable("refused")
    if keep == -1:
        return max_model_len, side or "left"
    if max_model_len is not None and keep > max_model_len:
        unavailable("refused")
    return keep, side or "left"


def checked_text(text: str) -> str:
    """Give the text back if it can be tokenized at all.

    Raises:
        PromptUnavailable: it is too long, or holds a lone surrogate.
    """
    if len(text) > limits.PROMPT_CHARS_MAX:
        unavailable("too_long")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            unavailable("encoding")
    return text

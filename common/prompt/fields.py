"""Reading single fields of a body: what the engine would refuse is not rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.common.prompt.lax import as_bool
from kvatlas.common.prompt.reasons import unavailable

Body = Mapping[str, Any]

_SALT_FORBIDDEN = frozenset("@/\\\0")


def check_common(body: Body) -> None:
    """Refuse wrong types in the fields that every route reads.

    Raises:
        InvalidRequest: `model` is neither a string nor null.
        PromptUnavailable: the body brings embeddings.
    """
    if not isinstance(body.get("model"), str | None):
        raise InvalidRequest("model must be a string", "model")
    if body.get("prompt_embeds") not in (None, []):
        unavailable("prompt_embeds")


def flag(body: Body, name: str, *, default: bool) -> bool:
    """Read a boolean; null is not one for the engine either."""
    return as_bool(body.get(name, default))


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

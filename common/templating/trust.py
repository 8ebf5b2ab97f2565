"""Whose templates are rendered in the router's own process. Pure.

A template that comes with a model was written by whoever published the model. It is trusted if it
is one of those that were read and are listed here, or if the operator says so; a file that the
operator names as the template is the operator's own word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final, Literal

EVERY: Final = "all"
Trusted = Literal["all"] | Collection[str]
"""SHA-256 of templates, in hex, or all."""

KNOWN: Final = {
    "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5": "Qwen3",
    "a5e424614f198a59daeba6a5c7ad9d1d79f6190608243c5224279f6cbf00d791": "kvatlas demo",
}
"""Templates that were read, each with the model that it comes with."""


def template_hash(source: str) -> str:
    """Give the SHA-256 of a template's text, in hex."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def is_trusted(digest: str, trusted: Trusted) -> bool:
    """Tell whether a template may be rendered in this process.

    Args:
        digest: of it.
        trusted: what the operator vouches for.
    """
    return trusted == EVERY or digest in KNOWN or digest in trusted

"""The two libraries that tokenize, behind one small interface.

Both read the same tokenizer.json. Neither adds special tokens unless told to, here.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

import fastokens
import tokenizers

from kvatlas.common import limits
from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.prompt.segments import SegmentCache, splitter_of

_T = TypeVar("_T")

Ids = Sequence[int]
"""Token ids; an array of C's unsigned integers where they come as such."""


class Backend(Protocol):
    """What a tokenizer's library does for us; thread-safe."""

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
        """Tokenize each text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Write ids as text, without special tokens and ids that are none."""


class Fastokens:
    """fastokens, with its own cache of the text between added tokens."""

    def __init__(self, source: str, *, cache_bytes: int = limits.SEGMENT_CACHE_BYTES) -> None:
        self._tokenizer = fastokens.Tokenizer.from_json_str(source)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.enable_segment_cache(cache_bytes)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
        """Tokenize each text."""
        written, ends = self._tokenizer.encode_batch_flat(
            list(texts), add_special_tokens=add_special_tokens
        )
        ids = _array("I", written)
        if len(texts) == 1:
            return [ids]
        return [ids[start:end] for start, end in pairwise(_array("Q", ends))]

    def decode(self, ids: Sequence[int]) -> str:
        """Write ids as text, without special tokens and ids that are none."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        """Look up the id of a token, None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


class Tokenizers:
    """Hugging Face's tokenizers, with a cache of ours where text falls into segments."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, cache_bytes: int = limits.SEGMENT_CACHE_BYTES
    ) -> None:
        self._tokenizer = tokenizer
        splitter = splitter_of(tokenizer) if cache_bytes else None
        self._cache = (
            SegmentCache(splitter, self._encode_batch, cache_bytes)
            if splitter is not None
            else None
        )

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
        """Tokenize each text."""
        if self._cache is None or add_special_tokens:
            return list(self._encode_batch(texts, add_special_tokens=add_special_tokens))
        return [self._cache.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Write ids as text, without special tokens and ids that are none."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[list[int]]:
        # Tokenizer.encode holds the GIL for its whole run; this one does not.
        encodings = self._tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]


def _array(kind: str, written: bytes) -> array[int]:
    """Read numbers as fastokens writes them, little-endian."""
    numbers = array(kind)
    numbers.frombytes(written)
    if sys.byteorder != "little":
        numbers.byteswap()
    return numbers


def guarded(work: Callable[[], _T]) -> _T:
    """Turn whatever a Rust library raises, its panics included, into PromptUnavailable."""
    try:
        return work()
    except Exception as error:
        raise PromptUnavailable("tokenizer_error") from error
    except BaseException as error:
        # pyo3 derives panics from BaseException, and exports no class to name here.
        if type(error).__name__ != "PanicException":
            raise
        raise PromptUnavailable("tokenizer_error") from error

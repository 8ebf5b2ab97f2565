"""Text becomes token ids: `fastokens` where it is proven to agree, else `tokenizers`.

Both read the same tokenizer.json. fastokens is about a hundred times faster, but it is young and
supports fewer tokenizers: it is used only if it loads and gives the same ids as `tokenizers` on
the corpus of `corpus.py`.

A trap that no corpus shows: transformers 5 builds normalizer and pre-tokenizer of some classes
from code instead of reading them from tokenizer.json. Where an engine's ids differ, export the
file once with the engine's own transformers (`AutoTokenizer.from_pretrained(d).backend_tokenizer
.save("tokenizer.json")`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import fastokens
import tokenizers

from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.log import logger
from kvatlas.common.prompt.corpus import CORPUS
from kvatlas.common.prompt.rendered import TruncationSide

TokenizerKind = Literal["fastokens", "tokenizers"]
_LOG = logger("prompt")
_T = TypeVar("_T")


class _Backend(Protocol):
    """What both libraries can do. Neither adds special tokens unless told to, here."""

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class _Fastokens:
    def __init__(self, source: str) -> None:
        self._tokenizer = fastokens.Tokenizer.from_json_str(source)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        encode = self._tokenizer.encode
        return [encode(text, add_special_tokens=add_special_tokens).ids for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class _Tokenizers:
    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        # Tokenizer.encode holds the GIL for its whole run; this one does not.
        encodings = self._tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer of one model; thread-safe.

    Attributes:
        kind: the library that does the work.
        vocab_size: ids that the tokenizer can give, added tokens included.
    """

    kind: TokenizerKind
    vocab_size: int
    _backend: _Backend
    _token_to_id: Callable[[str], int | None]
    _prefix: int
    _suffix: int

    @classmethod
    def from_json(cls, source: str, where: str) -> Tokenizer:
        """Load tokenizer.json.

        Args:
            source: its content.
            where: its path, for the error.

        Raises:
            ConfigError: it is not one.

        Cost: about a second for 150,000 tokens, most of it spent by `tokenizers`.
        """
        try:
            reference = guarded(lambda: tokenizers.Tokenizer.from_str(source))
        except PromptUnavailable:
            raise ConfigError([f"{where}: is not a tokenizer.json"]) from None
        reference.no_truncation()
        reference.no_padding()
        slow = _Tokenizers(reference)
        fast = _agreeing_fastokens(source, slow)
        prefix, suffix = _special_margins(slow)
        return cls(
            kind="fastokens" if fast else "tokenizers",
            vocab_size=reference.get_vocab_size(with_added_tokens=True),
            _backend=fast or slow,
            _token_to_id=reference.token_to_id,
            _prefix=prefix,
            _suffix=suffix,
        )

    def id_of(self, token: str) -> int | None:
        """Look up the id of a token, None if there is none."""
        return self._token_to_id(token)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Tokenize. Special tokens that are written out in a text become their ids.

        Raises:
            PromptUnavailable: the library failed.

        Cost: with fastokens 0.05 ms for 1,000 tokens and 1.7 ms for 90,000, else 1.8 ms and
        200 to 280 ms. Both let other threads run meanwhile.
        """
        return guarded(lambda: self._backend.encode(texts, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int]) -> str:
        """Write token ids as text, without special tokens and ids that are none.

        Raises:
            PromptUnavailable: the library failed.
        """
        return guarded(lambda: self._backend.decode(ids))

    def truncated(
        self, ids: list[int], keep: int, side: TruncationSide, *, has_special_tokens: bool
    ) -> list[int]:
        """Cut a sequence to `keep` tokens; what the tokenizer itself added stays."""
        if len(ids) <= keep:
            return ids
        head = self._prefix if has_special_tokens else 0
        tail = self._suffix if has_special_tokens else 0
        room = keep - head - tail
        if room < 0:
            raise PromptUnavailable("refused")
        end = len(ids) - tail
        start = end - room if side == "left" else head
        return [*ids[:head], *ids[start : start + room], *ids[end:]]


def _agreeing_fastokens(source: str, reference: _Backend) -> _Backend | None:
    """Load fastokens if it can read the tokenizer and agrees with the reference."""
    try:
        fast = guarded(lambda: _Fastokens(source))
        agrees = all(
            guarded(lambda flag=flag: fast.encode(CORPUS, add_special_tokens=flag))  # type: ignore[misc]  # a default binds the loop's value
            == reference.encode(CORPUS, add_special_tokens=flag)
            for flag in (False, True)
        )
    except PromptUnavailable:
        _LOG.info("tokenizer.fell_back", reason="unsupported")
        return None
    if not agrees:
        _LOG.warning("tokenizer.fell_back", reason="disagrees")
        return None
    return fast


def _special_margins(backend: _Backend) -> tuple[int, int]:
    """Count the tokens that the tokenizer adds in front of a text and behind it."""
    [full] = backend.encode([""], add_special_tokens=True)
    [with_text] = backend.encode(["a"], add_special_tokens=True)
    [bare] = backend.encode(["a"], add_special_tokens=False)
    start = next(
        (i for i in range(len(full) + 1) if with_text[i : i + len(bare)] == bare), len(full)
    )
    return start, len(full) - start


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

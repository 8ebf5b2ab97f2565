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
from typing import Literal

import tokenizers

from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.log import logger
from kvatlas.common.prompt.backends import Backend, Fastokens, Ids, Tokenizers, guarded
from kvatlas.common.prompt.corpus import CORPUS, texts_with
from kvatlas.common.prompt.rendered import Truncation

TokenizerKind = Literal["fastokens", "tokenizers"]
_LOG = logger("prompt")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer of one model; thread-safe.

    Attributes:
        kind: the library that does the work.
        vocab_size: ids that the tokenizer can give, added tokens included.
        chars_per_token_max: of the longest token, as the engine counts it.
    """

    kind: TokenizerKind
    vocab_size: int
    chars_per_token_max: int
    _backend: Backend
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
        slow = _checked_cache(reference)
        added = [token.content for token in reference.get_added_tokens_decoder().values()]
        fast = _agreeing_fastokens(source, slow, (*CORPUS, *texts_with(added)))
        prefix, suffix = _special_margins(slow)
        # Whichever backend is not used goes, with its 100 MB.
        return cls(
            kind="fastokens" if fast else "tokenizers",
            vocab_size=reference.get_vocab_size(with_added_tokens=True),
            chars_per_token_max=max(
                map(len, reference.get_vocab(with_added_tokens=True)), default=1
            ),
            _backend=fast or slow,
            _token_to_id=fast.id_of if fast else reference.token_to_id,
            _prefix=prefix,
            _suffix=suffix,
        )

    def id_of(self, token: str) -> int | None:
        """Look up the id of a token, None if there is none."""
        return self._token_to_id(token)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
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
        self, ids: list[int], truncation: Truncation, *, has_special_tokens: bool
    ) -> list[int]:
        """Cut a sequence to what is kept of it.

        Raises:
            PromptUnavailable: the tokenizer's own special tokens are more than that.
        """
        keep = truncation.keep
        if len(ids) <= keep:
            return ids
        if truncation.side == "right":
            return ids[:keep]
        if truncation.side == "left" or not has_special_tokens:
            return ids[-keep:]
        room = keep - self._prefix - self._suffix
        if room < 0:
            raise PromptUnavailable("refused")
        end = len(ids) - self._suffix
        return [*ids[: self._prefix], *ids[end - room : end], *ids[end:]]


def _checked_cache(reference: tokenizers.Tokenizer) -> Tokenizers:
    """Use the cache of segments where it gives what encoding a text as a whole gives."""
    cached, plain = Tokenizers(reference), Tokenizers(reference, cache_bytes=0)
    same = cached.encode(CORPUS, add_special_tokens=False) == plain.encode(
        CORPUS, add_special_tokens=False
    )
    return cached if same else plain


def _agreeing_fastokens(source: str, reference: Backend, corpus: Sequence[str]) -> Fastokens | None:
    """Load fastokens if it can read the tokenizer and agrees with the reference."""
    try:
        fast = guarded(lambda: Fastokens(source))
        agrees = all(
            list(map(list, guarded(lambda flag=flag: fast.encode(corpus, add_special_tokens=flag))))  # type: ignore[misc]  # a default binds the loop's value
            == list(map(list, reference.encode(corpus, add_special_tokens=flag)))
            for flag in (False, True)
        )
    except PromptUnavailable:
        _LOG.info("tokenizer.fell_back", reason="unsupported")
        return None
    if not agrees:
        _LOG.warning("tokenizer.fell_back", reason="disagrees")
        return None
    return fast


def _special_margins(backend: Backend) -> tuple[int, int]:
    """Count the tokens that the tokenizer adds in front of a text and behind it."""
    [full] = backend.encode([""], add_special_tokens=True)
    [with_text] = backend.encode(["a"], add_special_tokens=True)
    [bare] = backend.encode(["a"], add_special_tokens=False)
    start = next(
        (i for i in range(len(full) + 1) if with_text[i : i + len(bare)] == bare), len(full)
    )
    return start, len(full) - start

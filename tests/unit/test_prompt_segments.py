"""Segments between added tokens: what is cached of them, and that it never changes an id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from random import Random

import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Library

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.prompt.backends import Fastokens, Tokenizers, guarded
from kvatlas.common.prompt.corpus import CORPUS, texts_with
from kvatlas.common.prompt.segments import SegmentCache, splitter_of
from tests.engine.models import MODELS, Model


@cache
def library(name: str) -> Library:
    """Train a model's tokenizer, once for all tests."""
    return next(model for model in MODELS if model.name == name).train()


def texts(tokenizer: Library, seed: int) -> list[str]:
    """Draw texts of words, blanks and added tokens, many of them twice."""
    random = Random(seed)
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    pieces = [*added, *"aé世🙂 \n▁", "  ", " the", "\n\n", "<", "|>", "12", "Hello world"]
    drawn = ["".join(random.choices(pieces, k=random.randrange(12))) for _ in range(300)]
    return [*drawn, *(one + two for one, two in pairwise(drawn))]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_cached_segments_change_nothing(model: Model) -> None:
    """For each kind of tokenizer both libraries give with their caches what they give without."""
    tokenizer = library(model.name)
    drawn = [*texts(tokenizer, 1), *CORPUS]
    plain = Tokenizers(tokenizer, cache_bytes=0).encode(drawn, add_special_tokens=False)
    cached = Tokenizers(tokenizer)
    for _ in range(2):
        assert cached.encode(drawn, add_special_tokens=False) == plain
    try:
        fast = guarded(lambda: Fastokens(tokenizer.to_str()))
    except Exception:  # noqa: BLE001 - a tokenizer that it cannot read is no matter here
        return
    for _ in range(2):
        assert list(map(list, fast.encode(drawn, add_special_tokens=False))) == plain


def test_both_kinds_of_tokenizers_are_cached() -> None:
    """Most tokenizers can be cached; those whose tokens take the blanks around them cannot."""
    cached = {model.name for model in MODELS if splitter_of(library(model.name))}
    assert cached == {model.name for model in MODELS} - {"phi"}


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_reach_beyond_themselves(option: str) -> None:
    """One such token is enough for no segment to be independent."""
    tokenizer = Library.from_file(str(demo_model_path() / "tokenizer.json"))
    assert splitter_of(tokenizer)
    tokenizer.add_tokens([AddedToken("<reach>", normalized=False, **{option: True})])
    assert splitter_of(tokenizer) is None


def test_a_tokenizer_without_added_tokens() -> None:
    """There is nothing to cut at."""
    assert splitter_of(Library.from_str(_bare())) is None


def _bare() -> str:
    return Library(models.WordLevel({"a": 0}, unk_token="a")).to_str()  # noqa: S106 - no password


class Counter:
    """Encodes to the codes of letters, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, segments: Sequence[str]) -> list[list[int]]:
        """Encode."""
        self.asked += segments
        return [list(map(ord, segment)) for segment in segments]


def test_only_segments_that_are_not_known_are_encoded() -> None:
    """A chat that grows costs its last turn; a segment twice in a text is encoded once."""
    encode = Counter()
    cache = SegmentCache(re.compile("#"), encode, bytes_max=10_000)
    assert cache.encode("a#b#b") == list(map(ord, "a#b#b"))
    assert encode.asked == ["a", "#b"]
    assert cache.encode("a#b#b#c") == list(map(ord, "a#b#b#c"))
    assert encode.asked == ["a", "#b", "#c"]
    assert cache.encode("") == []


def test_the_least_recently_used_segments_go() -> None:
    """What is kept stays within its bound, and what was used last stays longest."""
    encode = Counter()
    cache = SegmentCache(re.compile("#"), encode, bytes_max=1_000)
    for segment in ("#a", "#b", "#c", "#a", "#d"):
        cache.encode(segment)
        assert 0 < cache.bytes_used <= 1_000
    asked = len(encode.asked)
    cache.encode("#a#d")
    assert len(encode.asked) == asked
    cache.encode("#b")
    assert len(encode.asked) == asked + 1


def test_a_segment_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would push out everything else."""
    monkeypatch.setattr("kvatlas.common.limits.SEGMENT_BYTES_MAX", 1_000)
    cache = SegmentCache(re.compile("#"), Counter(), bytes_max=100_000)
    cache.encode("#" + "x" * 1_000)
    assert cache.bytes_used == 0


def test_texts_with_added_tokens() -> None:
    """The start-up check sees each token alone, doubled, in words and cut short; not too many."""
    shown = texts_with(["<x>"])
    assert {"<x>", "<x><x>", "a<x>b", "a <x> b", "<x", "<X>"} <= set(shown)
    assert len(texts_with(["<x>"] * 5_000)) < 5_000

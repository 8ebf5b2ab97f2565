"""What an engine says: words drawn from the prompt's own hash. Pure.

The same prompt always gets the same answer. Answers consist of tokens that the tokenizer gives
back when it reads their text, so the next turn of a chat continues the cached chain.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256, shake_256
from typing import Literal

FinishReason = Literal["length", "stop"]

NATURAL_TOKENS_MIN = 32
"""Shortest answer that ends by itself; the longest is the limit given."""

_PIECES_MAX = 256
_INNER = re.compile(r" [a-z]{2,}")
_OPENING = re.compile(r"[A-Za-z][a-z]{2,}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A token and its text."""

    token: int
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """All that is generated for one sequence, known before it is sent.

    Attributes:
        tokens: at least one.
        texts: text of each token; what a stop string cuts off is empty.
        finish_reason: "stop" if it ends by itself or at a stop string, "length" at its limit.
        stop_reason: the stop string, if one was met.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    finish_reason: FinishReason
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens that answers are made of.

    Attributes:
        opening: words without a space before them, for the first token of a chat's answer.
        inner: words with one.
    """

    opening: tuple[Piece, ...]
    inner: tuple[Piece, ...]


def find_vocabulary(
    vocab_size: int, decode: Callable[[Sequence[int]], str], encode: Callable[[str], Sequence[int]]
) -> Vocabulary:
    """Look through a tokenizer for words that are one token and read back as themselves.

    Low ids come first: a trained vocabulary has its common words there. Where a tokenizer has too
    few such words any token will do; answers are then not promised to read back.

    Cost: 5 to 50 ms.
    """
    opening: list[Piece] = []
    inner: list[Piece] = []
    for token in range(vocab_size):
        text = decode([token])
        kind = _kind(text, opening, inner)
        if kind is not None and list(encode(text)) == [token]:
            kind.append(Piece(token, text))
        if len(opening) >= _PIECES_MAX and len(inner) >= _PIECES_MAX:
            break
    inner = inner or [Piece(token, decode([token])) for token in range(min(vocab_size, 16))]
    return Vocabulary(tuple(opening or inner), tuple(inner))


def _kind(text: str, opening: list[Piece], inner: list[Piece]) -> list[Piece] | None:
    if len(inner) < _PIECES_MAX and _INNER.fullmatch(text):
        return inner
    if len(opening) < _PIECES_MAX and _OPENING.fullmatch(text):
        return opening
    return None


@dataclass(frozen=True, slots=True)
class Wish:
    """What an answer should be like.

    Attributes:
        index: number of the choice; other choices get other answers.
        limit: tokens at most, at least 1.
        natural_end: draw the length, from 32 up to the limit; else it is the limit.
        opening: begin with a word that has no space before it.
        stop: texts at which it ends; they are not part of it.
    """

    index: int
    limit: int
    natural_end: bool
    opening: bool
    stop: tuple[str, ...] = ()


def answer(vocabulary: Vocabulary, prompt: Sequence[int], wish: Wish) -> Answer:
    """Draw the answer to a prompt, given as token ids; equal ones get equal answers."""
    seed = sha256(array("I", prompt).tobytes() + wish.index.to_bytes(4, "little")).digest()
    length = wish.limit
    if wish.natural_end and wish.limit > NATURAL_TOKENS_MIN:
        drawn = int.from_bytes(seed[:4], "little")
        length = NATURAL_TOKENS_MIN + drawn % (wish.limit - NATURAL_TOKENS_MIN)
    numbers = array("H", shake_256(seed).digest(2 * length))
    pieces = [vocabulary.inner[number % len(vocabulary.inner)] for number in numbers]
    if wish.opening:
        pieces[0] = vocabulary.opening[numbers[0] % len(vocabulary.opening)]
    whole = Answer(
        tuple(piece.token for piece in pieces),
        tuple(piece.text for piece in pieces),
        "stop" if length < wish.limit else "length",
    )
    return _cut(whole, wish.stop)


def _cut(whole: Answer, stop: Sequence[str]) -> Answer:
    """End an answer where the first stop string begins, with the token that completes it."""
    text = "".join(whole.texts)
    found = [(text.find(word) + len(word), word) for word in stop if word and word in text]
    if not found:
        return whole
    end, word = min(found)
    keep, texts, at = end - len(word), [], 0
    for piece in whole.texts:
        texts.append(piece[: max(0, keep - at)])
        at += len(piece)
        if at >= end:
            break
    return Answer(whole.tokens[: len(texts)], tuple(texts), "stop", word)

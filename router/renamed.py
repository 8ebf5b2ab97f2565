"""Say the client's own name for the model in an answer that another name was asked for. Pure.

Only the member `model` of the answer itself is written anew: a text that looks the same is inside
of a string, or deeper, and passes. Nothing is held back but the old name, so pieces go on as they
come, wherever they are cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import orjson

from kvatlas.common.prompt import MESSAGES_PATH, RESPONSES_PATH
from kvatlas.router.usage import AnswerReader, Wrapped

_OUTSIDE: Final = re.compile(rb'["{}\[\],:]')
_INSIDE: Final = re.compile(rb'["\\]')
_FIRST_MEMBERS: Final = re.compile(
    rb"(?:event: ?[a-z._]*\r?\n)?(?:data: ?)?\{"
    rb'(?: *"(?!model")[^"\\]*" *: *(?:"[^"\\]*"|[0-9a-z.+-]+) *,)* *"model" *: *("[^"\\]*")'
)
"""Engines name the model behind a few plain members: found at once, without going through them."""
_EVENT_END: Final = re.compile(rb"\n\r?\n|\r\r")
_EVENT_END_BYTES: Final = 3
_KEY_BYTES_MAX: Final = 16
"""Longer ones are none that are looked for."""
_MODEL: Final = b"model"
_MEMBER: Final = b'"model"'

PARENTS: Final[Mapping[str, bytes]] = {MESSAGES_PATH: b"message", RESPONSES_PATH: b"response"}
"""Objects in which events of a path name the model, beside the answer itself."""

_Text = Literal["none", "key", "name", "other"]


class Names:
    """Find the name of the model in JSON that comes in pieces, and put another in its place.

    Args:
        name: the client's.
        parent: member whose object may name the model, too; empty for none.
        is_stream: whether the answer is made of events; each is JSON of its own.

    Cost: 3 us per chunk of a chat's stream, 0.3 us per event that names no model.
    """

    __slots__ = (
        "_depth", "_has_colon", "_is_begun", "_is_escaped", "_is_found", "_is_in_parent",
        "_is_stream", "_key", "_name", "_parent", "_tail", "_text",
    )  # fmt: skip

    def __init__(self, name: str, parent: bytes = b"", *, is_stream: bool) -> None:
        self._name = orjson.dumps(name)
        self._parent = parent
        self._is_stream = is_stream
        self._tail = b""
        self._begin()

    def feed(self, piece: bytes) -> bytes:
        """Take a piece as it was read; give what goes on at once."""
        if not self._is_stream:
            return self._scan(piece)
        if not self._is_begun and piece.endswith(b"\n\n") and _MEMBER not in piece:
            return piece
        passed: list[bytes] = []
        at, tail = 0, self._tail
        while found := _EVENT_END.search(tail + piece[at:]):
            end = at + found.end() - len(tail)
            passed.append(self._scan(piece[at:end]))
            self._begin()
            at, tail = end, b""
        passed.append(self._scan(piece[at:]))
        self._tail = (tail + piece[at:])[1 - _EVENT_END_BYTES :]
        return b"".join(passed)

    def _begin(self) -> None:
        """Stand before a new piece of JSON."""
        self._depth = 0
        self._is_begun = False
        self._text: _Text = "none"
        self._key = b""
        self._has_colon = self._is_escaped = self._is_in_parent = self._is_found = False

    def _scan(self, piece: bytes) -> bytes:
        """Go through bytes that belong to one answer or event."""
        if not self._is_begun:
            first = _FIRST_MEMBERS.match(piece)
            self._is_begun = bool(piece)
            if first is not None:
                self._is_found = True
                return piece[: first.start(1)] + self._name + piece[first.end(1) :]
        return piece if self._is_found else self._gone_through(piece)

    def _gone_through(self, piece: bytes) -> bytes:
        """Go through bytes one structural character and one string at a time."""
        passed: list[bytes] = []
        begun = at = 0
        while not self._is_found:
            if self._text == "none":
                if (found := _OUTSIDE.search(piece, at)) is None:
                    break
                at = found.end()
                if self._structure(found[0]) == "name":
                    passed.append(piece[begun : at - 1])
                continue
            was = self._text
            end = self._string_end(piece, at)
            if was == "key" and len(self._key) <= _KEY_BYTES_MAX:
                self._key += piece[at : len(piece) if end is None else end - 1]
            if was == "name":
                begun = len(piece) if end is None else end
            if end is None:
                break
            at, self._text = end, "none"
            if was == "name":
                passed.append(self._name)
                self._is_found = True
        passed.append(piece[begun:])
        return b"".join(passed)

    def _string_end(self, piece: bytes, at: int) -> int | None:
        """Find where the string ends that `at` is in; None where that is in a later piece."""
        if self._is_escaped and at < len(piece):
            at, self._is_escaped = at + 1, False
        while found := _INSIDE.search(piece, at):
            if found[0] == b'"':
                return found.end()
            at = found.end() + 1
            self._is_escaped = at > len(piece)
        return None

    def _structure(self, char: bytes) -> _Text:
        """Follow one character outside of strings; tell which text begins with it."""
        is_looked_at = self._depth == 1 or (self._depth == 2 and self._is_in_parent)
        if char == b'"':
            self._text = self._kind() if is_looked_at else "other"
        elif char in b"{[":
            self._depth += 1
            if self._depth == 2:
                is_parent = self._has_colon and self._key == self._parent
                self._is_in_parent = char == b"{" and is_parent
            self._forget_key()
        elif char in b"}]":
            if self._depth == 2:
                self._is_in_parent = False
            self._depth -= 1
        elif is_looked_at and char == b":":
            self._has_colon = True
        elif is_looked_at:
            self._forget_key()
        return self._text

    def _kind(self) -> _Text:
        if not self._has_colon:
            return "key"
        return "name" if self._key == _MODEL else "other"

    def _forget_key(self) -> None:
        self._key, self._has_colon = b"", False


class Renamed(Wrapped):
    """Read an answer with another reader, and give the client its own name for the model.

    Attributes:
        takes_out: always: the length of the answer is another one.
    """

    __slots__ = ("_names",)

    def __init__(self, inner: AnswerReader, names: Names) -> None:
        super().__init__(inner)
        self._names = names
        self.takes_out = True

    def feed(self, piece: bytes) -> bytes:
        """Pass a piece on."""
        return self._names.feed(self._inner.feed(piece))

    def end(self) -> bytes:
        """Give what the other reader held back."""
        return self._names.feed(self._inner.end())

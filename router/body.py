"""Cut members out of a JSON body, add and replace them, without writing it anew. Pure.

What is not cut passes byte for byte: white space, the order and spelling of keys, numbers. Keys are
compared as a parser reads them, so an escape does not hide one, and of a key that is there twice
every occurrence goes. Bodies given here have been read as JSON objects before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import orjson

Body = Mapping[str, Any]
Path = tuple[str, ...]

STEERING: Final[Mapping[str, Path]] = {
    "kv_transfer_params": ("kv_transfer_params",),
    "kv_cache_report_mode": ("vllm_xargs", "kv_cache_report_mode"),
}
"""Members that make an engine transfer, compute or report otherwise than the index believes."""

_BLANK: Final = b" \t\n\r"
# A string as a whole, or one structural character; numbers and words need no looking at.
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)
_OPEN: Final = frozenset(b"{[")
_CLOSE: Final = frozenset(b"}]")


class Member(NamedTuple):
    """Where a member is: from behind the bracket or comma before it to the one after it."""

    start: int
    end: int
    key: str
    value: int


def steering_in(body: Body) -> tuple[str, ...]:
    """Name the steering members of a body.

    Cost: 0.1 us where there is none.
    """
    found = ["kv_transfer_params"] if "kv_transfer_params" in body else []
    xargs = body.get("vllm_xargs")
    if isinstance(xargs, dict) and "kv_cache_report_mode" in xargs:
        found.append("kv_cache_report_mode")
    return tuple(found)


def without(body: Body, path: Path) -> Body:
    """Give a body as it reads when a member is cut out of it."""
    head, *rest = path
    if head not in body:
        return body
    if not rest:
        return {key: value for key, value in body.items() if key != head}
    inner = body[head]
    if not isinstance(inner, dict):
        return body
    return {**body, head: without(cast("Body", inner), tuple(rest))}


@dataclass(frozen=True, slots=True)
class ClientBody:
    """A request's body without what clients may not send.

    Attributes:
        raw: as it goes on; byte-identical to the client's but for the members that were cut.
        fields: what it says.
        cut: names of the members that were cut.
        is_unread: whether it is no JSON and passes unread; `fields` is what is known beside it.
    """

    raw: bytes
    fields: Body
    cut: tuple[str, ...]
    is_unread: bool = False


def client_body(raw: bytes, fields: Body) -> ClientBody:
    """Cut what steers engines out of a body.

    Args:
        raw: as received.
        fields: what it was read as; of a key that is there twice the last one, as engines do.
    """
    names = steering_in(fields)
    for name in names:
        raw, fields = cut(raw, STEERING[name]), without(fields, STEERING[name])
    return ClientBody(raw, fields, names)


def cut(raw: bytes, path: Path) -> bytes:
    """Cut a member, each with one comma, wherever it occurs.

    Args:
        raw: a JSON object.
        path: keys from the outermost object to the member.

    Returns:
        The rest, byte for byte.

    Cost: 0.2 ms for 32 KB of chat, 0.6 ms for 128 KB.
    """
    return b"".join(_kept(raw, raw.index(b"{"), path))


def add(raw: bytes, key: str, value: bytes) -> bytes:
    """Add a member behind all others.

    Args:
        raw: a JSON object without this key.
        key: needs no escaping.
        value: JSON.

    Cost: a copy of the body.
    """
    end = raw.rindex(b"}")
    is_empty = raw[:end].strip(_BLANK) == b"{"
    member = b'"%b":%b' % (key.encode(), value)
    return b"".join((raw[:end], b"" if is_empty else b",", member, raw[end:]))


def replace(raw: bytes, key: str, value: bytes) -> bytes:
    """Put another value in the place of a member's, wherever it occurs.

    Args:
        raw: a JSON object.
        key: of its outermost members.
        value: JSON.

    Cost: as `cut`.
    """
    members, _ = _members(raw, raw.index(b"{"))
    pieces: list[bytes] = []
    at = 0
    for member in members:
        if member.key == key:
            pieces += (raw[at : member.value], value)
            at = member.value + len(raw[member.value : member.end].rstrip(_BLANK))
    return b"".join((*pieces, raw[at:]))


def _kept(raw: bytes, start: int, path: Path) -> Iterator[bytes]:
    """Write the object that begins at `start` without what the path names, and what follows it."""
    members, end = _members(raw, start)
    yield raw[: start + 1]
    first = True
    for member in members:
        if member.key == path[0] and len(path) == 1:
            continue
        if not first:
            yield b","
        first = False
        piece = raw[member.start : member.end]
        if member.key == path[0] and raw[member.value : member.value + 1] == b"{":
            piece = b"".join(_kept(piece, member.value - member.start, path[1:]))
        yield piece
    yield raw[end:]


def _members(raw: bytes, start: int) -> tuple[Sequence[Member], int]:
    """List the members of the object that begins at `start`, and find its closing bracket."""
    members: list[Member] = []
    depth, begun, key, value = 0, start + 1, None, 0
    for token in _TOKEN.finditer(raw, start):
        at = token.start()
        char = raw[at]
        if depth == 1:
            if key is None and char == ord('"'):
                key = cast("str", orjson.loads(token[0]))
                continue
            if char == ord(":"):
                value = _skip_blank(raw, at + 1)
                continue
            if char in b",}" and key is not None:
                members.append(Member(begun, at, key, value))
                begun, key = at + 1, None
            if char == ord("}"):
                return members, at
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
    raise ValueError("not a JSON object")


def _skip_blank(raw: bytes, at: int) -> int:
    while raw[at] in _BLANK:
        at += 1
    return at

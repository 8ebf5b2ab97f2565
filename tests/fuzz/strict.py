"""A second reader of HTTP/1.1 heads and bodies: it takes only what RFC 9112 asks to be sent."""

from __future__ import annotations

import re
from typing import Final

_LINE: Final = re.compile(rb"[A-Z]+ [\x21\x24-\x7e]+ HTTP/1\.[01]")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t\x80-\xff]*)")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
_DIGITS: Final = re.compile(rb"[0-9]{1,9}")


class NotStrict(Exception):
    """What is there is not what a careful sender writes."""


def bodies_of(data: bytes) -> list[bytes]:
    """Give the bodies of all whole requests; what is cut short behind them is left.

    Raises:
        NotStrict: something else than plain requests is among it.
    """
    found: list[bytes] = []
    at = 0
    while (end := data.find(b"\r\n\r\n", at)) >= 0:
        line, *fields = data[at:end].split(b"\r\n")
        if not _LINE.fullmatch(line):
            raise NotStrict
        body = _body(data, end + 4, _framing(fields))
        if body is None:
            break
        found.append(body[0])
        at = body[1]
    return found


def _framing(fields: list[bytes]) -> int | None:
    """Give the length of a body; None where it is chunked."""
    lengths, codings = [], []
    for field in fields:
        match = _FIELD.fullmatch(field)
        if match is None:
            raise NotStrict
        name, value = match[1].lower(), match[2].strip(b" \t")
        if name == b"upgrade":
            raise NotStrict
        lengths += [value] if name == b"content-length" else []
        codings += [value] if name == b"transfer-encoding" else []
    if len(lengths) + len(codings) > 1:
        raise NotStrict
    if codings:
        if codings[0].lower() != b"chunked":
            raise NotStrict
        return None
    if lengths and not _DIGITS.fullmatch(lengths[0]):
        raise NotStrict
    return int(lengths[0]) if lengths else 0


def _body(data: bytes, at: int, length: int | None) -> tuple[bytes, int] | None:
    """Give a body and where it ends; None where it is cut short."""
    if length is not None:
        end = at + length
        return (data[at:end], end) if end <= len(data) else None
    pieces = b""
    while (end := data.find(b"\r\n", at)) >= 0:
        if not _SIZE.fullmatch(data[at:end]):
            raise NotStrict
        size, at = int(data[at:end], 16), end + 2
        if len(data) < at + size + 2:
            return None
        if data[at + size : at + size + 2] != b"\r\n":
            raise NotStrict  # trailers are among it
        pieces += data[at : at + size]
        at += size + 2
        if not size:
            return pieces, at
    return None

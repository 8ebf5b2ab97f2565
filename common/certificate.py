"""Read from when until when a certificate is good.

`ssl` tells that of nobody's certificate but a peer's; the way to it through DER is short.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_BEFORE_VALIDITY: Final = 3
"""Fields of a certificate between its version and its validity: number, algorithm, issuer."""
_LONG_FORM: Final = 0x80
_LENGTH_BYTES_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is good, in seconds since 1970."""

    not_before_s: float
    not_after_s: float


def read_validity(pem: bytes) -> Validity:
    """Read the validity of the first certificate in a PEM file, the one that is shown.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    _, begin, rest = pem.partition(_BEGIN)
    text, end, _ = rest.partition(_END)
    if not begin or not end:
        raise ValueError("no certificate")
    fields = _sequence(_sequence(b64decode(b"".join(text.split()), validate=True)))
    if fields[:1] == bytes([_VERSION]):
        _, _, fields = _take(fields)
    for _ in range(_BEFORE_VALIDITY):
        _, _, fields = _take(fields)
    tag, first, rest = _take(_sequence(fields))
    last_tag, last, _ = _take(rest)
    return Validity(_time_s(tag, first), _time_s(last_tag, last))


def _sequence(der: bytes) -> bytes:
    """Give what is in the sequence at the beginning."""
    tag, content, _ = _take(der)
    if tag != _SEQUENCE:
        raise ValueError("no sequence")
    return content


def _take(der: bytes) -> tuple[int, bytes, bytes]:
    """Split the first value off; give its tag, its content, and the rest."""
    length, at = int.from_bytes(der[1:2], "big"), 2
    if length & _LONG_FORM:
        count = length & ~_LONG_FORM
        if not 1 <= count <= _LENGTH_BYTES_MAX:
            raise ValueError("no length")
        length, at = int.from_bytes(der[at : at + count], "big"), at + count
    if len(der) < at + length:
        raise ValueError("cut off")
    return der[0], der[at : at + length], der[at + length :]


def _time_s(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        # Two digits of the year; RFC 5280 has them mean 1950 to 2049.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()

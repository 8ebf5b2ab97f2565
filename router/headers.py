"""Which headers pass, in both directions. Pure.

What describes one connection (hop by hop) never passes, nor what it nominates; framing is always
ours. What steers an engine or claims to be us is dropped where it enters: client bytes choose no
destination.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from kvatlas.common.llm_d.headers import OWNED

Header = tuple[str, str]

HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "trailers", "transfer-encoding", "upgrade", "expect", "http2-settings",
})  # fmt: skip
"""RFC 9110 7.6.1, what older software sends alike, and Expect, which we have answered."""

FRAMING: Final = frozenset({"host", "content-length"})
"""Set by our own client for the engine that was chosen."""

STEERING: Final = frozenset({
    "x-data-parallel-rank", "x-data-parallel-host-port", "x-prefiller-host-port",
    "x-encoder-hosts-ports", "x-kv-cache-source-host-port", "x-request-id",
}) | (OWNED - FRAMING)  # fmt: skip
"""Ours to set: they choose ranks and peers. The request id is checked and set again."""

STEERING_PREFIXES: Final = ("x-gateway-destination-endpoint", "x-kvatlas-", "x-llm-d-")
FORWARDED: Final = frozenset({"forwarded", "x-real-ip"})
FORWARDED_PREFIX: Final = "x-forwarded-"
"""Say for whom a proxy asks: believed of proxies that are trusted, of nobody else."""

NOTHING: Final[frozenset[str]] = frozenset()

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NOT_TO_ENGINE: Final = HOP_BY_HOP | FRAMING | STEERING
_NOT_FROM_STRANGERS: Final = _NOT_TO_ENGINE | FORWARDED
_STRANGERS_PREFIXES: Final = (*STEERING_PREFIXES, FORWARDED_PREFIX)
_NOT_TO_CLIENT: Final = HOP_BY_HOP | {"x-request-id", "server", "date"}


def nominated(headers: Iterable[Header]) -> frozenset[str]:
    """Give the names, in lower case, that Connection headers declare to be hop by hop."""
    return frozenset(
        name.strip().lower()
        for key, value in headers
        if key.lower() in ("connection", "proxy-connection")
        for name in value.split(",")
    )


def to_engine(
    headers: Iterable[Header],
    ours: Iterable[Header],
    kept_back: frozenset[str] = NOTHING,
    *,
    is_trusted: bool = False,
) -> list[Header]:
    """Choose what an engine sees of a client's headers.

    Args:
        headers: as received, in order.
        ours: set by the router; they replace the client's of the same name.
        kept_back: names, in lower case, of what is for us alone.
        is_trusted: whether they come from a proxy that is believed whom it asks for.
    """
    received, added = list(headers), list(ours)
    drop = {name.lower() for name, _ in added} | kept_back | nominated(received)
    never = _NOT_TO_ENGINE if is_trusted else _NOT_FROM_STRANGERS
    prefixes = STEERING_PREFIXES if is_trusted else _STRANGERS_PREFIXES
    return [*_passed(received, never, drop, prefixes), *added]


def steering(names: Iterable[str], kept_back: frozenset[str] = NOTHING) -> list[str]:
    """Choose what a gateway is to take out of a client's headers, which it passes on otherwise.

    Args:
        names: in lower case.
        kept_back: of what is for us alone.
    """
    return [
        name
        for name in names
        if name in STEERING or name in kept_back or name.startswith(STEERING_PREFIXES)
    ]


def to_client(headers: Iterable[Header], ours: Iterable[Header]) -> list[Header]:
    """Choose what a client sees of an engine's headers; alike, but its cookies stay with ours."""
    received, added = list(headers), list(ours)
    drop = {low for name, _ in added if (low := name.lower()) != "set-cookie"}
    return [*_passed(received, _NOT_TO_CLIENT, drop | nominated(received)), *added]


def _passed(
    headers: Iterable[Header],
    never: frozenset[str],
    drop: Collection[str],
    prefixes: tuple[str, ...] = STEERING_PREFIXES,
) -> list[Header]:
    return [
        each
        for each in headers
        if (low := each[0].lower()) not in never
        and low not in drop
        and not low.startswith(prefixes)
    ]


def request_id(received: str | None) -> str | None:
    """Give a client's request id if it is safe to repeat, else None."""
    return received if received is not None and _REQUEST_ID.fullmatch(received) else None

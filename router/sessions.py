"""Which conversation a request belongs to, and where that was. Pure.

A request can tell it in two ways, both off by default. A token, in a header or a cookie that we
sent with the last answer, names the endpoint by a digest: it only ever selects among the endpoints
that are candidates anyway, and tells a client no address. An id, in a header of the client's own,
names the conversation: which endpoint that was sent to last stands on the board, which all routers
share, under a digest of the id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName
from kvatlas.common.settings import SessionSettings


class Board(Protocol):
    """Where conversations were last sent; `flights.Board` is one."""

    def session_endpoint(self, session: int) -> EndpointName | None:
        """Tell where a conversation was last sent."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a request tells of its conversation.

    Attributes:
        token: the digest of an endpoint's name, or whatever else a client wrote there.
        number: 64 bits that stand for the id of the conversation, for `Launch.session`.
    """

    token: str | None = None
    number: int | None = None


NO_SESSION = Session()


def read(settings: SessionSettings, headers: Mapping[str, str]) -> Session:
    """Read what a request tells.

    Args:
        settings: which headers count.
        headers: of the request, found by any spelling of their names.
    """
    if not settings.is_on:
        return NO_SESSION
    return Session(_token(settings, headers), _number(settings, headers))


def resolve(
    session: Session, candidates: Iterable[EndpointName], board: Board
) -> EndpointName | None:
    """Find the endpoint that a conversation was on, if it is among the candidates.

    The token counts more than the id: who has one got it from us.
    """
    if session == NO_SESSION:
        return None
    names = list(candidates)
    if session.token is not None:
        for name in names:
            if token_of(name) == session.token:
                return name
    if session.number is not None:
        known = board.session_endpoint(session.number)
        if known in names:
            return known
    return None


def answer_headers(settings: SessionSettings, endpoint: EndpointName) -> list[tuple[str, str]]:
    """Give the headers that tell a client what to send with the next request."""
    headers = []
    if settings.header is not None:
        headers.append((settings.header, token_of(endpoint)))
    if settings.cookie is not None:
        cookie = f"{settings.cookie}={token_of(endpoint)}; Path=/; HttpOnly; SameSite=Lax"
        headers.append(("Set-Cookie", cookie))
    return headers


@lru_cache(maxsize=limits.ENDPOINTS_MAX)
def token_of(endpoint: EndpointName) -> str:
    """Name an endpoint without telling its address; the same in every router."""
    return blake2b(endpoint.encode(), digest_size=8, person=b"kvatlas/endpoint").hexdigest()


def _token(settings: SessionSettings, headers: Mapping[str, str]) -> str | None:
    if settings.header is not None and (token := headers.get(settings.header)):
        return token
    if settings.cookie is None:
        return None
    cookies = headers.get("Cookie", "")
    if len(cookies) > limits.COOKIES_CHARS_MAX:
        return None
    for part in cookies.split(";"):
        name, _, value = part.strip().partition("=")
        if name == settings.cookie:
            return value
    return None


def _number(settings: SessionSettings, headers: Mapping[str, str]) -> int | None:
    for name in settings.id_headers:
        if value := headers.get(name):
            digest = blake2b(
                value.encode("utf-8", "surrogateescape"), digest_size=8, person=b"kvatlas/session"
            )
            return int.from_bytes(digest.digest(), "big")
    return None

"""Questions to an engine over HTTP: a deadline, a bound on the answer, no exception but silence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import aiohttp

from kvatlas.common import limits
from kvatlas.common.errors import KvatlasError
from kvatlas.common.tls_engines import PLAIN, EngineTls


def engine_session(connect_s: float) -> aiohttp.ClientSession:
    """Make a session to ask engines with."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=limits.UPSTREAM_KEEPALIVE_S, ttl_dns_cache=10
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        max_line_size=limits.HEADERS_BYTES_MAX,
        max_field_size=limits.HEADERS_BYTES_MAX,
    )


RANK_HEADER: Final = "X-data-parallel-rank"


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom to ask, and how.

    Attributes:
        url: of the engine.
        api_key: that it wants, or None.
        timeout_s: for one answer.
        bytes_max: largest answer that is read.
        rank: of data parallelism that is to answer; None where the engine has one, or any may.
        tls: how it is spoken to.
    """

    url: str
    api_key: str | None
    timeout_s: float = limits.PROBE_TIMEOUT_S
    bytes_max: int = limits.PROBE_ANSWER_BYTES_MAX
    rank: int | None = None
    tls: EngineTls = PLAIN


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        content: of at most `bytes_max`; one that is longer counts as none (status 0).
    """

    status: int
    content: bytes


class Silence(KvatlasError):
    """No answer was had.

    Args:
        why: "timeout", "connection" or "protocol".
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


async def ask(
    session: aiohttp.ClientSession, asked: Asked, path: str, body: bytes | None = None
) -> Reply:
    """Ask an engine: GET, or POST where there is a body.

    Raises:
        Silence: there was no answer in time, or none that is HTTP.
    """
    headers = {"Authorization": f"Bearer {asked.api_key}"} if asked.api_key else {}
    if asked.rank is not None:
        headers[RANK_HEADER] = str(asked.rank)
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        async with session.request(
            "GET" if body is None else "POST",
            asked.url + path,
            data=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=asked.timeout_s),
            allow_redirects=False,
            ssl=asked.tls.ssl,
            server_hostname=asked.tls.server_name,
        ) as reply:
            return await _read(reply, asked.bytes_max)
    except TimeoutError:
        raise Silence("timeout") from None
    except (aiohttp.ClientConnectionError, OSError):
        raise Silence("connection") from None
    except (aiohttp.ClientError, ValueError):
        raise Silence("protocol") from None


async def _read(reply: aiohttp.ClientResponse, bytes_max: int) -> Reply:
    pieces: list[bytes] = []
    left = bytes_max
    while piece := await reply.content.readany():
        left -= len(piece)
        if left < 0:
            reply.close()
            return Reply(0, b"")
        pieces.append(piece)
    return Reply(reply.status, b"".join(pieces))

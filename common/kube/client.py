"""Ask the API server of Kubernetes: pages of lists, and watches as lines of JSON."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Self

import aiohttp

from kvatlas import __version__
from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.discovery_settings import KubernetesSettings
from kvatlas.common.errors import KubernetesUnavailable
from kvatlas.common.kube.access import ApiAccess, find_access
from kvatlas.common.kube.objects import refused
from kvatlas.common.kube.resources import Selection

_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": f"kvatlas/{__version__}",
}
_OK: Final = 200
_UNAUTHORIZED: Final = 401


class KubeClient:
    """One client per process, for all that it watches; it asks nothing by itself.

    Args:
        find: gives how the API server is reached; asked again and again.
    """

    def __init__(self, find: Callable[[], Awaitable[ApiAccess]]) -> None:
        self._find = find
        self._access: ApiAccess | None = None
        self._read_s = -math.inf
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Lock()

    @classmethod
    def of(cls, settings: KubernetesSettings) -> Self:
        """Make one that reaches it as the configuration says."""
        return cls(partial(find_access, settings))

    async def aclose(self) -> None:
        """Close all connections; who asks again makes new ones."""
        session, self._session, self._access = self._session, None, None
        if session is not None:
            await session.close()

    async def page(self, selection: Selection, continued: str | None) -> bytes:
        """Get a page of a list.

        Args:
            selection: what is listed.
            continued: what the page before gave; None for the first.

        Raises:
            KubernetesUnavailable: it could not be had.
        """
        query = selection.query() | {"limit": str(limits.KUBE_PAGE_OBJECTS)}
        if continued is not None:
            query["continue"] = continued
        async with (
            _in_time(limits.KUBE_LIST_S),
            await self._answered(selection, query) as answer,
        ):
            return await _whole(answer, limits.KUBE_PAGE_BYTES_MAX)

    @asynccontextmanager
    async def watch(
        self, selection: Selection, version: str, timeout_s: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Watch from a version on, until the API server ends it; give pieces of lines.

        Raises:
            KubernetesUnavailable: it did not begin, tore, or went silent for longer than asked for.
        """
        query = selection.query() | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(timeout_s),
        }
        async with _in_time(timeout_s + limits.KUBE_WATCH_SLACK_S):
            async with _in_time(limits.KUBE_LIST_S):
                answer = await self._answered(selection, query)
            async with answer:
                yield answer.content.iter_any()

    async def _answered(self, selection: Selection, query: dict[str, str]) -> Any:
        """Ask; give the answer, whose status is 200."""
        access, session = await self._ready()
        url = access.url + selection.resource.path(selection.namespace or access.namespace)
        headers = {"Authorization": access.authorization} if access.authorization else {}
        answer = await session.get(
            url,
            params=query,
            headers=headers,
            proxy=access.proxy,
            server_hostname=access.server_name,
            allow_redirects=False,
        )
        if answer.status == _OK:
            return answer
        async with answer:
            if answer.status == _UNAUTHORIZED:
                # What we showed may have been renewed meanwhile.
                self._read_s = -math.inf
            said = await _whole(answer, limits.KUBE_STATUS_BYTES_MAX)
            raise refused(said, answer.status, _seconds(answer.headers.get("Retry-After")))

    async def _ready(self) -> tuple[ApiAccess, aiohttp.ClientSession]:
        """Give what to ask with, read anew where it is old."""
        async with self._turn:
            if self._access is None or monotonic() - self._read_s > limits.KUBE_CREDENTIALS_S:
                found = await self._find()
                await self._take(found)
                self._read_s = monotonic()
            assert self._access is not None  # noqa: S101 - narrows the type
            assert self._session is not None  # noqa: S101 - alike
            return self._access, self._session

    async def _take(self, found: ApiAccess) -> None:
        """Make another session where the former one's connections are not made alike.

        Its watches are torn, and go on over the new one.
        """
        if self._session is None or self._access is None or self._access.tls != found.tls:
            try:
                context = found.tls.context() if found.tls is not None else None
            except (OSError, ValueError) as error:
                raise KubernetesUnavailable("credentials", f"TLS files: {error}") from None
            await self.aclose()
            self._session = _session(context)
        self._access = found


def _session(context: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=0, ssl=context if context is not None else True, socket_factory=_socket
    )
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=limits.KUBE_CONNECT_S, connect=limits.KUBE_CONNECT_S
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        headers=_HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=limits.KUBE_PIECE_BYTES,
    )


def _socket(address: Any) -> socket.socket:
    """Make a socket that notices when the other side is gone without a word."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", limits.KUBE_KEEPALIVE_S),
        ("TCP_KEEPINTVL", limits.KUBE_KEEPALIVE_S),
        ("TCP_KEEPCNT", limits.KUBE_KEEPALIVE_PROBES),
    ):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


@asynccontextmanager
async def _in_time(seconds: float) -> AsyncIterator[None]:
    """Bound what is done in the context, and name what went wrong in it."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise KubernetesUnavailable("timeout") from None
    except aiohttp.ClientConnectorCertificateError:
        raise KubernetesUnavailable("tls", "its certificate is not of the cluster's CA") from None
    except aiohttp.ClientSSLError:
        raise KubernetesUnavailable("tls") from None
    except aiohttp.ClientConnectorError as error:
        raise KubernetesUnavailable("unreachable", str(error.os_error.strerror or "")) from None
    except (aiohttp.ClientError, OSError) as error:
        raise KubernetesUnavailable("torn", type(error).__name__) from None


async def _whole(answer: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    pieces, size = [], 0
    async for piece in answer.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > bytes_max:
            raise KubernetesUnavailable("too_large", f"over {bytes_max} bytes")
    return b"".join(pieces)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None

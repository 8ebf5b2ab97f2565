"""Requests out of a client's bytes: HTTP/1.1, read by llhttp (httptools) in its strict mode.

What two readers of HTTP might understand differently is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

import httptools

from kvatlas.common import limits
from kvatlas.common.errors import BadHttp, MethodNotAllowed
from kvatlas.router.headers import Header
from kvatlas.router.request import Headers, Request

VERSIONS: Final = ("1.1", "1.0")
_UPGRADING: Final = frozenset({"upgrade", "http2-settings"})
"""Not Connection: it may ask for the end, and nominate more."""
_UNCLEAR: Final = "what the client asked for is unclear"


class RequestReader:
    """Read the requests of one connection.

    Args:
        begun: is given each request whose head is there, before its body is read.

    Attributes:
        receiving: the request whose body is being read; None between two.
        is_in_head: whether a head comes next, or is being read.
        head_bytes: that have come since the last request ended, while one is.
        framing_bytes: that have come since the last piece of a body, without being one.
    """

    __slots__ = ("_begun", "_fault", "_headers", "_parser", "_url", "framing_bytes", "head_bytes",
                 "is_in_head", "receiving", "requests")  # fmt: skip

    def __init__(self, begun: Callable[[Request], None]) -> None:
        self._begun = begun
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[Header] = []
        self._fault: str | None = None
        self.head_bytes = self.framing_bytes = 0
        self.is_in_head = True
        self.receiving: Request | None = None
        self.requests: deque[Request] = deque()

    def feed(self, data: bytes) -> None:
        """Read on; what was read is in `requests`.

        Raises:
            HttpError: what comes cannot be read, nor anything behind it.
        """
        if self.is_in_head:
            self.head_bytes += len(data)
        else:
            # A piece of the body among it sets this to zero. The parser keeps what a trailer says.
            self.framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, MemoryError):
                # It is ours, and no word of the client's.
                raise error.__context__ from None
            raise BadHttp(self._fault or _UNCLEAR) from None
        if self.is_in_head and self.head_bytes > limits.HEADERS_BYTES_MAX:
            raise BadHttp("the headers are too large")
        if self.framing_bytes > limits.FRAMING_BYTES_MAX:
            raise BadHttp("too much that is no body")

    def _feed_without_upgrade(self, rest: bytes) -> None:
        """Read a request that offers another protocol as one that does not: we take no offers."""
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT":
            error = MethodNotAllowed("this is no proxy of that kind")
            error.headers = [("Allow", "GET, POST")]
            raise error
        kept = [each for each in self._headers if each[0].lower() not in _UPGRADING]
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept)
        head = b"%s %s HTTP/%s\r\n" % (method, self._url, version.encode())
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._headers, self.head_bytes = b"", [], 0
        self.feed(head + lines.encode("utf-8", "surrogateescape") + b"\r\n" + rest)

    # --- what the parser calls ----------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one behind the body is dropped."""
        if self.is_in_head:
            self._headers.append((name.decode(), value.decode("utf-8", "surrogateescape")))
            if len(self._headers) > limits.HEADERS_MAX:
                self._stop("too many headers")

    def on_headers_complete(self) -> None:
        """Begin a request."""
        parser = self._parser
        if parser.should_upgrade():
            return
        headers = Headers(self._headers)
        version = parser.get_http_version()
        self._demand_sense(headers, version)
        request = Request(parser.get_method().decode(), _origin_form(self._url.decode()), headers)
        request.is_http_10 = version == "1.0"
        request.keeps_alive = parser.should_keep_alive()
        if "transfer-encoding" in headers:
            request.content_length = None
        elif (length := headers.get("content-length")) is not None:
            request.content_length = int(length)
        self.is_in_head, self._url, self._headers = False, b"", []
        self.receiving = request
        self.requests.append(request)
        self._begun(request)
        if len(self.requests) > limits.PIPELINED_MAX:
            self._stop("too many requests at once")

    def on_body(self, piece: bytes) -> None:
        """Take a piece of a body."""
        self.framing_bytes = 0
        if self.receiving is not None:
            self.receiving.feed(piece)

    def on_message_complete(self) -> None:
        """End a body."""
        if self.receiving is not None:
            self.receiving.complete()
            self.receiving = None
            self.is_in_head, self.head_bytes, self.framing_bytes = True, 0, 0

    def _demand_sense(self, headers: Headers, version: str) -> None:
        if version not in VERSIONS:
            self._stop("this version of HTTP is not spoken")
        hosts = sum(1 for name, _ in self._headers if name.lower() == "host")
        if hosts > 1 or (not hosts and version == "1.1"):
            self._stop("exactly one Host is needed")
        if b"#" in self._url:
            self._stop("a fragment is the client's own")
        coding = headers.get("transfer-encoding")
        if coding is not None and (coding.lower() != "chunked" or version == "1.0"):
            self._stop("this Transfer-Encoding is not understood")
        # What came in one read with the body is not all head: exactly what is stands in these.
        exact = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if exact > limits.HEADERS_BYTES_MAX:
            self._stop("the headers are too large")

    def _stop(self, fault: str) -> NoReturn:
        """Have the parser stop; it makes its own error of what is raised here."""
        self._fault = fault
        raise ValueError


def _origin_form(target: str) -> str:
    """Give the path and query of a target that may name us in full."""
    if target.startswith("/"):
        return target
    _, mark, rest = target.partition("://")
    return "/" + rest.partition("/")[2] if mark else target

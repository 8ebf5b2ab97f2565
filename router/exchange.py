"""One exchange with a gateway: what it tells of a request, and how it is answered, in any mode."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

from kvatlas.common import limits
from kvatlas.common.errors import BodyTimeout, HttpError, KvatlasError
from kvatlas.common.settings import PickerSettings
from kvatlas.router import ext_proc
from kvatlas.router.answers import error_headers
from kvatlas.router.ext_proc import Arrived, Change
from kvatlas.router.headers import Header
from kvatlas.router.paths import gateway_path
from kvatlas.router.request import Headers, Request

_MODES: Final = {
    "full-duplex": ext_proc.FULL_DUPLEX,
    "buffered": ext_proc.BUFFERED,
    "none": ext_proc.NO_BODY,
}
_USABLE: Final = frozenset(_MODES.values())
_NAMES: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    412: "PreconditionFailed",
    413: "PayloadTooLarge",
    415: "UnsupportedMediaType",
    429: "ResourceExhausted",
    500: "Internal",
    503: "ServiceUnavailable",
}
"""What llm-d's scheduler calls statuses, and what it would call the others."""


class Gone(ConnectionError):
    """The gateway ended the exchange: its client is gone, or it is."""


class Unusable(KvatlasError):
    """The gateway speaks in a way that no request can be decided on; the operator's."""


class Stream(Protocol):
    """Messages from and to the gateway."""

    async def read(self) -> bytes | None:
        """Give the next one; None when the gateway has ended the exchange."""

    async def write(self, message: bytes) -> None:
        """Send one."""


class Exchange:
    """An exchange whose request's headers have come.

    Args:
        stream: of the exchange.
        head: its first message.
        settings: what holds where the gateway does not say.

    Attributes:
        request: of the client; its body comes with `receive`.
        has_body: whether a body comes, that we are shown.
        subset: endpoints that the request may go to; None for any.

    Raises:
        Unusable: it does not begin with headers, or sends bodies in a way that is none of ours.
    """

    __slots__ = (
        "_had_trailers", "_request_mode", "_response_mode", "_stream", "has_body", "request",
        "subset",
    )  # fmt: skip

    def __init__(self, stream: Stream, head: Arrived, settings: PickerSettings) -> None:
        if head.part != "request_headers":
            raise Unusable("request_header_mode is not SEND")
        told = head.body_modes()
        mode = told[0] if told is not None else _MODES[settings.request_body]
        self.has_body = not head.is_last and mode != ext_proc.NO_BODY
        if self.has_body and mode not in _USABLE:
            raise Unusable("request_body_mode is neither FULL_DUPLEX_STREAMED nor BUFFERED")
        self._stream = stream
        self._request_mode = mode
        self._had_trailers = False
        self._response_mode = told[1] if told is not None else ext_proc.NO_BODY
        self.request = _request(head)
        self.subset = head.subset() if settings.subset_hint else None

    async def read(self) -> Arrived | None:
        """Give the next message; None at the end of the exchange.

        Raises:
            Unusable: it is none.
        """
        raw = await self._stream.read()
        if raw is None:
            return None
        try:
            return ext_proc.read(raw)
        except ValueError:
            raise Unusable("no ProcessingRequest") from None

    async def write(self, messages: Iterable[bytes]) -> None:
        """Send messages."""
        for each in messages:
            await self._stream.write(each)

    # --- the request --------------------------------------------------------------------------

    async def receive(self, bytes_max: int, within_s: float) -> None:
        """Take in the body; of one that is too large no more than shows it.

        Raises:
            BodyTimeout: the client's.
            Gone: it will not come.
        """
        if self._request_mode == ext_proc.BUFFERED:
            # The gateway waits for leave to gather the body.
            await self._stream.write(ext_proc.changed("request_headers", ext_proc.NO_CHANGE))
        try:
            async with asyncio.timeout(within_s):
                while not self.request.is_whole:
                    await self._take(bytes_max)
        except TimeoutError:
            raise BodyTimeout("the body did not arrive in time") from None

    async def _take(self, bytes_max: int) -> None:
        request, arrived = self.request, await self.read()
        if arrived is None:
            raise Gone
        if arrived.part == "request_body":
            request.feed(arrived.body)
            if arrived.is_last or request.size > bytes_max:
                request.complete()
        elif arrived.part == "request_trailers":
            self._had_trailers = True
            request.complete()

    async def forward(self, change: Change, body: bytes) -> None:
        """Let the request go on.

        Args:
            change: of its headers, and where it goes.
            body: as engines are to get it.
        """
        if not self.has_body:
            return await self.write([ext_proc.changed("request_headers", change)])
        if self._request_mode == ext_proc.BUFFERED:
            if not self.request.came_as(body):
                change = dataclasses.replace(change, body=body)
            return await self.write([ext_proc.changed("request_body", change)])
        is_last = not self._had_trailers
        told = [
            ext_proc.changed("request_headers", change),
            *ext_proc.streamed_body("request_body", body, is_last=is_last),
        ]
        if self._had_trailers:
            told.append(ext_proc.trailers("request_trailers"))
        return await self.write(told)

    # --- the answer ---------------------------------------------------------------------------

    @property
    def sends_answers(self) -> bool:
        """Tell whether bodies of answers come."""
        return self._response_mode != ext_proc.NO_BODY

    @property
    def streams_answers(self) -> bool:
        """Tell whether bodies of answers come as they are made."""
        return self._response_mode in (ext_proc.STREAMED, ext_proc.FULL_DUPLEX)

    @property
    def may_send_answers(self) -> bool:
        """Tell whether they come, or would if they were asked for; gateways grant that by mode."""
        return self.sends_answers or self._request_mode == ext_proc.BUFFERED

    async def begin(self, change: Change, *, with_body: bool = False) -> None:
        """Let the head of the answer go on.

        Args:
            change: of its headers.
            with_body: have the gateway send the body, too, where it does not already.
        """
        more = ext_proc.FULL_DUPLEX if with_body and not self.sends_answers else None
        if more is not None:
            self._response_mode = more
        await self.write([ext_proc.changed("response_headers", change, response_body=more)])

    async def pass_on(self, arrived: Arrived, body: bytes | None = None) -> None:
        """Let a piece of the answer's body, or trailers, go on.

        Args:
            arrived: the piece.
            body: in its place; without it the piece itself.
        """
        if arrived.part in ("request_trailers", "response_trailers"):
            await self.write([ext_proc.trailers(arrived.part)])
        elif arrived.part == "response_body":
            came = arrived.body
            out = came if body is None else body
            if self._response_mode == ext_proc.FULL_DUPLEX:
                await self.write(
                    ext_proc.streamed_body("response_body", out, is_last=arrived.is_last)
                )
            else:
                change = Change(body=out) if out != came else ext_proc.NO_CHANGE
                await self.write([ext_proc.changed("response_body", change)])

    async def refuse(self, error: HttpError, trip_id: str) -> None:
        """Answer the client with an error, in the words of llm-d's scheduler."""
        name = _NAMES.get(error.status, "Unknown")
        headers = [("Content-Type", "text/plain"), *error_headers(error, trip_id)]
        text = f"inference error: {name} - {error.message}"
        told = ext_proc.immediate(error.status, headers, text.encode(), f"kvatlas_{error.code}")
        await self._stream.write(told)
        if not self.request.is_whole:
            await self._pass_over()

    async def _pass_over(self) -> None:
        """Read what is still on its way, for a while: an end before it looks like a failure."""
        with suppress(TimeoutError, Unusable):
            async with asyncio.timeout(limits.PASS_OVER_S):
                while (arrived := await self.read()) is not None:
                    if arrived.part == "request_body" and arrived.is_last:
                        return


def _request(head: Arrived) -> Request:
    """Make a request of its headers; its path is the one that we know, without a prefix."""
    pseudo: dict[str, str] = {}
    received: list[Header] = []
    for name, value in head.headers():
        if name.startswith(":"):
            pseudo[name] = value
        else:
            received.append((name, value))
    bare, mark, query = pseudo.get(":path", "").partition("?")
    known = gateway_path(bare) or bare
    request = Request(pseudo.get(":method", ""), known + mark + query, Headers(received))
    request.content_length = _length(request.headers.get("content-length"))
    request.is_whole = head.is_last
    return request


def _length(told: str | None) -> int | None:
    """Read the length of a body; None where it is not told, and may be any."""
    return int(told) if told is not None and told.isascii() and told.isdigit() else None

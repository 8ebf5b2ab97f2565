"""A request's body: read within its bounds, and what it says, or must be told of it."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from kvatlas.common.errors import BodyTimeout, BodyTooLarge, InvalidRequest, UnsupportedEncoding
from kvatlas.common.settings import Settings
from kvatlas.router.answers import parse_object
from kvatlas.router.body import ClientBody, client_body

MODEL_HEADER: Final = "x-kvatlas-model"
"""Names the model of a body that is not read; it ends here, as all headers of this kind."""
UNREAD_TYPE: Final = "multipart/form-data"


class Intake:
    """Take requests in."""

    def __init__(self, settings: Settings) -> None:
        self._bytes_max = settings.router.body_bytes_max
        self._read_s = settings.router.body_read_s
        self._unread_paths = frozenset(settings.router.load_paths)
        self._models = [model.name for model in settings.models]

    async def take(self, request: web.Request) -> ClientBody:
        """Read a body.

        Raises:
            UnsupportedEncoding, BodyTooLarge, BodyTimeout, InvalidRequest: the client's.
        """
        raw = await self.body(request)
        if request.content_type == UNREAD_TYPE and request.path in self._unread_paths:
            return ClientBody(raw, {"model": self._told_model(request)}, (), is_unread=True)
        return client_body(raw, parse_object(raw))

    async def body(self, request: web.Request) -> bytes:
        """Read a body within its bounds.

        Raises:
            UnsupportedEncoding, BodyTooLarge, BodyTimeout: the client's.
        """
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedEncoding("compressed bodies are not taken")
        most = self._bytes_max
        if (request.content_length or 0) > most:
            raise BodyTooLarge(f"the body is over {most} bytes")
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._read_s):
                while piece := await request.content.readany():
                    size += len(piece)
                    if size > most:
                        raise BodyTooLarge(f"the body is over {most} bytes")
                    pieces.append(piece)
        except TimeoutError:
            raise BodyTimeout("the body did not arrive in time") from None
        return b"".join(pieces)

    def _told_model(self, request: web.Request) -> str:
        """Find the model of a body that is not read: in a header, or there is but one."""
        if (told := request.headers.get(MODEL_HEADER)) is not None:
            return told
        if len(self._models) != 1:
            raise InvalidRequest(f"with several models a form needs {MODEL_HEADER}", "model")
        return self._models[0]

"""A request's body: read within its bounds, and what it says, or must be told of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from kvatlas.common.errors import InvalidRequest, UnsupportedEncoding
from kvatlas.common.settings import Settings
from kvatlas.router.answers import parse_object
from kvatlas.router.body import ClientBody, client_body
from kvatlas.router.request import Request

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

    async def take(self, request: Request, *, passes: bool = False) -> ClientBody:
        """Read a body.

        Args:
            request: whose body it is.
            passes: take one that is not JSON, or names no model, and leave it unread.

        Raises:
            UnsupportedEncoding, BodyTooLarge, BodyTimeout, InvalidRequest: the client's.
        """
        raw = await self.body(request)
        if passes:
            return self._passed(request, raw)
        if request.path in self._unread_paths and _is_form(request):
            return ClientBody(raw, {"model": self._told_model(request)}, (), is_unread=True)
        return client_body(raw, parse_object(raw))

    async def body(self, request: Request) -> bytes:
        """Read a body within its bounds.

        Raises:
            UnsupportedEncoding, BodyTooLarge, BodyTimeout: the client's.
        """
        codings = request.headers.getall("content-encoding")
        if any(coding.lower() != "identity" for coding in codings):
            raise UnsupportedEncoding("compressed bodies are not taken")
        return await request.body(self._bytes_max, self._read_s)

    def _passed(self, request: Request, raw: bytes) -> ClientBody:
        with suppress(InvalidRequest):
            read = client_body(raw, parse_object(raw))
            if "model" in read.fields:
                return read
        return ClientBody(raw, {"model": self._told_model(request)}, (), is_unread=True)

    def _told_model(self, request: Request) -> str:
        """Find the model of a body that is not read: in a header, or there is but one."""
        if (told := request.headers.get(MODEL_HEADER)) is not None:
            return str(told)
        if len(self._models) != 1:
            raise InvalidRequest(f"with several models a form needs {MODEL_HEADER}", "model")
        return self._models[0]


def _is_form(request: Request) -> bool:
    kind, _, _ = request.headers.get("content-type", "").partition(";")
    return bool(kind.strip().lower() == UNREAD_TYPE)

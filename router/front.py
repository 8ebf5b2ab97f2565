"""The public port: who may come, how much is let in, and where a path leads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvatlas.common.admin import Readiness
from kvatlas.common.errors import (
    HttpError,
    MethodNotAllowed,
    RouteNotFound,
    TooManyConnections,
)
from kvatlas.common.log import logger
from kvatlas.common.metrics import OTHER
from kvatlas.router.admission import Admission
from kvatlas.router.answers import error_response
from kvatlas.router.catalog import MODELS_PATH
from kvatlas.router.core import Core
from kvatlas.router.cores import Cores
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.openapi import OPENAPI_PATH, openapi
from kvatlas.router.paths import posted_paths
from kvatlas.router.request import Request, Response
from kvatlas.router.trip import UNKNOWN, tell_refused

_LOG = logger("front")

READY_PATH = "/readyz"

Answer = Callable[[Request], Awaitable[Response | None]]


class Front:
    """Answer requests with whichever core is the newest.

    Args:
        cores: of the process.
        admission: how much is let in, by all of them together.
        readiness: of the process.
        metrics: told of requests that go no further.
    """

    def __init__(
        self, cores: Cores, admission: Admission, readiness: Readiness, metrics: RouterMetrics
    ) -> None:
        self._cores = cores
        self._metrics = metrics
        self._admission = admission
        self._readiness = readiness
        self._routes: tuple[Core | None, dict[str, Answer], dict[str, Answer]] = (None, {}, {})

    async def answer(self, request: Request) -> Response | None:
        """Answer a request; None where it was answered piece by piece."""
        core = self._cores.current
        try:
            handler, is_posted = self._route(core, request)
            if core.access is not None:
                request.client = core.access.client(request)
            if not is_posted:
                return await handler(request)
            with self._admission.admitted(self._admission.ask_of(request)):
                return await handler(request)
        except HttpError as error:
            return self._refuse(core, request, error)

    def unread(self, error: HttpError, path: str) -> Response:
        """Answer what is no request, or has failed; it is counted, and told of."""
        self._metrics.requests.labels(UNKNOWN, OTHER, str(error.status)).inc()
        self._metrics.errors.labels(UNKNOWN, error.code).inc()
        if not isinstance(error, TooManyConnections):
            _LOG.info("request.unread", status=error.status, code=error.code)
        return error_response(error, path)

    def described(self) -> set[tuple[str, str]]:
        """List what is served: methods and paths."""
        _, posted, read = self._routes_of(self._cores.current)
        found = {("POST", path) for path in posted} | {("GET", path) for path in read}
        return found | {("GET", f"{MODELS_PATH}/{{id}}")}

    def _refuse(self, core: Core, request: Request, error: HttpError) -> Response:
        """Answer what went no further than here."""
        _, posted, read = self._routes_of(core)
        path = request.path if request.path in posted or request.path in read else OTHER
        trip_id = tell_refused(error, path, request, self._metrics)
        return error_response(error, request.path, trip_id)

    def _route(self, core: Core, request: Request) -> tuple[Answer, bool]:
        """Find what answers a path, and whether it takes a body.

        Raises:
            RouteNotFound, MethodNotAllowed: the client's.
        """
        _, posted, read = self._routes_of(core)
        path, method = request.path, request.method
        if (handler := posted.get(path)) is not None:
            if method != "POST":
                raise _not_allowed("POST")
            return handler, True
        handler = read.get(path)
        if handler is None and path.startswith(f"{MODELS_PATH}/"):
            handler = core.desk.catalog.model
        if handler is None:
            raise RouteNotFound("there is nothing at this path")
        if method != "GET":
            raise _not_allowed("GET")
        return handler, False

    def _routes_of(self, core: Core) -> tuple[Core | None, dict[str, Answer], dict[str, Answer]]:
        if self._routes[0] is not core:
            posted: dict[str, Answer] = dict.fromkeys(
                posted_paths(core.settings.router), core.http.generate
            )
            read: dict[str, Answer] = {
                MODELS_PATH: core.desk.catalog.models,
                READY_PATH: self._ready,
                OPENAPI_PATH: openapi(core.settings.router),
            }
            self._routes = (core, posted, read)
            self._admission.configure(core.settings.router)
        return self._routes

    async def _ready(self, _request: Request) -> Response:
        reason = self._readiness()
        if reason is None:
            return Response.json({"status": "ready"})
        return Response.json({"status": "not ready", "reason": reason}, status=503)


def _not_allowed(allowed: str) -> MethodNotAllowed:
    error = MethodNotAllowed(f"allowed: {allowed}")
    error.headers = [("Allow", allowed)]
    return error

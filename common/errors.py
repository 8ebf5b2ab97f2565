"""Every error that kvatlas raises on purpose.

    KvatlasError
    |-- ConfigError                the operator's: the configuration cannot be used
    |-- RequestError               the client's; each has an HTTP status and an OpenAI code
    |   |-- InvalidRequest         400 invalid_request_error
    |   |-- BadHttp                400 bad_http
    |   |-- KeyUnknown             401 invalid_api_key
    |   |-- KeyRefused             403 permission_denied
    |   |-- ModelNotFound          404 model_not_found
    |   |-- RouteNotFound          404 not_found
    |   |-- MethodNotAllowed       405 method_not_allowed
    |   |-- BodyTimeout            408 request_timeout
    |   |-- BodyTooLarge           413 request_too_large
    |   |-- UnsupportedEncoding    415 unsupported_content_encoding
    |   |-- TooManyConnections     503 too_many_connections
    |   |-- Overloaded             429 overloaded
    |   `-- RateLimited            429 rate_limit_exceeded
    |-- InternalError              ours; 500 internal_error
    |   |-- Exhausted              503 exhausted
    |   `-- ShuttingDown           503 shutting_down
    |-- UpstreamError              the engines'; each has an HTTP status
    |   |-- NoEndpoints            503 no_endpoints
    |   |-- UpstreamConnect        502 upstream_connect
    |   |   `-- UpstreamUnreached  504 upstream_unreached
    |   |-- UpstreamProtocol       502 upstream_protocol
    |   |-- UpstreamTorn           upstream_failed: at the end of a stream, which has its status
    |   `-- UpstreamTimeout        504 upstream_timeout
    |-- PromptUnavailable          no token ids for this request here: route by load
    |-- IndexUnavailable           the shared index did not answer: route by load
    |   |-- WrongEpoch             a write was refused: the endpoint has another epoch or sequence
    |   `-- Fenced                 a write was refused: the endpoint has another owner
    |-- Silence                    an engine did not answer a question (router/engine_client.py)
    `-- MalformedBatch             an engine sent events that cannot be read

Messages never hold prompt text, token ids, header values or keys.
"""

from __future__ import annotations

from typing import ClassVar


class KvatlasError(Exception):
    """Root of every error that is raised on purpose."""


class ConfigError(KvatlasError):
    """Report every fault of a configuration at once.

    Args:
        faults: one line per fault, each beginning with the path of the setting.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class HttpError(KvatlasError):
    """An error that is answered to a client in the OpenAI error shape.

    Args:
        message: for the client's developer; holds nothing of the prompt.
        param: the field at fault, where there is one.

    Attributes:
        headers: that go with the answer.
        dropped_reason: why the fleet did not take it, in llm-d's words; None for other errors.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal_error"
    dropped_reason: ClassVar[str | None] = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers: list[tuple[str, str]] = []


class RequestError(HttpError):
    """The client sent something that cannot be served."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request_error"


class InvalidRequest(RequestError):
    """The body is not a request that the router can read."""


class BadHttp(RequestError):
    """What the client sent is not HTTP as we speak it."""

    code = "bad_http"


class KeyUnknown(RequestError):
    """The client showed no API key, or one that is not known; it is not told which."""

    status = 401
    code = "invalid_api_key"


class KeyRefused(RequestError):
    """The client's API key is not good for this."""

    status = 403
    code = "permission_denied"


class ModelNotFound(RequestError):
    """No configured model has this name."""

    status = 404
    code = "model_not_found"


class RouteNotFound(RequestError):
    """The path is not one that the router serves."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The path is served, but not with this method."""

    status = 405
    code = "method_not_allowed"


class BodyTimeout(RequestError):
    """The client took too long to send its body."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestError):
    """The body is over `router.body_bytes_max`."""

    status = 413
    code = "request_too_large"


class UnsupportedEncoding(RequestError):
    """The body is compressed; the router does not unpack what strangers packed."""

    status = 415
    code = "unsupported_content_encoding"


class Overloaded(RequestError):
    """The router has as much under way as it may, in all or of the client's tenant."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    dropped_reason = "rejected-saturated"


class TooManyConnections(RequestError):
    """The router has as many connections of clients as it may."""

    status = 503
    type = "api_error"
    code = "too_many_connections"


class RateLimited(RequestError):
    """The client's tenant has reached a limit."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class InternalError(HttpError):
    """The router failed; what it was is in its log."""


class Exhausted(InternalError):
    """The router has no file or memory left for a connection, which is no fault of an engine."""

    status = 503
    code = "exhausted"


class ShuttingDown(InternalError):
    """We take nothing new any more; another replica does."""

    status = 503
    code = "shutting_down"
    dropped_reason = "rejected-shutting-down"


class UpstreamError(HttpError):
    """An engine failed before the first byte of its answer."""

    status = 502
    code = "upstream_error"


class NoEndpoints(UpstreamError):
    """No endpoint of the model can take the request."""

    status = 503
    code = "no_endpoints"
    dropped_reason = "rejected-no-endpoints"


class UpstreamConnect(UpstreamError):
    """The engine could not be reached, or closed before it answered."""

    code = "upstream_connect"


class UpstreamUnreached(UpstreamConnect):
    """Nothing at the engine's address took or refused the connection in time."""

    status = 504
    code = "upstream_unreached"


class UpstreamProtocol(UpstreamError):
    """The engine answered something that is not HTTP."""

    code = "upstream_protocol"


class UpstreamTorn(UpstreamError):
    """The engine failed after the first byte of its answer."""

    code = "upstream_failed"


class UpstreamTimeout(UpstreamError):
    """The engine did not begin its answer in time."""

    status = 504
    code = "upstream_timeout"


class PromptUnavailable(KvatlasError):
    """The request's token ids are not to be had here; route it by load.

    Args:
        reason: one of a closed set of words (a metric label), for example "too_long".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class IndexUnavailable(KvatlasError):
    """The shared index did not answer, or refused.

    Args:
        reason: one of a closed set of words (a metric label), for example "timeout".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongEpoch(IndexUnavailable):
    """The index holds another epoch or sequence for the endpoint than the writer believed."""

    def __init__(self) -> None:
        super().__init__("wrong_epoch")


class Fenced(IndexUnavailable):
    """The endpoint has another owner than the writer; nothing was written."""

    def __init__(self) -> None:
        super().__init__("fenced")


class MalformedBatch(KvatlasError):
    """A batch of events cannot be read.

    Args:
        reason: one of a closed set of words (a metric label), for example "schema".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

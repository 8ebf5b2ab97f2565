"""What the router reads and writes as JSON: bodies, explanations, errors."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import orjson

from kvatlas.common import limits
from kvatlas.common.errors import (
    HttpError,
    InvalidRequest,
    NoEndpoints,
    UpstreamTorn,
)
from kvatlas.common.llm_d.headers import DROPPED_REASON
from kvatlas.common.prompt import MESSAGES_PATH
from kvatlas.router.body import is_lavish, too_many_members
from kvatlas.router.headers import Header
from kvatlas.router.paths import COUNT_TOKENS_PATH
from kvatlas.router.pipeline import STAGES, Decision
from kvatlas.router.request import JSON_TYPE, Response

RETRY_AFTER_S: Final = "1"
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TORN: Final = UpstreamTorn("the engine failed while it was answering")


def parse_object(raw: bytes) -> dict[str, Any]:
    """Read a body as a JSON object.

    Raises:
        InvalidRequest: it is not one, or one that no request is.
    """
    if is_lavish(raw):
        raise InvalidRequest("the body has too many lists and objects")
    try:
        content = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequest("the body is not JSON") from None
    if not isinstance(content, dict):
        raise InvalidRequest("the body is not a JSON object")
    if len(content) > limits.JSON_MEMBERS_MAX:
        raise too_many_members()
    return content


def explanation(decision: Decision) -> dict[str, Any]:
    """Write a decision as /explain answers it."""
    return {
        "model": decision.model,
        "adapter": decision.adapter,
        "endpoint": decision.chosen.endpoint.name,
        "prompt_tokens": decision.prompt_tokens,
        "block_size": decision.block_size,
        "blocks": decision.blocks,
        "candidates": [
            {
                "endpoint": judged.endpoint.name,
                "match_blocks": judged.match_blocks,
                "match_tokens": judged.match_tokens,
                "predicted_blocks": judged.predicted_blocks,
                "scores": {name: round(term, 4) for name, term in judged.terms.items()},
                "score": judged.score,
            }
            for judged in decision.candidates
        ],
        "fallback": decision.fallback,
        "trust": round(decision.work.trust, 3),
        "is_own_prompt": decision.is_own_prompt,
        "timings_ms": {stage: round(decision.timings_ms.get(stage, 0.0), 4) for stage in STAGES},
    }


@cache
def torn_event(path: str) -> bytes:
    """Write what a stream ends with whose engine failed."""
    name = b"event: error\n" if _is_anthropic(path) else b""
    return name + b"data: " + _content(_TORN, path) + b"\n\n"


def error_response(error: HttpError, path: str, trip_id: str | None = None) -> Response:
    """Write an error in the shape that clients of a path expect: OpenAI's or Anthropic's."""
    headers = [("Content-Type", JSON_TYPE), *error_headers(error, trip_id)]
    return Response(error.status, _content(error, path), headers)


def error_headers(error: HttpError, trip_id: str | None) -> list[Header]:
    """Give the headers of an error's answer, but for its type."""
    headers = list(error.headers)
    if trip_id:
        headers.append(("X-Request-Id", trip_id))
    if error.status == NoEndpoints.status:
        headers.append(("Retry-After", RETRY_AFTER_S))
    if error.dropped_reason is not None:
        headers.append((DROPPED_REASON.name, error.dropped_reason))
    return headers


def _is_anthropic(path: str) -> bool:
    return path in (MESSAGES_PATH, COUNT_TOKENS_PATH)


def _content(error: HttpError, path: str) -> bytes:
    if _is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(error.status, error.type)
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message}})
    told = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return orjson.dumps({"error": told})

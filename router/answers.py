"""What the router reads and writes as JSON: bodies, explanations, errors in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from aiohttp import web

from kvatlas.common.errors import (
    HttpError,
    InvalidRequest,
    MethodNotAllowed,
    NoEndpoints,
    RouteNotFound,
)
from kvatlas.router.pipeline import STAGES, Decision

RETRY_AFTER_S: Final = "1"
ANTHROPIC_PATHS: Final = ("/v1/messages",)
"""Whose clients read errors in Anthropic's shape; what begins with one, too."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def parse_object(raw: bytes) -> dict[str, Any]:
    """Read a body as a JSON object.

    Raises:
        InvalidRequest: it is not one.
    """
    try:
        content = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequest("the body is not JSON") from None
    if not isinstance(content, dict):
        raise InvalidRequest("the body is not a JSON object")
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


def error_response(error: HttpError, trip_id: str | None = None) -> web.Response:
    """Write an error in OpenAI's shape."""
    content = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
    response = web.Response(
        status=error.status, body=orjson.dumps(content), content_type="application/json"
    )
    if trip_id:
        response.headers["X-Request-Id"] = trip_id
    response.headers.extend(error.headers)
    if error.status == NoEndpoints.status:
        response.headers["Retry-After"] = RETRY_AFTER_S
    return response


def _anthropic_response(error: HttpError) -> web.Response:
    """Write an error in Anthropic's shape."""
    told = {"type": error.anthropic_type, "message": error.message}
    response = error_response(error)
    response.body = orjson.dumps({"type": "error", "error": told})
    return response


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in the shape of its path, those of the HTTP library too."""
    try:
        return await handler(request)
    except HttpError as error:
        if request.path.startswith(ANTHROPIC_PATHS):
            return _anthropic_response(error)
        return error_response(error)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = error_response(MethodNotAllowed(f"allowed: {allowed}"))
        response.headers["Allow"] = allowed
        return response
    except web.HTTPNotFound:
        return error_response(RouteNotFound("there is nothing at this path"))

"""What the router serves on its public port, in the words of OpenAPI.

Bodies are described as far as the router reads them; what else they may hold is for the engine,
whose answers pass unchanged.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from kvatlas import __version__
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH
from kvatlas.router.request import Request, Response

OPENAPI_PATH: Final = "/openapi.json"
_JSON: Final = "application/json"
_TEXT: Final = {"type": "string"}
_REQUEST_ID: Final = {
    "X-Request-Id": {"description": "Of the request, as in the log.", "schema": _TEXT}
}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {_JSON: {"schema": schema}}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _error(says: str, **headers: Any) -> dict[str, Any]:
    return {
        "description": says,
        "headers": {**_REQUEST_ID, **headers},
        "content": _content(_ref("schemas", "Error")),
    }


_ERRORS: Final[dict[str, Any]] = {
    "400": _error("The router cannot read the request, or the engine refuses it."),
    "404": _error("The model does not exist."),
    "408": _error("The body did not arrive in time."),
    "413": _error("The body is too large."),
    "415": _error("The body is compressed."),
    "500": _error("The engine failed; its answer passes unchanged."),
    "502": _error("The engine could not be reached, or its answer not be read."),
    "503": _error(
        "No engine serves the model.",
        **{"Retry-After": {"description": "Seconds.", "schema": _TEXT}},
    ),
    "504": _error("The engine did not begin its answer in time."),
}
_ANSWER: Final = {
    "description": "The engine's answer; with `stream`, events that end with `[DONE]`.",
    "headers": _REQUEST_ID,
    "content": {
        _JSON: {"schema": {"type": "object"}},
        "text/event-stream": {"schema": _TEXT},
    },
}


def _generation(name: str, says: str) -> dict[str, Any]:
    return {
        "post": {
            "operationId": name,
            "summary": says,
            "requestBody": {"required": True, "content": _content(_ref("schemas", name))},
            "responses": {"200": _ANSWER, **_ERRORS},
        }
    }


def _reading(name: str, says: str, **responses: Any) -> dict[str, Any]:
    return {"get": {"operationId": name, "summary": says, "responses": responses}}


def _shown(says: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": says, "content": _content(schema)}


_READINESS: Final = _object(["status"], status=_TEXT, reason=_TEXT)
_MODEL: Final = _object(
    ["id", "object", "created", "owned_by"],
    id=_TEXT,
    object={"const": "model"},
    created={"type": "integer"},
    owned_by=_TEXT,
    max_model_len={"type": "integer"},
    parent={**_TEXT, "description": "The model that an adapter belongs to."},
)
_ASKED: Final = {
    "model": {**_TEXT, "description": "Of `/v1/models`."},
    "stream": {"type": ["boolean", "null"]},
}
_SCHEMAS: Final[dict[str, Any]] = {
    "Error": _object(
        ["error"],
        error=_object(
            ["message", "type", "param", "code"],
            message=_TEXT,
            type=_TEXT,
            param={"type": ["string", "null"]},
            code={"type": ["string", "integer", "null"]},
        ),
    ),
    "Model": _MODEL,
    "Models": _object(
        ["object", "data"],
        object={"const": "list"},
        data={"type": "array", "items": _ref("schemas", "Model")},
    ),
    "chat": _object(
        ["model", "messages"], messages={"type": "array", "items": {"type": "object"}}, **_ASKED
    ),
    "completion": _object(
        ["model", "prompt"], prompt={"type": ["string", "array"], "items": {}}, **_ASKED
    ),
}

DESCRIPTION: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {
        "title": "kvatlas router",
        "version": __version__,
        "description": "Sends each request to the engine that holds its prefix.",
    },
    "paths": {
        CHAT_PATH: _generation("chat", "Answer a chat."),
        COMPLETIONS_PATH: _generation("completion", "Continue a prompt."),
        "/v1/models": _reading(
            "models",
            "List models, and the adapters that are known.",
            **{"200": _shown("The list.", _ref("schemas", "Models"))},
        ),
        "/readyz": _reading(
            "readiness",
            "Tell whether new requests may come.",
            **{"200": _shown("They may.", _READINESS), "503": _shown("Not, and why.", _READINESS)},
        ),
        OPENAPI_PATH: _reading(
            "description",
            "Give this description.",
            **{"200": _shown("The description.", {"type": "object"})},
        ),
    },
    "components": {"schemas": _SCHEMAS},
}
_WRITTEN: Final = orjson.dumps(DESCRIPTION)


async def openapi(_request: Request) -> Response:
    """Give the description."""
    return Response(200, _WRITTEN, [("Content-Type", _JSON)])

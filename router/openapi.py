"""What the router serves on its public port, in the words of OpenAPI.

Bodies are described as far as the router reads them; what else they may hold is for the engine,
whose answers pass unchanged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import orjson

from kvatlas import __version__
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH
from kvatlas.common.settings import RouterSettings
from kvatlas.router.paths import COUNT_TOKENS_PATH, posted_paths
from kvatlas.router.request import Request, Response

OPENAPI_PATH: Final = "/openapi.json"
_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data"
_TEXT: Final = {"type": "string"}
_OBJECTS: Final = {"type": "array", "items": {"type": "object"}}
_EVENT: Final = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": _TEXT, "data": _TEXT},
    "description": "Of those that the answer consists of where `stream` is true.",
}
_REQUEST_ID: Final = {
    "X-Request-Id": {"description": "Of the request, as in the log.", "schema": _TEXT}
}
_RETRY_AFTER: Final = {"Retry-After": {"description": "Seconds.", "schema": _TEXT}}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {_JSON: {"schema": schema}}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


# --- errors -----------------------------------------------------------------------------------
_ERRORS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "400": ("The router cannot read the request, or the engine refuses it.", {}),
    "401": ("A valid API key is needed.", {}),
    "403": ("The API key is not good for this.", {}),
    "404": ("The model does not exist, or the engine does not serve this.", {}),
    "408": ("The body did not arrive in time.", {}),
    "413": ("The body is too large.", {}),
    "415": ("The body is compressed.", {}),
    "422": ("The engine cannot read the request.", {}),
    "429": ("Too much is under way, or a limit is reached.", _RETRY_AFTER),
    "500": ("The router failed, or the engine did; its answer passes unchanged.", {}),
    "502": ("The engine could not be reached, or its answer not be read.", {}),
    "503": ("No engine serves the model, or all connections or files are taken.", _RETRY_AFTER),
    "504": ("The engine did not begin its answer in time.", {}),
}
_AT_THE_DOOR: Final = ("400", "401", "403", "500", "503")
"""Of those, what requests without a body can meet."""
_OPENAI: Final = _ref("schemas", "Error")
_ANTHROPIC: Final = {"anyOf": [_ref("schemas", "MessageError"), _OPENAI]}
"""An engine tells some faults of a message in OpenAI's words."""
_ANY: Final = {"anyOf": [_OPENAI, _object(["detail"])]}
"""Of paths that go by load: what an engine says that has no such path is its server's word."""


def _errors(shape: dict[str, Any], statuses: Sequence[str] = tuple(_ERRORS)) -> dict[str, Any]:
    return {
        status: {
            "description": _ERRORS[status][0],
            "headers": {**_REQUEST_ID, **_ERRORS[status][1]},
            "content": _content(shape),
        }
        for status in statuses
    }


# --- operations -------------------------------------------------------------------------------
def _posted(
    name: str, says: str, *, shape: dict[str, Any], streams: bool = True, forms: bool = False
) -> dict[str, Any]:
    """Describe a path whose requests go to engines; its body is the schema of its name."""
    body = _content(_ref("schemas", name))
    if forms:
        body[_FORM] = {"schema": {"type": "object"}}
    told: dict[str, Any] = {_JSON: {"schema": {}}}
    if streams:
        told["text/event-stream"] = {"schema": _EVENT}
    answer = {"description": "The engine's answer.", "headers": _REQUEST_ID, "content": told}
    return {
        "post": {
            "operationId": name,
            "summary": says,
            "requestBody": {"required": True, "content": body},
            "responses": {"200": answer, **_errors(shape)},
        }
    }


def _read(name: str, says: str, shown: dict[str, Any], **responses: Any) -> dict[str, Any]:
    answer = {"description": "What was asked for.", "content": _content(shown)}
    return {"get": {"operationId": name, "summary": says, "responses": {"200": answer} | responses}}


_MODEL_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "It may hold slashes, as they are or escaped.",
    # A segment of dots is another path to every client.
    "schema": {**_TEXT, "minLength": 1, "not": {"pattern": r"(^|/)\.{0,2}($|/)"}},
}
_READINESS: Final = _object(["status"], status=_TEXT, reason=_TEXT)
_KNOWN: Final[dict[str, dict[str, Any]]] = {
    CHAT_PATH: _posted("chat", "Answer a chat.", shape=_OPENAI),
    COMPLETIONS_PATH: _posted("completion", "Continue a prompt.", shape=_OPENAI),
    MESSAGES_PATH: _posted("message", "Answer messages, as Anthropic's API.", shape=_ANTHROPIC),
    COUNT_TOKENS_PATH: _posted(
        "count_tokens", "Count the tokens of messages.", shape=_ANTHROPIC, streams=False
    ),
    RESPONSES_PATH: _posted("response", "Make a response.", shape=_OPENAI),
    "/tokenize": _posted(
        "tokenize", "Give the tokens of a text or a chat.", shape=_ANY, streams=False
    ),
    "/detokenize": _posted("detokenize", "Give the text of tokens.", shape=_ANY, streams=False),
}
"""Paths whose bodies are described one by one; those that go by load are described alike."""


def _reading() -> dict[str, dict[str, Any]]:
    door = _errors(_OPENAI, _AT_THE_DOOR)
    unknown = _errors(_OPENAI, ("404",))
    waits = {"503": {"description": "Not, and why.", "content": _content(_READINESS)}}
    model = _read("model", "Describe a model.", _ref("schemas", "Model"), **door, **unknown)
    model["get"]["parameters"] = [_MODEL_ID]
    ready = _read("readiness", "Tell whether new requests may come.", _READINESS, **waits)
    # Who asks this shows no key.
    ready["get"]["security"] = []
    return {
        "/v1/models": _read(
            "models",
            "List models, adapters that are known, and the names that stand for them.",
            _ref("schemas", "Models"),
            **door,
        ),
        "/v1/models/{id}": model,
        "/readyz": ready,
        OPENAPI_PATH: _read("description", "Give this.", {"type": "object"}, **door),
    }


# --- schemas ----------------------------------------------------------------------------------
_MODEL: Final = {**_TEXT, "description": "Of `/v1/models`."}
_STREAM: Final = {"type": ["boolean", "null"]}
_PREVIOUS: Final = {
    "type": ["string", "null"],
    "description": "Goes to the engine that made that one.",
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
    "MessageError": _object(
        ["type", "error"],
        type={"const": "error"},
        error=_object(["type", "message"], type=_TEXT, message=_TEXT),
    ),
    "Model": _object(
        ["id", "object", "created", "owned_by"],
        id=_TEXT,
        object={"const": "model"},
        created={"type": "integer"},
        owned_by=_TEXT,
        max_model_len={"type": "integer"},
        parent={**_TEXT, "description": "The model that an adapter belongs to."},
    ),
    "Models": _object(
        ["object", "data"],
        object={"const": "list"},
        data={"type": "array", "items": _ref("schemas", "Model")},
    ),
    "chat": _object(["model", "messages"], model=_MODEL, messages=_OBJECTS, stream=_STREAM),
    "completion": _object(
        ["model", "prompt"],
        model=_MODEL,
        prompt={"type": ["string", "array"], "items": {}},
        stream=_STREAM,
    ),
    "message": _object(
        ["model", "max_tokens", "messages"],
        model=_MODEL,
        max_tokens={"type": "integer"},
        messages=_OBJECTS,
        stream=_STREAM,
    ),
    "count_tokens": _object(["model", "messages"], model=_MODEL, messages=_OBJECTS),
    "response": _object(
        ["model", "input"],
        model=_MODEL,
        input={"type": ["string", "array"], "items": {"type": "object"}},
        previous_response_id=_PREVIOUS,
        stream=_STREAM,
    ),
    "tokenize": _object(["model"], model=_MODEL, prompt=_TEXT, messages=_OBJECTS),
    "detokenize": _object(
        ["model", "tokens"], model=_MODEL, tokens={"type": "array", "items": {"type": "integer"}}
    ),
}
_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def description(router: RouterSettings) -> dict[str, Any]:
    """Describe what a router with these settings serves."""
    paths: dict[str, Any] = {}
    schemas = dict(_SCHEMAS)
    for path in posted_paths(router):
        paths[path] = _KNOWN.get(path) or _by_load(path, schemas)
    if not router.tokenize_paths:
        del schemas["tokenize"], schemas["detokenize"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvatlas router",
            "version": __version__,
            "description": "Sends each request to the engine that holds its prefix.",
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _KEYS] if router.api_keys_file else [],
        "paths": paths | _reading(),
        "components": {"schemas": schemas, "securitySchemes": _KEYS},
    }


def _by_load(path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    name = path.strip("/").replace("/", "_")
    schemas[name] = _object(["model"], model=_MODEL)
    takes_forms = path.startswith("/v1/audio/")
    return _posted(name, "Ask an engine.", shape=_ANY, forms=takes_forms)


def openapi(router: RouterSettings) -> Callable[[Request], Awaitable[Response]]:
    """Give what answers with the description."""
    written = orjson.dumps(description(router))

    async def answer(_request: Request) -> Response:
        return Response(200, written, [("Content-Type", _JSON)])

    return answer

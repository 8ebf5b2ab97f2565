"""What the engine's handlers share: its parts, bodies in, JSON out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import orjson
from aiohttp import web

from kvatlas.common import limits
from kvatlas.common.errors import (
    BodyTimeout,
    BodyTooLarge,
    HttpError,
    InvalidRequest,
    ModelNotFound,
    PromptUnavailable,
)
from kvatlas.common.prompt import Prompt, PromptBuilder
from kvatlas.common.settings import EngineSettings, ModelSettings
from kvatlas.simulator.answers import Json
from kvatlas.simulator.events import Sources
from kvatlas.simulator.generation import Vocabulary
from kvatlas.simulator.metrics import EngineMetrics
from kvatlas.simulator.scheduler import Scheduler

VERSION = "0.32.0"
"""The vLLM that this engine behaves like."""
FINGERPRINT = f"vllm-{VERSION}-kvatlas"


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts that the handlers work with."""

    settings: EngineSettings
    model: ModelSettings
    max_model_len: int
    prompts: PromptBuilder
    vocabulary: Vocabulary
    scheduler: Scheduler
    metrics: EngineMetrics
    sources: Sources
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class Fault:
    """What a client is told of an error."""

    status: int
    message: str
    param: str | None = None


def fault_of(error: HttpError | PromptUnavailable) -> Fault:
    """Give what a client is told of an error."""
    if isinstance(error, PromptUnavailable):
        return Fault(400, f"The prompt cannot be rendered: {error.reason}")
    return Fault(error.status, error.message, error.param)


async def read_body(request: web.Request) -> Json:
    """Read a JSON object.

    Raises:
        InvalidRequest: it is none.
        BodyTooLarge: it is over the limit.
        BodyTimeout: it does not come.
    """
    try:
        async with asyncio.timeout(limits.BODY_READ_S):
            raw = await request.read()
        body = orjson.loads(raw)
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge("The body is too large") from None
    except TimeoutError:
        raise BodyTimeout("The body did not come in time") from None
    except orjson.JSONDecodeError:
        raise InvalidRequest("The body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object")
    return body


def check_model(body: Json, engine: Engine) -> str | None:
    """Refuse other models; no name at all means the one that is served, as with vLLM.

    Returns:
        The adapter that is named, or None for the model itself.
    """
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise InvalidRequest("model: is not a string", "model")
    if name in engine.settings.lora_adapters:
        return name
    if name and name != engine.model.name:
        raise ModelNotFound("The model does not exist.", "model")
    return None


async def tokenized(prompts: PromptBuilder, path: str, body: Json) -> Prompt:
    """Render and tokenize, off the loop when it takes long.

    Raises:
        InvalidRequest: the request makes no prompt.
        PromptUnavailable: it makes one that cannot be had here.
    """
    rendered = prompts.prepare(path, body)
    if rendered.chars > limits.INLINE_CHARS_MAX:
        return await asyncio.to_thread(prompts.tokenize, rendered)
    return prompts.tokenize(rendered)


def json_answer(content: Json, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")

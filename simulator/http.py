"""The engine's HTTP: OpenAI's paths, and what vLLM serves beside them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

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
from kvatlas.simulator import answers
from kvatlas.simulator.answers import Choice, Envelope, Json
from kvatlas.simulator.events import Sources
from kvatlas.simulator.generation import Vocabulary, Wish, answer
from kvatlas.simulator.metrics import CONTENT_TYPE, ENGINE_LABEL, EngineMetrics
from kvatlas.simulator.request import (
    CHAT_PATH,
    COMPLETION_PATH,
    Options,
    answer_tokens_max,
    checked_ids,
    handed_over,
    read_options,
    report_of,
    without_ids,
)
from kvatlas.simulator.scheduler import Run, Scheduler, Spec

VERSION = "0.32.0"
"""The vLLM that this engine behaves like."""
FINGERPRINT = f"vllm-{VERSION}-kvatlas"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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


def engine_app(engine: Engine) -> web.Application:
    """Make the application of an engine."""
    app = web.Application(client_max_size=limits.BODY_BYTES_MAX, middlewares=[_errors])
    generate, info = _Generation(engine), _Information(engine)
    app.router.add_post(CHAT_PATH, generate.handle)
    app.router.add_post(COMPLETION_PATH, generate.handle)
    app.router.add_post("/tokenize", info.tokenize)
    app.router.add_post(f"{CHAT_PATH}/render", info.render)
    app.router.add_post(f"{COMPLETION_PATH}/render", info.render)
    app.router.add_post("/detokenize", info.detokenize)
    app.router.add_get("/v1/models", info.models)
    app.router.add_get("/health", info.health)
    app.router.add_get("/version", info.version)
    app.router.add_get("/metrics", info.metrics)
    app.router.add_get("/kv_event_sources", info.kv_event_sources)
    if engine.settings.dev_mode:
        app.router.add_post("/reset_prefix_cache", info.reset_prefix_cache)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors in vLLM's shape."""
    try:
        return await handler(request)
    except HttpError as error:
        return _json(answers.error(error.status, error.message, error.param), error.status)
    except PromptUnavailable as error:
        message = f"The prompt cannot be rendered: {error.reason}"
        return _json(answers.error(400, message, None), 400)
    except web.HTTPException as error:
        return _json(answers.error(error.status, error.reason, None), error.status)


class _Generation:
    """Chats and completions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat or a completion. A client that leaves cancels this, and its request."""
        engine = self._engine
        body = await _read_body(request)
        adapter = _check_model(body, engine)
        options = read_options(request.path, body)
        prompt = await self._prompt(request.path, body)
        envelope = Envelope(
            id=f"{'chatcmpl' if options.chat else 'cmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=adapter or engine.model.name,
            fingerprint=FINGERPRINT,
            chat=options.chat,
            token_ids=options.token_ids,
            report=report_of(options, engine.settings),
        )
        run = engine.scheduler.submit(self._specs(prompt, options, adapter))
        try:
            if options.stream:
                return await _stream(request, run, envelope, options)
            while any(not sequence.finished for sequence in run.sequences):
                await run.progress.get()
            choices = [_choice(run, index) for index in range(len(run.specs))]
            return _json(envelope.whole(choices, options.choices))
        finally:
            engine.scheduler.leave(run)

    async def _prompt(self, path: str, body: Json) -> Prompt:
        """Take token ids that were handed over, or render and tokenize."""
        prompts = self._engine.prompts
        ids = handed_over(path, body)
        if ids is None:
            return await _tokenized(prompts, path, without_ids(body))
        salt = body.get("cache_salt")
        return Prompt((checked_ids(ids, prompts.vocab_size),), salt or None)

    def _specs(self, prompt: Prompt, options: Options, adapter: str | None) -> list[Spec]:
        specs = []
        for sequence in prompt.sequences:
            tokens = list(sequence)
            limit = answer_tokens_max(options, tokens, self._engine.max_model_len)
            for number in range(options.choices):
                wish = Wish(
                    index=number,
                    limit=limit,
                    natural_end=options.max_tokens is None,
                    opening=options.chat,
                    stop=options.stop,
                )
                said = answer(self._engine.vocabulary, tokens, wish)
                specs.append(Spec(tokens, prompt.cache_salt, said, adapter, options.announces_hits))
        return specs


async def _stream(
    request: web.Request, run: Run, envelope: Envelope, options: Options
) -> web.StreamResponse:
    """Send chunks as tokens come out."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    sent = [0] * len(run.specs)
    while any(at < len(spec.answer.tokens) for at, spec in zip(sent, run.specs, strict=True)):
        index = await run.progress.get()
        sent[index] += 1
        choice = _choice(run, index, sent[index])
        chunks = [envelope.token_chunk(choice)]
        if envelope.chat and choice.sent == 1:
            chunks.insert(0, envelope.first_chunk(choice))
        await response.write(answers.server_sent(map(orjson.dumps, chunks)))
    if envelope.report.at_end:
        choices = [_choice(run, index) for index in range(len(run.specs))]
        chunk = envelope.usage_chunk(choices, options.choices)
        await response.write(answers.server_sent([orjson.dumps(chunk)]))
    await response.write(answers.DONE)
    await response.write_eof()
    return response


def _choice(run: Run, index: int, sent: int | None = None) -> Choice:
    sequence, spec = run.sequences[index], run.specs[index]
    return Choice(
        index=index,
        prompt=spec.prompt,
        answer=spec.answer,
        cached_tokens=sequence.cached_tokens or 0,
        sent=sequence.generated if sent is None else sent,
    )


class _Information:
    """What else an engine tells, and the cache's reset."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def models(self, _request: web.Request) -> web.Response:
        """List the one model and its adapters."""
        engine = self._engine
        return _json(
            answers.model_list(
                engine.model.name,
                engine.model.tokenizer,
                engine.max_model_len,
                engine.created,
                engine.settings.lora_adapters,
            )
        )

    async def health(self, _request: web.Request) -> web.Response:
        """Answer 200, with nothing."""
        return web.Response()

    async def version(self, _request: web.Request) -> web.Response:
        """Name the version of vLLM that this behaves like."""
        return _json({"version": VERSION})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Give the metrics."""
        return web.Response(
            body=self._engine.metrics.page(), headers={"Content-Type": CONTENT_TYPE}
        )

    async def kv_event_sources(self, _request: web.Request) -> web.Response:
        """Tell where the events are, per data-parallel rank."""
        settings, sources = self._engine.settings, self._engine.sources
        if sources.events is None:
            return _json({})
        source = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": sources.events,
            "replay_endpoint": sources.replay,
            "buffer_steps": settings.replay_batches,
            "hwm": limits.ENGINE_EVENTS_QUEUED_MAX,
            "max_queue_size": limits.ENGINE_EVENTS_QUEUED_MAX,
            "topic": settings.topic,
        }
        return _json({ENGINE_LABEL: source})

    async def tokenize(self, request: web.Request) -> web.Response:
        """Give the token ids of a text or of messages."""
        body = await _read_body(request)
        _check_model(body, self._engine)
        path = CHAT_PATH if "messages" in body else COMPLETION_PATH
        prompt = await _tokenized(self._engine.prompts, path, body)
        tokens = list(prompt.sequences[0])
        return _json(
            {
                "count": len(tokens),
                "max_model_len": self._engine.max_model_len,
                "tokens": tokens,
                "token_strs": None,
            }
        )

    async def render(self, request: web.Request) -> web.Response:
        """Give the token ids of a whole request."""
        if not self._engine.settings.render:
            message = "Use --enable-scale-out to enable this endpoint."
            return _json(answers.error(403, message, None), 403)
        body = await _read_body(request)
        name = _check_model(body, self._engine) or self._engine.model.name
        path = request.path.removesuffix("/render")
        prompt = await _tokenized(self._engine.prompts, path, body)
        chat = path == CHAT_PATH
        results = [answers.rendered(name, ids, prompt.cache_salt, chat) for ids in prompt.sequences]
        content = results[0] if chat else results
        return web.Response(body=orjson.dumps(content), content_type="application/json")

    async def detokenize(self, request: web.Request) -> web.Response:
        """Give the text of token ids."""
        body = await _read_body(request)
        _check_model(body, self._engine)
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not all(map(self._known_token, tokens)):
            raise InvalidRequest("tokens: is not a list of token ids", "tokens")
        return _json({"prompt": self._engine.prompts.decode(tokens)})

    async def reset_prefix_cache(self, _request: web.Request) -> web.Response:
        """Forget the cache, if no block is in use."""
        return _json({"success": self._engine.scheduler.reset_cache()})

    def _known_token(self, token: Any) -> bool:
        return type(token) is int and 0 <= token < self._engine.prompts.vocab_size


async def _read_body(request: web.Request) -> Json:
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


def _check_model(body: Json, engine: Engine) -> str | None:
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


async def _tokenized(prompts: PromptBuilder, path: str, body: Json) -> Prompt:
    """Render and tokenize, off the loop when it takes long.

    Raises:
        InvalidRequest: the request makes no prompt.
        PromptUnavailable: it makes one that cannot be had here.
    """
    rendered = prompts.prepare(path, body)
    if rendered.chars > limits.INLINE_CHARS_MAX:
        return await asyncio.to_thread(prompts.tokenize, rendered)
    return prompts.tokenize(rendered)


def _json(content: Json, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")

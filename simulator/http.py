"""The engine's HTTP: OpenAI's and Anthropic's paths, and what vLLM serves beside them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from kvatlas.common import limits
from kvatlas.common.errors import HttpError, PromptUnavailable
from kvatlas.common.prompt import MESSAGES_PATH, RESPONSES_PATH, Prompt, anthropic, responses
from kvatlas.simulator import answers, messages
from kvatlas.simulator import responses as kept
from kvatlas.simulator.answers import Envelope, Json
from kvatlas.simulator.generate import Wanted, generate
from kvatlas.simulator.information import Information
from kvatlas.simulator.messages import MessageVoice
from kvatlas.simulator.request import (
    CHAT_PATH,
    COMPLETION_PATH,
    answer_tokens_max,
    checked_ids,
    handed_over,
    read_options,
    report_of,
    without_ids,
)
from kvatlas.simulator.responses import Keeper, Kept, ResponseVoice
from kvatlas.simulator.serving import (
    FINGERPRINT,
    Engine,
    check_model,
    fault_of,
    json_answer,
    read_body,
    tokenized,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def engine_app(engine: Engine) -> web.Application:
    """Make the application of an engine."""
    app = web.Application(client_max_size=limits.BODY_BYTES_MAX, middlewares=[_errors])
    generation, info = _Generation(engine), Information(engine)
    app.router.add_post(CHAT_PATH, generation.answer)
    app.router.add_post(COMPLETION_PATH, generation.answer)
    app.router.add_post(MESSAGES_PATH, generation.message)
    app.router.add_post(f"{MESSAGES_PATH}/count_tokens", generation.count_tokens)
    app.router.add_post(RESPONSES_PATH, generation.response)
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
    except (HttpError, PromptUnavailable) as error:
        fault = fault_of(error)
        return json_answer(answers.error(fault.status, fault.message, fault.param), fault.status)
    except web.HTTPException as error:
        return json_answer(answers.error(error.status, error.reason, None), error.status)


class _Generation:
    """Requests that become prompts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keeper = Keeper()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat or a completion."""
        engine = self._engine
        body = await read_body(request)
        adapter = check_model(body, engine)
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
            samples=options.choices,
        )
        return await generate(request, engine, Wanted(prompt, options, adapter), envelope)

    async def message(self, request: web.Request) -> web.StreamResponse:
        """Answer a message. A body that is none is told in OpenAI's words, as by vLLM."""
        engine = self._engine
        body = await read_body(request)
        options = messages.read_options(body)
        try:
            adapter = check_model(body, engine)
            prompt = await tokenized(engine.prompts, MESSAGES_PATH, body)
            voice = MessageVoice(
                id=f"chatcmpl-{uuid.uuid4().hex}",
                model=adapter or engine.model.name,
                block_size=engine.settings.block_size,
                tells_cache=engine.settings.prompt_tokens_details,
            )
            return await generate(request, engine, Wanted(prompt, options, adapter), voice)
        except (HttpError, PromptUnavailable) as error:
            return _refused(error)

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        """Count the tokens of a message's prompt."""
        body = await read_body(request)
        messages.check_members(body)
        try:
            check_model(body, self._engine)
            chat = dict(anthropic.chat_of({**body, "max_tokens": 1}))
            prompt = await tokenized(self._engine.prompts, CHAT_PATH, chat)
        except (HttpError, PromptUnavailable) as error:
            return _refused(error)
        return json_answer(messages.counted(len(prompt.sequences[0])))

    async def response(self, request: web.Request) -> web.StreamResponse:
        """Make a response, which may go on from one that is kept here."""
        engine = self._engine
        body = await read_body(request)
        options = kept.read_options(body)
        adapter = check_model(body, engine)
        previous = body.get(kept.PREVIOUS)
        before = self._keeper.find(previous)
        if previous is not None and before is None:
            return json_answer(kept.not_found(previous), 404)
        chat = dict(responses.chat_of({**body, kept.PREVIOUS: None}))
        if before is not None:
            chat["messages"] = before.continued(chat["messages"])
        prompt = await tokenized(engine.prompts, CHAT_PATH, chat)
        voice = ResponseVoice(
            id=body.get("request_id") or f"resp_{uuid.uuid4().hex}",
            item_id=f"msg_{uuid.uuid4().hex}",
            created=int(time.time()),
            model=adapter or engine.model.name,
            body=body,
            max_tokens=answer_tokens_max(options, prompt.sequences[0], engine.max_model_len),
            block_size=engine.settings.block_size,
        )
        told = await generate(request, engine, Wanted(prompt, options, adapter), voice)
        if engine.settings.store_responses and body.get("store", True):
            self._keeper.keep(voice.id, Kept(chat["messages"], voice.text))
        return told

    async def _prompt(self, path: str, body: Json) -> Prompt:
        """Take token ids that were handed over, or render and tokenize."""
        prompts = self._engine.prompts
        ids = handed_over(path, body)
        if ids is None:
            return await tokenized(prompts, path, without_ids(body))
        salt = body.get("cache_salt")
        return Prompt((checked_ids(ids, prompts.vocab_size),), salt or None)


def _refused(error: HttpError | PromptUnavailable) -> web.Response:
    """Answer an error in Anthropic's shape."""
    fault = fault_of(error)
    return json_answer(messages.error(fault.status, fault.message), fault.status)

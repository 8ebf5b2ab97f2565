"""What an engine tells without generating: models, tokens, metrics, where its events are."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.simulator import answers
from kvatlas.simulator.metrics import CONTENT_TYPE, ENGINE_LABEL
from kvatlas.simulator.request import CHAT_PATH, COMPLETION_PATH
from kvatlas.simulator.serving import (
    VERSION,
    Engine,
    check_model,
    json_answer,
    read_body,
    tokenized,
)


class Information:
    """What an engine tells, and the cache's reset."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def models(self, _request: web.Request) -> web.Response:
        """List the one model and its adapters."""
        engine = self._engine
        return json_answer(
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
        return json_answer({"version": VERSION})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Give the metrics."""
        return web.Response(
            body=self._engine.metrics.page(), headers={"Content-Type": CONTENT_TYPE}
        )

    async def kv_event_sources(self, _request: web.Request) -> web.Response:
        """Tell where the events are, per data-parallel rank."""
        settings, sources = self._engine.settings, self._engine.sources
        if sources.events is None:
            return json_answer({})
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
        return json_answer({ENGINE_LABEL: source})

    async def tokenize(self, request: web.Request) -> web.Response:
        """Give the token ids of a text or of messages."""
        body = await read_body(request)
        check_model(body, self._engine)
        path = CHAT_PATH if "messages" in body else COMPLETION_PATH
        prompt = await tokenized(self._engine.prompts, path, body)
        tokens = list(prompt.sequences[0])
        return json_answer(
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
            return json_answer(answers.error(403, message, None), 403)
        body = await read_body(request)
        name = check_model(body, self._engine) or self._engine.model.name
        path = request.path.removesuffix("/render")
        prompt = await tokenized(self._engine.prompts, path, body)
        chat = path == CHAT_PATH
        results = [answers.rendered(name, ids, prompt.cache_salt, chat) for ids in prompt.sequences]
        content = results[0] if chat else results
        return web.Response(body=orjson.dumps(content), content_type="application/json")

    async def detokenize(self, request: web.Request) -> web.Response:
        """Give the text of token ids; those outside of the vocabulary have none."""
        body = await read_body(request)
        check_model(body, self._engine)
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not all(map(_is_token, tokens)):
            raise InvalidRequest("tokens: is not a list of token ids", "tokens")
        prompts = self._engine.prompts
        known = [token for token in tokens if token < prompts.vocab_size]
        return json_answer({"prompt": prompts.decode(known)})

    async def reset_prefix_cache(self, _request: web.Request) -> web.Response:
        """Forget the cache, if no block is in use."""
        return json_answer({"success": self._engine.scheduler.reset_cache()})


def _is_token(token: Any) -> bool:
    return type(token) is int and token >= 0

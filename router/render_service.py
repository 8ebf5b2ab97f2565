"""Token ids from outside: for prompts that cannot be rendered here, or not be trusted.

A service that is slow, wrong or away costs a request at most its deadline, and after some
failures in a row nothing for a while. What it answered is kept for some minutes, in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import aiohttp

from kvatlas.common import limits
from kvatlas.common.clock import Clock, monotonic
from kvatlas.common.engine_client import Asked, Reply, Silence, ask
from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.key_file import read_key
from kvatlas.common.prompt import Prompt
from kvatlas.common.prompt.fields import cache_salt
from kvatlas.common.settings import ModelSettings
from kvatlas.common.tls_engines import EngineIdentities, EngineTls
from kvatlas.router.breaker import Breaker
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.render_request import (
    RenderApi,
    Sequences,
    may_be_asked,
    read_render,
    render_request,
)

OK: Final = 200
INLINE_ANSWER_BYTES_MAX: Final = 256 * 1024
"""Largest answer that is read on the event loop: 2 ms."""
REFUSALS: Final = frozenset({400, 413, 422})

RenderReason = Literal[
    "render_timeout",
    "render_connection",
    "render_protocol",
    "render_refused",  # the engine would answer 400, too; let it say so itself
    "render_status",  # any other status, such as 403 without --enable-scale-out
    "render_answer",  # no token ids in it, or too long
    "render_busy",  # as many under way as may be
    "render_paused",  # it failed several times in a row
    "render_unsupported",  # the request has a field that /tokenize leaves out of account
]
RENDER_REASONS: Final[tuple[RenderReason, ...]] = get_args(RenderReason)


class PromptCache:
    """Token ids by the hash of what was asked, the least recently used go first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, Sequences]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Sequences | None:
        """Give what was kept, unless it is too old."""
        found = self._entries.get(key)
        if found is None:
            return None
        if self._clock() - found[0] > limits.RENDER_CACHE_S:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found[1]

    def put(self, key: bytes, sequences: Sequences) -> None:
        """Keep token ids within the bounds."""
        self._drop(key)
        self._entries[key] = (self._clock(), sequences)
        self.bytes += _size(sequences)
        while (
            len(self._entries) > limits.RENDER_CACHE_ENTRIES_MAX
            or self.bytes > limits.RENDER_CACHE_BYTES_MAX
        ):
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= _size(found[1])


@dataclass(slots=True)
class _Service:
    """One model's service."""

    url: str
    api: RenderApi
    timeout_s: float
    api_key: str | None
    tls: EngineTls
    breaker: Breaker
    pending: int = 0


class RenderServices:
    """Ask the models' render services.

    Args:
        models: those with a `render_url` have one.
        session: what they are asked with.
        metrics: told of outcomes.
        identities: how services are spoken to.

    Raises:
        ConfigError: a key file cannot be read.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        session: aiohttp.ClientSession,
        metrics: RouterMetrics,
        identities: EngineIdentities,
        clock: Clock = monotonic,
    ) -> None:
        self._session = session
        self._metrics = metrics
        self._cache = PromptCache(clock)
        self._services = {
            model.model: _Service(
                model.render_url,
                model.render_api,
                model.render_timeout_s,
                read_key(model.render_api_key_file, f"models.{model.name}"),
                identities.of(model.render_url),
                Breaker(limits.RENDER_FAILURES_MAX, limits.RENDER_PAUSE_S, clock),
            )
            for model in models
            if model.render_url
        }

    def may_help(self, model: ModelName, reason: str) -> bool:
        """Tell whether a prompt that is not to be had here for this reason is asked for."""
        service = self._services.get(model)
        return service is not None and may_be_asked(service.api, reason)

    async def prompt(
        self, model: ModelName, path: str, body: Mapping[str, Any], limit_s: float
    ) -> Prompt:
        """Ask for the token ids of a request.

        Args:
            model: one that has a service.
            path: of the request.
            body: its JSON object.
            limit_s: what is left of the time for matching.

        Raises:
            PromptUnavailable: with one of RENDER_REASONS, "refused", "multimodal" or "encoding".
        """
        service = self._services[model]
        outcome = "cancelled"
        try:
            salt = cache_salt(body)
            asked_path, content = render_request(service.api, path, model, body)
            key = _key(asked_path, content)
            sequences = self._cache.get(key)
            outcome = "cached"
            if sequences is None:
                outcome = "cancelled"
                limit_s = min(limit_s, service.timeout_s)
                sequences = await _ask(self._session, service, (asked_path, content), limit_s, path)
                self._cache.put(key, sequences)
                outcome = "answered"
            return Prompt(sequences, salt)
        except PromptUnavailable as error:
            outcome = error.reason
            raise
        finally:
            self._metrics.renders.labels(model, outcome).inc()


async def _ask(
    session: aiohttp.ClientSession,
    service: _Service,
    question: tuple[str, bytes],
    limit_s: float,
    path: str,
) -> Sequences:
    """Ask once, unless the service is to be left alone."""
    if service.pending >= limits.RENDERS_AT_ONCE_MAX:
        raise PromptUnavailable("render_busy")
    if limit_s <= 0:
        raise PromptUnavailable("render_timeout")
    if not service.breaker.lets_through():
        raise PromptUnavailable("render_paused")
    most = limits.RENDER_ANSWER_BYTES_MAX
    asked = Asked(service.url, service.api_key, limit_s, most, tls=service.tls)
    service.pending += 1
    try:
        reply = await ask(session, asked, *question)
        if len(reply.content) > INLINE_ANSWER_BYTES_MAX:
            return await asyncio.to_thread(_read, service, path, reply)
        return _read(service, path, reply)
    except Silence as silence:
        service.breaker.failed()
        raise PromptUnavailable(f"render_{silence.why}") from None
    finally:
        service.pending -= 1


def _read(service: _Service, path: str, reply: Reply) -> Sequences:
    if reply.status in REFUSALS:
        # A client's fault is none of the service's.
        service.breaker.succeeded()
        raise PromptUnavailable("render_refused")
    if reply.status != OK:
        service.breaker.failed()
        raise PromptUnavailable("render_status" if reply.status else "render_answer")
    try:
        sequences = read_render(service.api, path, reply.content)
    except PromptUnavailable as error:
        if error.reason == "render_answer":
            service.breaker.failed()
        raise
    service.breaker.succeeded()
    return sequences


def _key(path: str, content: bytes) -> bytes:
    return hashlib.sha256(path.encode() + b"\0" + content).digest()


def _size(sequences: tuple[array[int], ...]) -> int:
    return sum(len(ids) * ids.itemsize for ids in sequences)

"""The stage that turns a body into token ids, within a deadline and off the loop when long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import ConfigError, KvatlasError, PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.log import logger
from kvatlas.common.prompt import Prompt, PromptBuilder
from kvatlas.common.prompt.memory import give_back
from kvatlas.common.prompt.variables import check_variables_size
from kvatlas.common.records import record
from kvatlas.common.settings import ModelSettings

_LOG = logger("prompts")

T = TypeVar("T")

THREADS: Final = 2
INLINE_BODY_BYTES_MAX: Final = 64 * 1024
"""Largest body that is rendered on the event loop: under 2 ms."""


@record
class TimedPrompt:
    """Token ids, and how long they took in milliseconds."""

    prompt: Prompt
    render_ms: float
    tokenize_ms: float


def match_budget_s(body_bytes: int) -> float:
    """Give the time for rendering, tokenizing and hashing a body of this size."""
    tokens = body_bytes / limits.BYTES_PER_TOKEN_ESTIMATE
    budget_s = limits.MATCH_S_PER_1K_TOKENS * max(1.0, tokens / 1_000)
    return min(budget_s, limits.MATCH_S_MAX - limits.LOOKUP_S)


class _Threads:
    """A few threads, and a bound on what waits for them."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self.pending = 0

    async def run(self, work: Callable[[], T], deadline: float) -> T:
        """Run in a thread until the deadline; what is late ends by itself, unheard.

        Raises:
            PromptUnavailable: "busy", or "deadline".
        """
        if self.pending >= limits.TOKENIZE_PENDING_MAX:
            raise PromptUnavailable("busy")
        self.pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(self._one_less)
        done, _ = await asyncio.wait({future}, timeout=max(0.0, deadline - monotonic()))
        if not done:
            raise PromptUnavailable("deadline")
        return future.result()

    def _one_less(self, future: asyncio.Future[Any]) -> None:
        self.pending -= 1
        if not future.cancelled():
            future.exception()

    def close(self, *, waits: bool = False) -> None:
        """End them."""
        self._pool.shutdown(wait=waits, cancel_futures=not waits)


class Prompts:
    """Render and tokenize for all models of the process.

    Args:
        models: each model's tokenizer is loaded and warmed here.
        former: whose tokenizers are taken over, warm, where nothing about a model is set anew.

    Raises:
        ConfigError: a tokenizer cannot be loaded.
    """

    def __init__(self, models: list[ModelSettings], former: Prompts | None = None) -> None:
        self._models = {model.model: model for model in models}
        self._builders: dict[ModelName, PromptBuilder] = {}
        self._threads = _Threads(THREADS, "tokenize")
        self._apart: dict[ModelName, _Threads] = {}
        try:
            for name, model in self._models.items():
                self._take(name, model, former)
        except ConfigError:
            self.close()
            raise
        give_back()

    def _take(self, name: ModelName, model: ModelSettings, former: Prompts | None) -> None:
        known = former.built_for(model) if former is not None else None
        if known is None:
            known = PromptBuilder.load(model, isolates=True)
            known.warm()
        known.hold()
        self._builders[name] = known
        if known.is_isolated:
            self._apart[name] = _Threads(limits.TEMPLATE_WORKERS, "render")

    def built_for(self, model: ModelSettings) -> PromptBuilder | None:
        """Give what was made for a model that was set in just this way; None if there is none."""
        return self._builders[model.model] if self._models.get(model.model) == model else None

    def builder(self, model: ModelName) -> PromptBuilder:
        """Give what renders and tokenizes for a model."""
        return self._builders[model]

    async def token_ids(
        self, model: ModelName, path: str, body: Mapping[str, Any], body_bytes: int
    ) -> TimedPrompt:
        """Find the token ids that the engine will see.

        Raises:
            InvalidRequest: a field has a wrong type. The client's.
            PromptUnavailable: with "deadline" or "busy", or why the prompt cannot be had here;
                "error" where a template or a tokenizer failed in a way that nobody foresaw.
        """
        try:
            return await self._token_ids(model, path, body, body_bytes)
        except KvatlasError:
            raise
        except Exception as error:  # noqa: BLE001 - the index is advice: no fault of ours is a 500
            _LOG.error("prompt.failed", model=model, error=type(error).__name__)
            raise PromptUnavailable("error") from None

    async def _token_ids(
        self, model: ModelName, path: str, body: Mapping[str, Any], body_bytes: int
    ) -> TimedPrompt:
        builder = self._builders[model]
        deadline = monotonic() + match_budget_s(body_bytes)
        begun = monotonic()
        apart = self._apart.get(model)
        if apart is not None:
            # Threads of its own: they wait for processes, for as long as those may take.
            deadline += limits.TEMPLATE_RENDER_S
            rendered = await apart.run(lambda: builder.prepare(path, body), deadline)
        elif body_bytes <= INLINE_BODY_BYTES_MAX:
            rendered = builder.prepare(path, body)
        else:
            # All of it at once: each way to a thread and back takes 0.1 ms.
            return await self._threads.run(lambda: _timed(builder, path, body), deadline)
        between = monotonic()
        if rendered.chars <= _inline_chars_max(builder):
            prompt = builder.tokenize(rendered)
        else:
            prompt = await self._threads.run(lambda: builder.tokenize(rendered), deadline)
        ended = monotonic()
        return TimedPrompt(prompt, (between - begun) * 1e3, (ended - between) * 1e3)

    def close(self) -> None:
        """End the threads, and the processes that nobody has taken over."""
        for threads in (self._threads, *self._apart.values()):
            threads.close()
        for builder in self._builders.values():
            builder.close()


def _timed(builder: PromptBuilder, path: str, body: Mapping[str, Any]) -> TimedPrompt:
    begun = monotonic()
    check_variables_size(body)
    rendered = builder.prepare(path, body)
    between = monotonic()
    prompt = builder.tokenize(rendered)
    return TimedPrompt(prompt, (between - begun) * 1e3, (monotonic() - between) * 1e3)


def _inline_chars_max(builder: PromptBuilder) -> int:
    """Give the longest text that does not stall the loop with this model's tokenizer."""
    if builder.tokenizer_kind == "fastokens":
        return limits.INLINE_CHARS_MAX
    return limits.INLINE_CHARS_SLOW_MAX

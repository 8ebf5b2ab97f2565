"""Users that talk to a fleet with the `openai` client, through all its routers in turn."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI, OpenAIError

from kvatlas.cli.best_share import Served
from kvatlas.cli.conversations import Conversation, Load, conversations
from kvatlas.common.errors import KvatlasError


class DemoError(KvatlasError):
    """A request of the demo failed, or its answer lacks what the demo counts."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and what came back.

    Attributes:
        served: tokens and times.
        cached_tokens: how many of the prompt's tokens the engine says that it had.
        ttft_s: from sending to the first text.
        endpoint: who answered.
    """

    served: Served
    cached_tokens: int
    ttft_s: float
    endpoint: str


@dataclass(slots=True)
class _Stream:
    """A streamed answer as it comes in."""

    first_s: float = 0.0
    cached_tokens: int = 0
    text: list[str] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)

    def take(self, chunk: Any, now_s: float) -> None:
        """Take over a chunk; token ids are vLLM's addition to it."""
        self.prompt = getattr(chunk, "prompt_token_ids", None) or self.prompt
        if chunk.usage and chunk.usage.prompt_tokens_details:
            self.cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens or 0
        for choice in chunk.choices:
            if choice.delta.content:
                self.first_s = self.first_s or now_s
                self.text.append(choice.delta.content)
            self.generated += getattr(choice, "token_ids", None) or []


class Users:
    """Hold conversations, a bounded number at a time.

    Args:
        base_urls: the routers' `/v1`; requests go to each in turn.
        model: name to ask for.
        load: what is said.
    """

    def __init__(self, base_urls: list[str], model: str, load: Load) -> None:
        self._clients = itertools.cycle(
            [AsyncOpenAI(base_url=url, api_key="none", max_retries=0) for url in base_urls]
        )
        self._count = len(base_urls)
        self._model = model
        self._load = load

    async def talk(self, answered: Callable[[], None] = lambda: None) -> list[Asked]:
        """Hold all conversations; `answered` is called after each answer.

        Raises:
            DemoError: a request failed.
        """
        waiting = iter(conversations(self._load))
        done: list[Asked] = []

        async def user() -> None:
            for conversation in waiting:
                await self._converse(conversation, done, answered)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._load.users):
                    group.create_task(user())
        except* OpenAIError as errors:
            raise DemoError(f"a request failed: {errors.exceptions[0]}") from None
        except* DemoError as errors:
            raise DemoError(str(errors.exceptions[0])) from None
        finally:
            for client in itertools.islice(self._clients, self._count):
                await client.close()
        return done

    async def _converse(
        self, conversation: Conversation, done: list[Asked], answered: Callable[[], None]
    ) -> None:
        messages = [{"role": "system", "content": conversation.system}]
        for pause_s, question in zip(conversation.pauses_s, conversation.questions, strict=True):
            await asyncio.sleep(pause_s)
            messages.append({"role": "user", "content": question})
            asked, text = await self._ask(messages)
            messages.append({"role": "assistant", "content": text})
            done.append(asked)
            answered()

    async def _ask(self, messages: list[dict[str, str]]) -> tuple[Asked, str]:
        request: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "max_tokens": self._load.answer_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {"return_token_ids": True},
        }
        client = next(self._clients)
        start_s = time.monotonic()
        raw = await client.chat.completions.with_raw_response.create(**request)
        stream = _Stream()
        async for chunk in raw.parse():
            stream.take(chunk, time.monotonic())
        finish_s = time.monotonic()
        if not stream.prompt or not stream.text:
            raise DemoError("an answer came without token ids or text")
        return (
            Asked(
                Served(stream.prompt, stream.generated, start_s, finish_s),
                stream.cached_tokens,
                stream.first_s - start_s,
                raw.headers.get("x-kvatlas-endpoint", "?"),
            ),
            "".join(stream.text),
        )

"""Users who talk to routers: conversations over shared system prompts, and what came of each."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.engine.fleet import Router

ANSWER_TOKENS = 24
PROMPT_TOKENS_MAX = 860
TEXT = (
    "block cache prefix router engine token epoch index holder replay batch event chain shard "
    "salt lease queue score match load Wien Zürich 東京 café naïve 3.14159 {'a': [1, 2]} // ok ?"
)
WORDS = TEXT.split()
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look a block up",
            "parameters": {"type": "object", "properties": {"block": {"type": "string"}}},
        },
    }
]


@dataclass(frozen=True, slots=True)
class Seen:
    """One answered request.

    Attributes:
        predicted: tokens that the router expected to be cached.
        cached: tokens that the engine found.
        counted: prompt tokens by the router's account; 0 where it had none.
        fallback: why the request went by load; None where it did not.
    """

    endpoint: str
    predicted: int
    cached: int
    counted: int
    prompt_tokens: int
    text: str
    fallback: str | None

    @property
    def is_exact(self) -> bool:
        """Tell whether the prediction was right to the token."""
        return self.predicted == self.cached and self.counted == self.prompt_tokens


def ask(client: httpx2.Client, router: Router, path: str, body: dict[str, Any]) -> Seen:
    """Send a request through a router, streamed or not as it says."""
    url = f"http://127.0.0.1:{router.port}{path}"
    with client.stream("POST", url, json=body) as reply:
        content = reply.read()
        reply.raise_for_status()
    answers = _events(content) if body.get("stream") else [json.loads(content)]
    usage = next(one["usage"] for one in reversed(answers) if one.get("usage"))
    details = usage["prompt_tokens_details"] or {}
    return Seen(
        endpoint=reply.headers["x-kvatlas-endpoint"],
        predicted=int(reply.headers["x-kvatlas-match-tokens"]),
        cached=details.get("cached_tokens") or 0,
        counted=int(reply.headers["x-kvatlas-prompt-tokens"]),
        prompt_tokens=usage["prompt_tokens"],
        text="".join(map(_text, answers)),
        fallback=reply.headers.get("x-kvatlas-fallback"),
    )


def _events(content: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in content.splitlines() if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def _text(answer: dict[str, Any]) -> str:
    parts = []
    for choice in answer["choices"]:
        message = choice.get("message") or choice.get("delta") or choice
        parts.append(message.get("content") or message.get("text") or "")
    return "".join(parts)


@dataclass(slots=True)
class Conversation:
    """One user's history; begins again when the context is nearly full."""

    source: random.Random
    systems: list[str]
    messages: list[dict[str, str]] = field(default_factory=list)

    def question(self, number: int) -> dict[str, Any]:
        """Write the next request."""
        if not self.messages:
            self.messages = [{"role": "system", "content": self.source.choice(self.systems)}]
        words = self.source.choices(WORDS, k=self.source.randint(4, 40))
        self.messages.append({"role": "user", "content": " ".join(words)})
        body: dict[str, Any] = {
            "model": "tiny",
            "messages": list(self.messages),
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0.8,
            "seed": number,
        }
        if number % 3 == 1:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if number % 7 == 3:
            body["tools"], body["tool_choice"] = TOOLS, "none"
        return body

    def answered(self, seen: Seen) -> None:
        """Take the answer into the history."""
        self.messages.append({"role": "assistant", "content": seen.text})
        if seen.prompt_tokens > PROMPT_TOKENS_MAX - 2 * ANSWER_TOKENS:
            self.messages.clear()


@dataclass(slots=True)
class Users:
    """Conversations whose turns come in random order, the same for a seed."""

    seed: int
    count: int
    turns: int

    def turns_of(self, first: int) -> Iterator[tuple[int, Conversation]]:
        """Go through all turns, numbered from `first`; also a completion now and then."""
        source = random.Random(self.seed)
        systems = [" ".join(source.choices(WORDS, k=90)) for _ in range(3)]
        talks = [Conversation(random.Random(self.seed + i), systems) for i in range(self.count)]
        order = [talk for talk in talks for _ in range(self.turns)]
        source.shuffle(order)
        return iter(enumerate(order, first))


def completion(source: random.Random, number: int) -> dict[str, Any]:
    """Write a plain completion over one of a few texts, cut anywhere."""
    words = random.Random(number % 5).choices(WORDS, k=120)
    return {
        "model": "tiny",
        "prompt": " ".join(words[: source.randint(10, 120)]),
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0.8,
        "seed": number,
        "n": 1 + number % 2,
    }

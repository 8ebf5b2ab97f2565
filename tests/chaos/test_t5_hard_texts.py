"""T5, texts that are hard on a tokenizer: by load where they are too much, and the loop turns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvatlas.common.prompt import PromptBuilder
from kvatlas.common.prompt.tokenizer import Tokenizer
from tests.chaos.conftest import Report, loop_stalls
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale
from tests.fakes.door import chat, door

STALL_MAX_S = 0.25
"""Generous where all share two cores; the page of faults has what was seen."""
WALLS = {
    "emoji": "\U0001f469\u200d\U0001f4bb\U0001f600",
    "letters": "a",
    "blanks": " ",
    "accents": "e\u0301",
    "ideographs": "\u4f60\u597d\u754c",
}


@pytest.mark.parametrize("name", WALLS)
async def test_t5_a_wall_of_one_text(
    redis_url: str, canary: Canary, scale: Scale, name: str
) -> None:
    """Half a million characters, two million in the full run: an answer, and no long stall."""
    chars = 2_000_000 if scale.is_full else 500_000
    wall = WALLS[name] * (chars // len(WALLS[name]))
    async with door(redis_url, canary) as place:
        async with loop_stalls() as stalls:
            seen = await place.ask(json.dumps(chat(wall), ensure_ascii=False).encode())
        assert seen.status == 200
        assert seen.fallback in {None, "prompt:deadline", "prompt:too_long"}
        assert max(stalls) < STALL_MAX_S
        assert (await place.ask(chat("hello " * 20))).fallback is None
    Report("T5", f"a wall of {name}", f"loop late by {1e3 * max(stalls):.0f} ms at most").tell()


async def test_t5_ten_megabytes(redis_url: str, canary: Canary) -> None:
    """More than is ever tokenized: by load without a look at it, and passed on whole."""
    body = json.dumps(chat("canal " * 1_700_000, user=canary.text)).encode()
    async with door(redis_url, canary) as place:
        async with loop_stalls() as stalls:
            seen = await place.ask(body)
        assert (seen.status, seen.fallback) == (200, "prompt:too_long")
        assert place.engine.requests[0].body == body
        assert max(stalls) < STALL_MAX_S
    Report("T5", "a prompt of 10 MB", f"by load, loop late by {1e3 * max(stalls):.0f} ms").tell()


async def test_t5_variables_of_megabytes(redis_url: str, canary: Canary) -> None:
    """What templates would write out as JSON has a bound of its own."""
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 5_000_000}}
    async with door(redis_url, canary) as place:
        seen = await place.ask(chat("hello", tools=[tool]))
        assert (seen.status, seen.fallback) == (200, "prompt:too_long")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (rb'{"model":"demo","messages":[{"role":"user","content":"a \ud800 b"}]}', {200, 400}),
        (rb'{"model":"demo","messages":[{"role":"user","content":"\udc00"}],"n":1}', {200, 400}),
    ],
)
async def test_t5_lone_surrogates(
    redis_url: str, canary: Canary, raw: bytes, status: set[int]
) -> None:
    """They are no text: the client is told so, or the request goes by load, never a 500."""
    async with door(redis_url, canary) as place:
        seen = await place.ask(raw)
        assert seen.status in status
        assert seen.status == 400 or seen.fallback == "prompt:encoding"


@pytest.mark.parametrize("error", [TypeError, RuntimeError, MemoryError, RecursionError])
async def test_t5_a_tokenizer_that_raises(
    redis_url: str, canary: Canary, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Whatever it raises, with the text in its message, is a request by load and a word."""
    async with door(redis_url, canary) as place:

        def fails(*_: Any, **__: Any) -> Any:
            raise error(canary.text)

        monkeypatch.setattr(Tokenizer, "encode", fails)
        seen = await place.ask(chat(canary.text * 20))
        monkeypatch.undo()
        assert (seen.status, seen.fallback) == (200, "prompt:error")
        assert place.fallbacks("error") == 1
        assert (await place.ask(chat("hello " * 20))).fallback is None
    Report("T5", f"a tokenizer that raises {error.__name__}", "by load (`error`)").tell()


async def test_t5_a_library_that_raises_is_told_apart(
    redis_url: str, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the library itself raises is known as such."""
    async with door(redis_url, canary) as place:
        builder: PromptBuilder = place.running.desk.pipeline._prompts.builder("demo")  # type: ignore[arg-type]
        backend = builder._tokenizer._backend
        monkeypatch.setattr(type(backend), "encode", lambda *_, **__: 1 / 0)
        seen = await place.ask(chat(canary.text * 20))
        monkeypatch.undo()
        assert (seen.status, seen.fallback) == (200, "prompt:tokenizer_error")

"""The load: each request is sent when the trace says, whatever became of those before it.

A request that is sent late, because this process was, is late: all times count from when it was
due. So a router that holds requests up cannot make the load wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

from bench.routing.figures import Outcome

PATH = "/v1/chat/completions"
_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Shot:
    """A request to send.

    Attributes:
        due_s: when, in real seconds since the start.
        url: of the router that gets it.
        name: its id, which finds it again in logs.
    """

    due_s: float
    url: str
    body: bytes
    name: str = "request"


@dataclass(slots=True)
class Answer:
    """A streamed answer as it comes in; times are those of this process."""

    sent: float = 0.0
    first: float | None = None
    end: float = 0.0
    fault: str | None = "unfinished"
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    answer_tokens: int = 0
    rest: bytearray = field(default_factory=bytearray)

    def take(self, piece: bytes, now: float) -> None:
        """Read the events that are whole; only the first texts and the usage are looked into."""
        self.rest += piece
        end = self.rest.rfind(b"\n\n")
        if end < 0:
            return
        events, self.rest = bytes(self.rest[:end]), self.rest[end + 2 :]
        for event in events.split(b"\n\n"):
            # A router may send comments meanwhile, so that nobody takes the stream for dead.
            if event.startswith(_DATA):
                self._take_data(event.removeprefix(_DATA), now)

    def _take_data(self, data: bytes, now: float) -> None:
        if data == _DONE:
            self.fault = None
        elif self.first is None or b'"usage"' in data:
            self._read(data, now)

    def _read(self, data: bytes, now: float) -> None:
        chunk = orjson.loads(data)
        if any(choice.get("delta", {}).get("content") for choice in chunk["choices"]):
            self.first = self.first or now
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.answer_tokens = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            self.cached_tokens = details.get("cached_tokens")


async def drive(shots: Sequence[Shot], time_scale: float, wait_s: float) -> list[Outcome]:
    """Send all, wait until the last is answered, and say what came.

    Args:
        shots: in order of time.
        time_scale: seconds of the model per real second.
        wait_s: real seconds after the last one's time, after which what is open has failed.
    """
    answers = [Answer() for _ in shots]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        start = time.perf_counter() + 0.05
        tasks = []
        for shot, answer in zip(shots, answers, strict=True):
            await asyncio.sleep(start + shot.due_s - time.perf_counter())
            tasks.append(asyncio.create_task(_send(session, shot, answer)))
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=wait_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return [
        _outcome(shot, each, start, time_scale) for shot, each in zip(shots, answers, strict=True)
    ]


async def _send(session: aiohttp.ClientSession, shot: Shot, answer: Answer) -> None:
    answer.sent = time.perf_counter()
    headers = {"Content-Type": "application/json", "X-Request-Id": shot.name}
    try:
        async with session.post(shot.url + PATH, data=shot.body, headers=headers) as response:
            if response.status != 200:
                answer.fault = f"status {response.status}"
                await response.read()
                return
            async for piece in response.content.iter_any():
                answer.take(piece, time.perf_counter())
            if answer.fault is None and answer.first is None:
                answer.fault = "no text"
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
        answer.fault = type(error).__name__
    finally:
        answer.end = time.perf_counter()


def _outcome(shot: Shot, answer: Answer, start: float, time_scale: float) -> Outcome:
    def model_s(at: float) -> float:
        return (at - start) * time_scale

    return Outcome(
        due_s=shot.due_s * time_scale,
        sent_s=model_s(answer.sent),
        first_s=None if answer.first is None else model_s(answer.first),
        end_s=model_s(answer.end),
        fault=answer.fault,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        answer_tokens=answer.answer_tokens,
    )

"""Engines that cost next to nothing: they know their prompts and answer from memory.

    python -m bench.proxy.engine --model FOLDER --bodies FOLDER --sizes KB ... -- PLACE ...

A place is PORT:EVENTS:REPLAY. All engines share a process and a loop. Prompt i is held by engine i
modulo their number. Streams carry the moment at which each chunk was written.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import orjson
import uvloop

from bench.proxy.bodies import mark_of, read_bodies, token_ids
from bench.proxy.streaming import Pacer, Stream
from kvatlas.cli.fleet import BLOCK_SIZE, MODEL
from kvatlas.common.prompt import PromptBuilder
from kvatlas.common.settings import EngineSettings, ModelSettings
from kvatlas.simulator import answers
from kvatlas.simulator.cache_events import Stored
from kvatlas.simulator.engine_hash import ChainHasher, wire_hash
from kvatlas.simulator.events import Publisher, publishing
from kvatlas.simulator.metrics import EngineMetrics

CREATED: Final = 1_764_120_000
EVENT_BLOCKS_MAX: Final = 512
"""In one event, as a step of chunked prefill makes them."""
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What an engine says of one prompt: an answer, and how it is rendered."""

    answer: bytes
    rendered: bytes


@dataclass(frozen=True, slots=True)
class Book:
    """All that one engine can say.

    Attributes:
        prompts: by mark.
        pages: by path.
    """

    prompts: dict[bytes, Known]
    pages: dict[bytes, bytes]
    unknown: bytes


class Connection(asyncio.Protocol):
    """Read requests just as far as it takes to answer them."""

    def __init__(self, book: Book, pacer: Pacer) -> None:
        self._book = book
        self._pacer = pacer
        self._buffer = bytearray()
        self._head = b""
        # Bytes of the request that is being read; 0 while its head is not there, -1 while it
        # comes in chunks.
        self._length = 0
        self._transport: asyncio.Transport
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # One of uvloop is no asyncio.Transport to isinstance.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Stop the stream of a client that left."""
        if self._stream is not None:
            self._stream.is_over = True

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._buffer += data
        while self._is_complete():
            end = self._length if self._length > 0 else len(self._buffer)
            request = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._length = 0
            self._answer(request)

    def _is_complete(self) -> bool:
        if not self._length and not self._read_head():
            return False
        if self._length < 0:
            return self._buffer.endswith(b"0\r\n\r\n")
        return len(self._buffer) >= self._length

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._head = bytes(self._buffer[:end])
        lower = self._head.lower()
        at = lower.find(b"\r\ncontent-length:")
        length = int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        self._length = end + 4 + length
        if at < 0 and b"\r\ntransfer-encoding:" in lower:
            self._length = -1
        return True

    def _answer(self, request: bytes) -> None:
        path = self._head.split(b" ", 2)[1].split(b"?", 1)[0]
        if not path.startswith(b"/v1/chat/completions"):
            self._transport.write(self._book.pages.get(path, self._book.unknown))
            return
        known = self._book.prompts.get(mark_of(request) or b"")
        if known is None:
            self._transport.write(self._book.unknown)
        elif path.endswith(b"/render"):
            self._transport.write(known.rendered)
        elif b'"stream":true' in request:
            self._transport.write(_STREAM)
            self._stream = self._pacer.start(self._transport)
        else:
            self._transport.write(known.answer)


def page(content: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    """Write a whole answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _pages() -> dict[bytes, bytes]:
    config = {"block_size": str(BLOCK_SIZE), "num_gpu_blocks": "400000"}
    metrics = EngineMetrics(MODEL, config)
    metrics.watch(lambda: 0.0, lambda: 0.0, lambda: 0.0)
    models = answers.model_list(MODEL, MODEL, 1 << 20, CREATED)
    return {
        b"/health": page(b""),
        # A collector that takes all traces.
        b"/v1/traces": page(b"", "application/x-protobuf"),
        b"/version": page(b'{"version":"0.32.0"}'),
        b"/v1/models": page(orjson.dumps(models)),
        b"/metrics": page(metrics.page(), "text/plain; version=0.0.4"),
    }


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as an engine knows it."""

    mark: bytes
    ids: list[int]

    def known(self, *, is_held: bool) -> Known:
        """Write what an engine answers that holds it, or does not."""
        cached = (len(self.ids) - 1) // BLOCK_SIZE * BLOCK_SIZE if is_held else 0
        answer = {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": CREATED,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "It is so, and it stays so."},
                    "logprobs": None,
                    "finish_reason": "length",
                }
            ],
            "usage": {
                "prompt_tokens": len(self.ids),
                "total_tokens": len(self.ids) + 8,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
        rendered = answers.rendered(MODEL, self.ids, None, chat=True)
        return Known(page(orjson.dumps(answer)), page(orjson.dumps(rendered)))

    def announce(self, publisher: Publisher) -> None:
        """Tell of all full blocks."""
        count = len(self.ids) // BLOCK_SIZE
        keys = ChainHasher(BLOCK_SIZE, None).keys(self.ids, count)
        hashes = tuple(wire_hash(key) for key in keys)
        for start in range(0, count, EVENT_BLOCKS_MAX):
            part = hashes[start : start + EVENT_BLOCKS_MAX]
            ids = self.ids[start * BLOCK_SIZE : (start + len(part)) * BLOCK_SIZE]
            parent = hashes[start - 1] if start else None
            publisher.publish([Stored(part, parent, tuple(ids), BLOCK_SIZE, (None,) * len(part))])


def _texts(model: Path, folder: Path, sizes: Sequence[int]) -> list[Text]:
    builder = PromptBuilder.load(ModelSettings(name=MODEL, tokenizer=str(model)))
    return [
        Text(body.mark, token_ids(builder, body))
        for size in sizes
        for body in read_bodies(folder, size)
    ]


async def _serve(options: argparse.Namespace) -> None:
    texts, pages, pacer = (
        _texts(options.model, options.bodies, options.sizes),
        _pages(),
        Pacer(options.interval),
    )
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        replays = []
        for number, place in enumerate(options.places):
            port, events, replay = map(int, place.split(":"))
            settings = EngineSettings(
                events=f"tcp://127.0.0.1:{events}", replay=f"tcp://127.0.0.1:{replay}"
            )
            publisher = stack.enter_context(publishing(settings))
            known = {}
            for at, text in enumerate(texts):
                is_held = at % len(options.places) == number
                known[text.mark] = text.known(is_held=is_held)
                if is_held:
                    text.announce(publisher)
            book = Book(known, pages, page(b"{}", status="404 Not Found"))
            await loop.create_server(lambda book=book: Connection(book, pacer), "127.0.0.1", port)  # type: ignore[misc]
            replays.append(publisher.serve_replays())
        await asyncio.gather(pacer.run(), *replays)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="bench.proxy.engine")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="folder of them")
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--interval", type=float, default=0.025, help="between chunks, s")
    parser.add_argument("places", nargs="+", metavar="PORT:EVENTS:REPLAY")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()

"""What proof costs on the way of a request: cuts, the usage filter, the members that are added.

    python bench/proof.py

Each figure is the best of several runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from kvatlas.common.ids import Epoch
from kvatlas.common.prompt import CHAT_PATH
from kvatlas.router.accuracy import Prediction, Window, is_comparable
from kvatlas.router.body import add, client_body
from kvatlas.router.endpoints import EngineFacts
from kvatlas.router.handover import Candidate, params, refusal
from kvatlas.router.usage import WholeAnswer
from kvatlas.router.usage_stream import UsageStream

SIZES = (1_024, 32 * 1_024, 128 * 1_024)
RUNS = 7
CHUNKS = 2_000
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1795427131,"model":"m","choices":[{"index":0,"delta":{"content":" token"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
END = CHUNK.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
USAGE = (
    b'data: {"id":"chatcmpl-0","choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":'
    b'{"cached_tokens":4}},"system_fingerprint":"vllm-0.32.0-0123abcd"}\n\n'
)
DONE = b"data: [DONE]\n\n"


def main() -> int:
    """Print the tables."""
    console = Console()
    console.print(_requests())
    console.print(_streams())
    return 0


def _requests() -> Table:
    table = Table("us per request", *(f"{size // 1_024} KB" for size in SIZES))
    bodies = [_body(size) for size in SIZES]
    ids = [list(range(1_000, 1_000 + size // 4)) for size in SIZES]
    fields = [orjson.loads(body) for body in bodies]
    facts = EngineFacts((0, 32, 0), "agrees", frozenset(), 10**6)
    rows: dict[str, list[Callable[[], Any]]] = {
        "(reading the JSON, for comparison)": [partial(orjson.loads, body) for body in bodies],
        "nothing to cut": [
            partial(client_body, *both) for both in zip(bodies, fields, strict=True)
        ],
        "a member cut": [
            partial(client_body, body, orjson.loads(body))
            for body in (add(body, "kv_transfer_params", b"{}") for body in bodies)
        ],
        "stream_options added": [
            partial(add, body, "stream_options", b'{"include_usage":true}') for body in bodies
        ],
        "may it be handed over": [
            partial(refusal, Candidate(CHAT_PATH, each, "m", tokens), facts)
            for each, tokens in zip(fields, ids, strict=True)
        ],
        "token ids written and added": [
            partial(_hand_over, body, tokens) for body, tokens in zip(bodies, ids, strict=True)
        ],
        "may it be compared": [partial(is_comparable, each, 1) for each in fields],
        "a prediction noted": [_noting()] * len(SIZES),
        "usage of a whole answer": [partial(_whole, body) for body in bodies],
    }
    for name, works in rows.items():
        table.add_row(name, *(f"{_best(work) * 1e6:.2f}" for work in works))
    return table


def _streams() -> Table:
    table = Table(f"a stream of {CHUNKS:,} chunks", "us per chunk")
    sent = [*[CHUNK] * CHUNKS, END, USAGE, DONE]
    halves = [half for chunk in sent for half in (chunk[:100], chunk[100:])]
    continuous = [
        *[CHUNK.replace(b"]}\n", b'],"usage":{"prompt_tokens":9}}\n')] * CHUNKS,
        *(END, USAGE, DONE),
    ]
    crlf = [chunk.replace(b"\n", b"\r\n") for chunk in sent]
    rows: dict[str, tuple[list[bytes], bool]] = {
        "watched": (sent, False),
        "usage taken out": (sent, True),
        "usage taken out, every chunk in two pieces": (halves, True),
        "usage taken out, lines end in CR LF": (crlf, True),
        "watched, usage in every chunk": (continuous, False),
    }
    for name, (pieces, takes_out) in rows.items():
        spent = _best(partial(_filter, pieces, takes_out=takes_out))
        table.add_row(name, f"{spent / CHUNKS * 1e6:.2f}")
    return table


def _body(size: int) -> bytes:
    """Write a chat of ten turns."""
    text = 'a block of some engine\'s cache, "quoted", and so on; ' * (size // 550 + 1)
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text[: size // 10]} for i in range(10)
    ]
    return orjson.dumps({"model": "m", "messages": messages, "max_tokens": 64, "stream": True})


def _hand_over(body: bytes, ids: list[int]) -> bytes:
    return add(body, "kv_transfer_params", params(ids))


def _noting() -> Callable[[], Any]:
    window, prediction = Window(), Prediction(1_000, 320, Epoch(1))
    return lambda: window.note(prediction, 320, time.monotonic())


def _whole(body: bytes) -> None:
    reader = WholeAnswer()
    for at in range(0, len(body), 65_536):
        reader.feed(body[at : at + 65_536])
    reader.feed(b',"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4}}}')
    reader.end()
    assert reader.usage is not None


def _filter(pieces: list[bytes], *, takes_out: bool) -> None:
    stream = UsageStream(takes_out=takes_out, stamps=takes_out)
    for piece in pieces:
        stream.feed(piece)
    stream.end()
    assert stream.usage is not None


def _best(work: Callable[[], Any]) -> float:
    """Give the best time of one call, of calls in a row for what is short."""
    begun = time.perf_counter()
    work()
    calls = max(1, int(0.01 / max(time.perf_counter() - begun, 1e-7)))
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - begun) / calls)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())

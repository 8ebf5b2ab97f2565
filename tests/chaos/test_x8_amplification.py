"""X8, little that costs much: what hostile input costs the router, measured from outside."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.chaos.test_c5_c6_smuggling import CHUNKS, HEADS
from tests.fakes.chaos_place import Scale
from tests.fakes.engines import router_settings
from tests.fakes.raw_client import chunked, get, post
from tests.fakes.router_process import RouterProcess, router_processes
from tests.fakes.upstream import plain, upstream

TIMES_MAX = 100
MEMORY_FLOOR_BYTES = 24 * 1024 * 1024
"""Buffers, caches and threads that come with the first request of their kind."""
CPU_FLOOR_S = 0.4
"""Per MB sent, and for less: below it the collector and the clock's steps count for too much."""
SIZE = {False: 1_000_000, True: 2_000_000}
CHUNKED = "Transfer-Encoding: chunked"
PRINTS = bool(os.environ.get("TEST_X8_PRINTS"))
CHANCE = random.Random(8)


@dataclass(frozen=True)
class Cost:
    """What an input took: bytes and seconds of CPU, the client's and ours."""

    sent_bytes: int
    client_s: float
    grown_bytes: int
    router_s: float

    def times(self) -> tuple[float, float]:
        """Give how many times the client's bytes and seconds."""
        return self.grown_bytes / self.sent_bytes, self.router_s / self.client_s

    def line(self, name: str) -> str:
        """Tell of it."""
        memory, cpu = self.times()
        spent = f"memory {self.grown_bytes >> 20} MB x{memory:.0f}, CPU {self.router_s:.3f} s"
        return f"{name}: {self.sent_bytes:,} bytes, {spent} x{cpu:.0f}"

    def is_fair(self) -> bool:
        """Tell whether it is within the bounds."""
        memory, cpu = self.times()
        is_small = self.grown_bytes <= MEMORY_FLOOR_BYTES
        is_short = self.router_s <= CPU_FLOOR_S * max(1.0, self.sent_bytes / 1e6)
        return (is_small or memory <= TIMES_MAX) and (is_short or cpu <= TIMES_MAX)


def _filled(unit: bytes, size: int, member: bytes = b"x") -> bytes:
    """Write a body that one unit fills."""
    start = b'{"model":"demo","messages":[{"role":"user","content":"x"}],"%b":[' % member
    return start + b",".join([unit] * (size // (len(unit) + 1))) + b"]}"


def _said(text: str) -> bytes:
    return b'{"model":"demo","messages":[{"role":"user","content":"%b"}]}' % text.encode()


def _lists(size: int) -> bytes:
    return _filled(b"[]", min(size, 3 * limits.JSON_CONTAINERS_MAX - 300))


def _letters(size: int) -> str:
    return "".join(CHANCE.choices("abcdefghijklmnopqrstuvwxyz", k=size))


STEERED = b'{"kv_transfer_params":1,'
INPUTS: dict[str, Callable[[int], list[bytes]]] = {
    "lists, as many as may be": lambda size: [post(_lists(size))],
    "lists, too many": lambda size: [post(_filled(b"[]", size))],
    "objects": lambda size: [post(_filled(b'{"a":1}', size))],
    "lists 900 deep": lambda size: [post(_filled(b"[" * 900 + b"]" * 900, size))],
    "empty strings": lambda size: [post(_filled(b'""', size))],
    "numbers": lambda size: [post(_filled(b"1", size))],
    "brackets in strings": lambda size: [post(_filled(b'"["', size))],
    "steering, then strings": lambda size: [post(STEERED + _filled(b'""', size)[1:])],
    "steering, then escapes": lambda size: [post(STEERED + _filled(b'"\\n\\""', size)[1:])],
    "steering, then lists": lambda size: [post(STEERED + _lists(size)[1:])],
    "steering, members": lambda size: [
        post(STEERED + b'"a":1,' * (size // 6) + b'"model":"demo"}')
    ],
    "members": lambda size: [
        post(b"{" + b"".join(b'"%d":1,' % n for n in range(size // 10)) + b'"model":"demo"}')
    ],
    "messages": lambda size: [
        post(b'{"model":"demo","messages":[' + b"{}," * (size // 3) + b"{}]}")
    ],
    "parts of a message": lambda size: [
        post(
            b'{"model":"demo","messages":[{"role":"user","content":['
            + b",".join([b'{"type":"text","text":""}'] * (size // 26))
            + b"]}]}"
        )
    ],
    "tools": lambda size: [post(_filled(b'{"type":"function"}', size, b"tools"))],
    "token ids": lambda size: [
        post(b'{"model":"demo","prompt":[' + b"1," * (size // 2) + b"1]}", path="/v1/completions")
    ],
    "prompts": lambda size: [
        post(b'{"model":"demo","prompt":[' + b'"",' * (size // 3) + b'""]}', path="/v1/completions")
    ],
    "chunks of one byte": lambda size: [post(chunked(*[b"a"] * (size // 6)), framing=CHUNKED)],
    "chunks of two bytes": lambda size: [post(chunked(*[b"ab"] * (size // 7)), framing=CHUNKED)],
    "extensions": lambda size: [
        post(b"1;" + b"a" * 8_000 + b"\r\n ", framing=CHUNKED)
        + (b"\r\n1;" + b"a" * 8_000 + b"\r\n ") * (size // 8_000)
    ],
    "a trailer": lambda size: [post(b"0\r\nX: " + b"a" * size, framing=CHUNKED)],
    "odd heads": lambda _: list(HEADS.values()) * 4,
    "odd chunks": lambda _: [post(body, framing=CHUNKED) for body in CHUNKS.values()],
    "full heads": lambda size: [
        get("/readyz", *[f"X-{n}: {'a' * 100}" for n in range(90)])
    ] * (size // 10_000),
    "offers": lambda size: [
        get("/readyz", "Upgrade: x", "Connection: Upgrade", *["A: b"] * 90) * 16
    ] * (size // 10_000),
    "answers ahead": lambda size: [get("/openapi.json") * 16] * (size // 10_000),
}  # fmt: skip
"""Each what connections send, one after the other, as bytes of about a size."""

TEXTS: dict[str, Callable[[int], str]] = {
    "one letter": lambda size: "a" * size,
    "letters at random": _letters,
    "words": lambda size: "word and " * (size // 9),
    "blanks": lambda size: " \\n" * (size // 3),
    "emoji": lambda size: "🚀" * (size // 4),
    "Chinese": lambda size: "汉字" * (size // 6),
    "accents": lambda size: "a\u0300\u0301" * (size // 5),
    "digits": lambda size: "1234567890" * (size // 10),
    "added tokens": lambda size: "<|im_start|>" * (size // 12),
}


def _cpu_s(pid: int) -> float:
    """Sum what a process' threads have run, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in tasks) / 1e9


def _memory(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1_024


def _exchange(port: int, content: bytes) -> None:
    """Send, and read whatever comes until nothing does."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(0.5)
        try:
            client.sendall(content)
            while client.recv(262_144):
                client.settimeout(0.05)
        except OSError:
            return


@contextmanager
def _measured(process: RouterProcess, content: list[bytes]) -> Iterator[list[Cost]]:
    pid = process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    memory, router_s, client_s = _memory(pid, "VmRSS"), _cpu_s(pid), time.thread_time()
    found: list[Cost] = []
    yield found
    spent_s = time.thread_time() - client_s
    _settle(pid)
    grown = max(0, _memory(pid, "VmHWM") - memory)
    size = sum(map(len, content))
    found.append(Cost(size, spent_s, grown, _cpu_s(pid) - router_s))


def _settle(pid: int) -> None:
    """Wait until a process has nothing more to do."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        before = _cpu_s(pid)
        time.sleep(0.25)
        if _cpu_s(pid) - before < 0.05:
            return


def _cost(process: RouterProcess, content: list[bytes]) -> Cost:
    with _measured(process, content) as found:
        for each in content:
            _exchange(process.port, each)
    return found[0]


@pytest.mark.timeout(120)
async def test_x8_no_input_costs_100_times_its_bytes_or_its_senders_cpu(
    tmp_path: Path, redis_url: str, scale: Scale
) -> None:
    """Over odd heads, bodies and orders of both; sent as cheaply as a client can."""
    size = SIZE[scale.is_full]
    costs: dict[str, Cost] = {}
    async with upstream(plain(b"{}")) as engine:
        settings = router_settings(
            [f"http://127.0.0.1:{engine.port}"], redis_url, metrics_interval_s=60
        )
        with router_processes(tmp_path, settings) as (process,):
            await process.ready()
            for content in (post(_said("hello")), post(_said("word " * 50_000))):
                await asyncio.to_thread(_cost, process, [content])
            for name, made in INPUTS.items():
                costs[name] = await asyncio.to_thread(_cost, process, made(size))
            for name, text in TEXTS.items():
                said = [post(_said(text(size)))]
                costs[f"text: {name}"] = await asyncio.to_thread(_cost, process, said)
            if PRINTS:
                sys.stdout.write("\n".join(cost.line(name) for name, cost in costs.items()))
            told = [cost.line(name) for name, cost in costs.items() if not cost.is_fair()]
            assert told == []
            assert not process.events("request.failed")
    memory = max(cost.times()[0] for cost in costs.values() if cost.sent_bytes > size / 2)
    Report(
        "X8", f"{len(costs)} inputs of {size / 1e6:.0f} MB", f"memory x{memory:.0f} at most"
    ).tell()

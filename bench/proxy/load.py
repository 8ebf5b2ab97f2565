"""The load: requests or streams over kept connections, from bytes that are made before.

    python -m bench.proxy.load requests|streams|poll --ports P ... --bodies FOLDER --size KB

One line of JSON tells what came of it, with the CPU that the processes of `--pids` used meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import uvloop

from bench.proxy.bodies import read_bodies
from bench.proxy.streaming import STAMP, STAMP_DIGITS
from bench.proxy.usage import cpu_ns, machine_busy_s
from kvatlas.cli.best_share import percentile

WARM_S = 0.5
CHAT = "/v1/chat/completions"


class Failure(Exception):
    """An answer was not what it should be."""


class Worker(asyncio.Protocol):
    """Send a request, wait for the end of its answer, send the next."""

    def __init__(self, run: Run, start: int) -> None:
        self._run = run
        self._at = start
        self._sent_ns = 0
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        # One of uvloop is no asyncio.Transport to isinstance.
        self._transport = cast("asyncio.Transport", transport)
        self._run.transports.append(self._transport)
        self._send()

    def _send(self) -> None:
        requests = self._run.requests
        self._at = (self._at + 1) % len(requests)
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(requests[self._at])

    def data_received(self, data: bytes) -> None:
        """Note an answer that is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0 or not is_whole(self._buffer, head):
            return
        self._run.note(time.perf_counter_ns() - self._sent_ns, self._buffer)
        self._buffer = b""
        if not self._run.is_over:
            self._send()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Count a connection that was not closed by us."""
        if not self._run.is_over:
            self._run.lost += 1


def is_whole(buffer: bytes, head: int) -> bool:
    """Say whether an answer ends here."""
    lower = buffer[:head].lower()
    at = lower.find(b"content-length:")
    if at < 0:
        return buffer.endswith(b"0\r\n\r\n")
    length = int(lower[at + 15 :].split(b"\r\n", 1)[0])
    return len(buffer) >= head + 4 + length


class Run:
    """What all workers share."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests = requests
        self.transports: list[asyncio.Transport] = []
        self.took_ns: list[int] = []
        self.bad: dict[str, int] = {}
        self.lost = 0
        self.is_over = False

    def note(self, took_ns: int, answer: bytes) -> None:
        """Count an answer."""
        self.took_ns.append(took_ns)
        if not answer.startswith(b"HTTP/1.1 200"):
            status = answer[9:12].decode(errors="replace")
            self.bad[status] = self.bad.get(status, 0) + 1

    def clear(self) -> None:
        """Forget what was while it was warming."""
        self.took_ns, self.bad, self.lost = [], {}, 0


class Reader(asyncio.Protocol):
    """Read a stream and tell how long each chunk was under way."""

    def __init__(self, request: bytes, delays_ns: list[int]) -> None:
        self._request = request
        self._delays = delays_ns
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for it."""
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Find the stamps."""
        now = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
        at = data.find(STAMP)
        while at >= 0:
            start = at + len(STAMP)
            if len(data) < start + STAMP_DIGITS:
                self._rest = data[at:]
                return
            self._delays.append(now - int(data[start : start + STAMP_DIGITS]))
            at = data.find(STAMP, start)
        tail = data[-len(STAMP) + 1 :]
        self._rest = tail if STAMP[:1] in tail else b""


def wire(port: int, body: bytes, key: str) -> bytes:
    """Write a request."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nUser-Agent: bench\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Meter:
    """CPU and time from when this is made."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._begun = time.perf_counter()
        self._busy = machine_busy_s()
        self._cpu = {pid: cpu_ns(pid) for pid in pids}

    def read(self) -> dict[str, Any]:
        """Give what was used."""
        seconds = time.perf_counter() - self._begun
        busy = (machine_busy_s() - self._busy) / seconds
        used = {str(pid): cpu_ns(pid) - self._cpu[pid] for pid in self._pids}
        return {"seconds": seconds, "machine_cpus": busy, "cpu_ns": used}


async def requests(options: argparse.Namespace) -> dict[str, Any]:
    """Send requests one after the other over each connection."""
    loop = asyncio.get_running_loop()
    ports = options.ports
    made = read_bodies(options.bodies, options.size)
    run = Run([wire(ports[n % len(ports)], body.raw, options.key) for n, body in enumerate(made)])
    for number in range(options.concurrency):
        start = number * len(run.requests) // options.concurrency
        port = ports[number % len(ports)]
        await loop.create_connection(lambda start=start: Worker(run, start), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.sleep(options.warm)
    run.clear()
    meter = Meter(options.pids)
    await asyncio.sleep(options.seconds)
    found, took = meter.read(), run.took_ns
    run.is_over = True
    for transport in run.transports:
        transport.abort()
    if not took:
        raise Failure("no answer came")
    return {
        **found,
        "count": len(took),
        "bad": run.bad,
        "lost": run.lost,
        "p50_us": percentile(took, 0.5) / 1e3,
        "p99_us": percentile(took, 0.99) / 1e3,
    }


async def streams(options: argparse.Namespace) -> dict[str, Any]:
    """Read streams."""
    loop, delays = asyncio.get_running_loop(), list[int]()
    made = read_bodies(options.bodies, options.size, stream=True)
    for number in range(options.concurrency):
        port = options.ports[number % len(options.ports)]
        request = wire(port, made[number % len(made)].raw, options.key)
        await loop.create_connection(
            lambda request=request: Reader(request, delays),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        # So that their chunks do not all fall on the same moment.
        await asyncio.sleep(0.003)
    await asyncio.sleep(options.warm)
    delays.clear()
    meter = Meter(options.pids)
    await asyncio.sleep(options.seconds)
    found, took = meter.read(), sorted(delays)
    if not took:
        raise Failure("no chunk came")
    return {
        **found,
        "count": len(took),
        "p50_us": percentile(took, 0.5) / 1e3,
        "p99_us": percentile(took, 0.99) / 1e3,
    }


async def poll(options: argparse.Namespace) -> dict[str, Any]:
    """Ask for a path that there is not, every millisecond; how late answers are tells of stalls."""
    reader, writer = await asyncio.open_connection("127.0.0.1", options.ports[0])
    took, end = list[int](), time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        begun = time.perf_counter_ns()
        writer.write(b"GET /none HTTP/1.1\r\nHost: bench\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        at = head.lower().find(b"content-length:")
        await reader.readexactly(int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
        took.append(time.perf_counter_ns() - begun)
        await asyncio.sleep(0.001)
    took.sort()
    return {
        "count": len(took),
        "p50_us": percentile(took, 0.5) / 1e3,
        "p99_us": percentile(took, 0.99) / 1e3,
        "max_us": took[-1] / 1e3,
    }


RUNS = {"requests": requests, "streams": streams, "poll": poll}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="bench.proxy.load")
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--size", type=int, default=1, help="KB")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm", type=float, default=WARM_S)
    parser.add_argument("--bodies", type=Path, required=True, help="folder of them")
    parser.add_argument("--key", default="")
    parser.add_argument("--pids", type=int, nargs="*", default=[])
    options = parser.parse_args()
    print(json.dumps(uvloop.run(RUNS[options.what](options))))


if __name__ == "__main__":
    main()

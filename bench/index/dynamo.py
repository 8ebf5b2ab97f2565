"""Dynamo's in-memory indexer service, asked by the same load: hashes in, scores out over HTTP.

`bench/dynamo.sh` installs it. Events reach it over ZMQ; a query is a POST of the prompt's block
hashes on a connection that stays open, written beforehand; of an answer only the first is parsed,
to see that it is right. So the client's share is small and in Dynamo's favour.
"""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
import zmq
from xxhash import xxh3_64_intdigest

from bench.index.events import BLOCK_SIZE, MODEL, Prompt, stamped
from bench.index.lookups import DEEP, MANY_S, ONE_S, draw, nested
from bench.index.machine import CACHE, BenchError, Deadline, check_alive, cpu_s, running
from bench.index.memory import spread
from kvatlas.cli.processes import free_port

PYTHON = CACHE / "dynamo/venv/bin/python"
INSTALL = Path(__file__).parents[1] / "dynamo.sh"
THREADS = 4
HASH_SEED = 1_337
START_S = 30.0
INGEST_S = 120.0
SLICE = 2_000


def measure(
    engines: int, lengths: Sequence[int], at_once: Sequence[int], others: int
) -> dict[str, Any]:
    """Measure its lookups, or say why that cannot be done."""
    try:
        _install()
        return _measure(engines, lengths, at_once, others)
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        return {"not_measured": f"{type(error).__name__}: {error}"[:500]}


def _install() -> None:
    if not PYTHON.exists():
        subprocess.run([str(INSTALL)], check=True, capture_output=True, timeout=300)


def _measure(
    engines: int, lengths: Sequence[int], at_once: Sequence[int], others: int
) -> dict[str, Any]:
    asked = {length: draw(length, seed=length + engines) for length in lengths}
    with tempfile.TemporaryDirectory(prefix="kva-") as folder, zmq.Context() as context:
        port, log = free_port(), Path(folder) / "dynamo.log"
        options = ["--port", str(port), "--threads", str(THREADS)]
        with running([str(PYTHON), "-m", "dynamo.indexer", *options], log) as child:
            deadline = Deadline(START_S, "Dynamo's indexer did not start")
            while not _is_up(port):
                check_alive(child, log)
                deadline.check()
                time.sleep(0.1)
            sockets = [_engine(context, port, number) for number in range(engines)]
            work = list(spread(engines, others, seed=1))
            for one in asked.values():
                work += nested(one, engines)
            _publish(sockets, work)
            figures: dict[str, Any] = {}
            for length, one in asked.items():
                requests = [_request(prompt) for prompt in one.prompts]
                _await_ingested(port, one.prompts, engines)
                before, begun = cpu_s(child.pid), time.perf_counter()
                figures[str(length)] = uvloop.run(_speed(port, requests, at_once))
                wall = time.perf_counter() - begun
                figures[str(length)]["cores_used"] = (cpu_s(child.pid) - before) / wall
            for socket in sockets:
                socket.close(0)
            return figures


def _engine(context: zmq.Context[zmq.Socket[bytes]], port: int, number: int) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.XPUB)
    socket.set(zmq.SNDHWM, 0)
    socket.bind("tcp://127.0.0.1:*")
    _call(port, "/register", {
        "instance_id": number,
        "endpoint": socket.get_string(zmq.LAST_ENDPOINT),
        "model_name": MODEL,
        "block_size": BLOCK_SIZE,
    })  # fmt: skip
    if not socket.poll(int(START_S * 1_000)):
        raise BenchError("Dynamo's indexer did not subscribe")
    socket.recv()
    return socket


def _publish(sockets: Sequence[zmq.Socket[bytes]], work: Sequence[tuple[int, bytes]]) -> None:
    seqs = [0] * len(sockets)
    for number, (engine, body) in enumerate(work, 1):
        frames = (b"", seqs[engine].to_bytes(8, "big"), stamped(body, time.time()))
        sockets[engine].send_multipart(frames)
        seqs[engine] += 1
        if number % SLICE == 0:
            # Its own queue of 1,000 batches per worker drops what comes faster.
            time.sleep(0.2)


def _await_ingested(port: int, prompts: Sequence[Prompt], engines: int) -> None:
    deadline = Deadline(INGEST_S, "Dynamo's indexer does not give the scores that were sent")
    while not all(_is_right(port, prompt, engines) for prompt in prompts):
        deadline.check()
        time.sleep(0.5)


def _is_right(port: int, prompt: Prompt, engines: int) -> bool:
    """Tell whether its scores, in tokens, are those that the events make."""
    body = {"model_name": MODEL, "block_hashes": _local_hashes(prompt)}
    scores = json.loads(_call(port, "/query_by_hash", body))["scores"]
    wanted = {
        str(number): {
            "0": BLOCK_SIZE * (prompt.blocks - 7 * number if number < DEEP else prompt.blocks // 8)
        }
        for number in range(engines)
    }
    return bool(scores == wanted)


def _local_hashes(prompt: Prompt) -> list[int]:
    """Hash each block by itself, as signed numbers: how its API wants them."""
    packed = struct.pack(f"<{len(prompt.token_ids)}I", *prompt.token_ids)
    step = 4 * BLOCK_SIZE
    digests = [
        xxh3_64_intdigest(packed[at : at + step], HASH_SEED) for at in range(0, len(packed), step)
    ]
    return [digest - 2**64 if digest >= 2**63 else digest for digest in digests]


def _is_up(port: int) -> bool:
    try:
        _call(port, "/health")
    except OSError:
        return False
    return True


def _call(port: int, path: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:  # noqa: S310 - loopback
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        raise BenchError(f"Dynamo's indexer answers {path} with {error.code}") from None


def _request(prompt: Prompt) -> bytes:
    body = {"model_name": MODEL, "block_hashes": _local_hashes(prompt)}
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        "POST /query_by_hash HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _speed(port: int, requests: Sequence[bytes], at_once: Sequence[int]) -> dict[str, Any]:
    times: list[float] = []
    await _ask(port, requests, times, time.perf_counter() + ONE_S)
    figures: dict[str, Any] = {"p50_ms": sorted(times)[len(times) // 2] * 1e3}
    for number in at_once:
        times, begun = [], time.perf_counter()
        await asyncio.gather(*(_ask(port, requests, times, begun + MANY_S) for _ in range(number)))
        figures[f"per_s_at_{number}"] = len(times) / (time.perf_counter() - begun)
    return figures


async def _ask(port: int, requests: Sequence[bytes], times: list[float], end: float) -> None:
    """Ask on one connection, one query after the other, until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    done = 0
    while (begun := time.perf_counter()) < end:
        writer.write(requests[done % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise BenchError("Dynamo's indexer refuses a query")
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - begun)
        done += 1
    writer.close()

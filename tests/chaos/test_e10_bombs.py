"""E10, batches that are small on the wire and large in memory: refused, and memory is bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.common.settings import Settings
from tests.chaos.conftest import Report
from tests.fakes.chaos_place import own_redis
from tests.fakes.indexer_process import IndexerProcess, write_config
from tests.fakes.publisher import FakePublisher, batch, stored
from tests.fakes.redis_servers import Server, free_port

MB = 1 << 20
CAP = limits.FRAME_BYTES_MAX


def nils(size: int) -> bytes:
    """Write a batch whose events are that many nils, a byte each."""
    return b"\x93\xcb" + bytes(8) + b"\xdd" + size.to_bytes(4, "big") + b"\xc0" * size + b"\x00"


def many_hashes(count: int, value: int) -> bytes:
    """Write a removal of that many blocks."""
    event = {"type": "BlockRemoved", "block_hashes": [value] * count, "medium": "GPU"}
    return batch(event | {"group_idx": 0})


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "15 MB of nils": (lambda: nils(15 * MB), "too_large"),
    "1e6 hashes of 9 bytes": (lambda: many_hashes(1_000_000, 2**63), "too_large"),
    "7.9 MB of nils": (lambda: nils(CAP - 100), "too_large"),
    "9e5 hashes of 5 bytes": (lambda: many_hashes(900_000, 2**31), "too_large"),
    "20 MB, more than is received": (lambda: nils(20 * MB), None),
}

PEAK_MAX = 5.0
"""Times the cap: up to twice the cap is received, which takes twice its size; a number of five
bytes takes eight more in a list, and types are looked at while they are read."""
STAYS_MAX_MB = 8 * CAP / MB
"""What the C library keeps of it for next time."""


@dataclass
class Indexed:
    """An indexer in a process of its own, with an engine per bomb."""

    pid: int
    admin: str
    session: aiohttp.ClientSession
    publishers: list[FakePublisher]
    server: Server

    def memory(self, what: str) -> int:
        """Read what the kernel says of the process's memory: VmRSS, or VmHWM, its peak."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(what):
                return int(line.split()[1]) * 1_024
        raise AssertionError(what)

    def forget_peak(self) -> None:
        """Let the peak begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    async def page(self) -> str:
        """Read the page of metrics."""
        async with self.session.get(f"{self.admin}/metrics") as reply:
            return await reply.text()

    async def rejected(self, number: int, reason: str) -> None:
        """Wait until a batch of an endpoint was rejected."""
        labels = f'endpoint="{name(number)}",reason="{reason}"'
        while f"batches_rejected_total{{{labels}}}" not in await self.page():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def known(self, number: int) -> None:
        """Wait until Redis holds blocks of an endpoint."""
        key = Shard(ModelName("m"), 0).endpoint(name(number))
        with self.server.client() as client:
            while not int(client.hget(key, "blocks") or 0):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)


def name(number: int) -> EndpointName:
    """Name an endpoint."""
    return EndpointName(f"127.0.5.{number + 1}:1")


@asynccontextmanager
async def indexed(folder: Path, engines: int) -> AsyncIterator[Indexed]:
    """Run it until the context ends."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(own_redis())
        publishers = [await stack.enter_async_context(FakePublisher()) for _ in range(engines)]
        settings = Settings.model_validate(
            {
                "redis": {"url": server.url},
                "models": [{"name": "m", "tokenizer": "-"}],
                "endpoints": [
                    {
                        "url": f"http://{name(number)}",
                        "model": "m",
                        "events": publisher.events,
                        "replay": publisher.replay,
                    }
                    for number, publisher in enumerate(publishers)
                ],
            }
        )
        port = free_port()
        process = IndexerProcess(folder / "kvatlas.yaml", folder / "indexer.log")
        write_config(process.config, settings, admin_port=port)
        process.start()
        stack.callback(process.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        made = Indexed(process.pid, f"http://127.0.0.1:{port}", session, publishers, server)
        for number, publisher in enumerate(publishers):
            await publisher.publish(stored([1, 2], list(range(8))))
            await made.known(number)
        yield made


async def test_e10_bombs_are_refused(tmp_path: Path, turn: int) -> None:
    """Each costs an epoch of its own endpoint; the peak of memory is bounded, and passes."""
    del turn
    peaks = {}
    async with indexed(tmp_path, len(BOMBS) + 1) as place:
        before = place.memory("VmRSS")
        for number, (what, (make, reason)) in enumerate(BOMBS.items()):
            place.forget_peak()
            start = place.memory("VmRSS")
            await place.publishers[number].publish(payload=make())
            if reason is not None:
                await place.rejected(number, reason)
                peaks[what] = (place.memory("VmHWM") - start) / MB
        began = time.monotonic()
        for publisher in place.publishers:
            await publisher.publish(stored([3], list(range(20, 24))))
        for number in range(len(place.publishers)):
            await place.known(number)
        took_s = time.monotonic() - began
        while (stays := (place.memory("VmRSS") - before) / MB) > STAYS_MAX_MB:
            assert time.monotonic() - began < 10.0, stays
            await asyncio.sleep(0.2)
    for what, peak in peaks.items():
        assert peak < PEAK_MAX * CAP / MB, (what, peaks)
    told = ", ".join(f"{what}: {peak:.0f} MB" for what, peak in peaks.items())
    Report(
        "E10",
        ", ".join(BOMBS),
        f"refused (`too_large`; what is over 16 MB is not received), a doubt of that endpoint "
        f"alone; peak of memory above before: {told}; {stays:.0f} MB stay",
        [took_s],
    ).tell()

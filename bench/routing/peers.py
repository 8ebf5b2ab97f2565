"""Peers from the package index, each in an environment of its own: `bench/peers.sh` installs them.

A peer's constants in seconds are given as options where it has them, divided like all time.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from bench.index.machine import CACHE, BenchError
from bench.routing.site import Site, await_ok
from kvatlas.cli.fleet import MODEL

INSTALL = Path(__file__).parents[1] / "peers.sh"
INSTALL_S = 600.0
START_S = 30.0


def installed(name: str) -> Path:
    """Give the Python of a peer's environment, made if it is not there.

    Raises:
        BenchError: it does not install.
    """
    python = CACHE / "peers" / name / "venv/bin/python"
    done = python.parents[1] / "installed"
    if not done.exists():
        command = [str(INSTALL), name]
        found = subprocess.run(command, capture_output=True, timeout=INSTALL_S, check=False)
        if found.returncode:
            raise BenchError(f"{name} does not install: {found.stderr.decode()[-300:]}")
    return python


def smg(stack: contextlib.ExitStack, site: Site) -> tuple[int, int]:
    """Start SMG with its default policy, cache_aware; give its port and process."""
    port = site.ports.take()
    command = [
        *(str(installed("smg")), "-m", "smg", "launch", "--host", "127.0.0.1"),
        *("--port", str(port), "--prometheus-port", str(site.ports.take())),
        *("--worker-urls", *(engine.url for engine in site.engines)),
        *("--policy", "cache_aware", "--backend", "vllm", "--disable-tokenizer-autoload"),
        *("--worker-startup-check-interval", "1", "--log-level", "warn"),
        *("--shutdown-grace-period-secs", "1"),
        *("--load-monitor-interval", str(max(1, round(10 / site.model.time_scale)))),
    ]
    pid, _ = site.start(stack, "smg", command)
    await_ok(port, "/readiness", "smg", START_S)
    return port, pid


def vllm_router(
    stack: contextlib.ExitStack, site: Site, policy: str, *options: str
) -> tuple[int, int]:
    """Start the vLLM project's router; give its port and process."""
    port = site.ports.take()
    command = [
        *(str(installed("vllm-router")), "-m", "vllm_router.launch_router"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(site.ports.take())),
        *("--worker-urls", *(engine.url for engine in site.engines)),
        *("--policy", policy, "--log-level", "warning"),
        *("--worker-startup-check-interval", "1", *options),
    ]
    pid, _ = site.start(stack, f"vllm-router-{policy}", command)
    await_ok(port, "/readiness", f"vllm-router {policy}", START_S)
    return port, pid


def vllm_router_kv_aware(stack: contextlib.ExitStack, site: Site) -> tuple[int, int]:
    """Start it with the engines' events."""
    options = ["--kv-event-block-size", "16", "--kv-event-model", MODEL]
    for engine in site.engines:
        options += ["--kv-event-source", f"{engine.url}=tcp://127.0.0.1:{engine.events}"]
        options += ["--kv-event-replay-source", f"{engine.url}=tcp://127.0.0.1:{engine.replay}"]
    return vllm_router(stack, site, "kv_aware", *options)

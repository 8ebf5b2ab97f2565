"""Processes of the real thing: two vLLM servers, Redis, an indexer, routers; on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx2
import yaml

from kvatlas.cli.processes import free_port
from kvatlas.cli.redis_server import running_redis

BLOCK_SIZE = 32
MAX_MODEL_LEN = 1_024
ENGINE_START_S = 240.0
SERVICE_START_S = 60.0
STOP_S = 20.0
ADAPTER = "ad1"


@dataclass(frozen=True, slots=True)
class Engine:
    """A vLLM server."""

    port: int
    events: str
    replay: str

    @property
    def name(self) -> str:
        """Give its endpoint's name."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Give where it serves."""
        return f"http://{self.name}"


@dataclass(slots=True)
class Server:
    """The process of an engine, which may be killed and started again."""

    engine: Engine
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `await_ready` waits."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, env=vllm_environment(), start_new_session=True
            )

    def await_ready(self) -> None:
        """Wait until it is healthy."""
        assert self.process is not None
        await_ok(f"{self.engine.url}/health", self.process, ENGINE_START_S)

    def kill(self) -> None:
        """Kill it and its children as the kernel would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            _stop(self.process)


@dataclass(frozen=True, slots=True)
class Router:
    """A router's two ports."""

    port: int
    admin_port: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that runs."""

    servers: tuple[Server, ...]
    routers: tuple[Router, ...]
    config: Path
    redis_url: str

    @property
    def engines(self) -> tuple[Engine, ...]:
        """List the engines."""
        return tuple(server.engine for server in self.servers)


def await_ok(url: str, process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Wait until a GET is answered 200 and the process lives."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{url}: its process ended with {process.returncode}")
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, timeout=2.0).status_code == 200:
                return
        time.sleep(0.25)
    raise RuntimeError(f"{url} was not ready in {limit_s:.0f} s")


@contextlib.contextmanager
def child(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a group of its own until the context ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


def vllm_command(vllm: str, model: Path, engine: Engine, blocks: int) -> list[str]:
    """Write the command line of an engine with a small cache."""
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        # vLLM binds only what holds a star.
        "endpoint": engine.events.replace("127.0.0.1", "*"),
        "replay_endpoint": engine.replay.replace("127.0.0.1", "*"),
    }
    flags = {
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": str(engine.port),
        "max-model-len": str(MAX_MODEL_LEN),
        "max-num-seqs": "8",
        "block-size": str(BLOCK_SIZE),
        "num-gpu-blocks-override": str(blocks),
        "dtype": "bfloat16",
        "kv-events-config": json.dumps(events),
        "tool-call-parser": "hermes",
    }
    switches = (
        "enforce-eager",
        "enable-prefix-caching",
        "enable-prompt-tokens-details",
        "enable-auto-tool-choice",
    )
    adapter = model / "lora"
    lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{ADAPTER}={adapter}"]
    return [
        *(vllm, "serve", str(model)),
        *(part for name, value in flags.items() for part in (f"--{name}", value)),
        *(f"--{name}" for name in switches),
        *(lora if adapter.exists() else []),
    ]


def vllm_environment() -> dict[str, str]:
    """Give the variables with which vLLM runs on a CPU and asks nobody anything."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("KVATLAS_")}
    return {
        **plain,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_SERVER_DEV_MODE": "1",
    }


def write_config(folder: Path, redis_url: str, model: Path, engines: tuple[Engine, ...]) -> Path:
    """Write the configuration of indexer and routers."""
    path = folder / "kvatlas.yaml"
    config = {
        "redis": {"url": redis_url},
        "models": [{"name": "tiny", "tokenizer": str(model), "max_model_len": MAX_MODEL_LEN}],
        "endpoints": [
            {"url": engine.url, "model": "tiny", "events": engine.events, "replay": engine.replay}
            for engine in engines
        ],
        # What is found matters here, not how soon it is on two cores beside two engines.
        "router": {"debug_headers": True, "lookup_s": 1.0},
        "indexer": {"admin_port": free_port()},
    }
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def running_fleet(vllm: str, model: Path, blocks: int, log: IO[str]) -> Iterator[Fleet]:
    """Run everything until the context ends; logs lie in a folder that is named on failure."""
    engines = tuple(
        Engine(free_port(), f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}")
        for _ in range(2)
    )
    routers = tuple(Router(free_port(), free_port()) for _ in range(2))
    folder = Path(tempfile.mkdtemp(prefix="kva-engine-"))
    print(f"logs in {folder}", file=log, flush=True)
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(running_redis(folder))
        servers = tuple(
            Server(engine, vllm_command(vllm, model, engine, blocks), folder / f"engine{n}.log")
            for n, engine in enumerate(engines)
        )
        for server in servers:
            stack.callback(server.stop)
            server.start()
        for server in servers:
            server.await_ready()
        config = write_config(folder, redis.url, model, engines)
        _start_services(stack, folder, config, routers)
        yield Fleet(servers, routers, config, redis.url)


def _start_services(
    stack: contextlib.ExitStack, folder: Path, config: Path, routers: tuple[Router, ...]
) -> None:
    """Start an indexer and the routers with the product's own command."""
    command = [sys.executable, "-m", "kvatlas.cli.main"]
    env = dict(os.environ)
    admin = yaml.safe_load(config.read_text())["indexer"]["admin_port"]
    started = [(admin, [*command, "indexer", "--config", str(config)], "indexer")]
    started += [
        (
            router.admin_port,
            [
                *(*command, "router", "--config", str(config)),
                *("--port", str(router.port), "--admin-port", str(router.admin_port)),
            ],
            f"router{number}",
        )
        for number, router in enumerate(routers)
    ]
    processes = [
        (port, stack.enter_context(child(line, folder / f"{name}.log", env)))
        for port, line, name in started
    ]
    for port, process in processes:
        await_ok(f"http://127.0.0.1:{port}/readyz", process, SERVICE_START_S)

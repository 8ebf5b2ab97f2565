"""A whole fleet on one machine: Redis, simulated engines, an indexer, routers; each a process.

For `kvatlas up` and `kvatlas demo`. The children are our own command with a configuration that is
written for them; whoever dies ends the fleet, and leaving the context leaves no process behind.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from kvatlas.cli.bound import bound_command
from kvatlas.cli.processes import Ports
from kvatlas.cli.redis_server import RedisServer, running_redis
from kvatlas.common.errors import KvatlasError
from kvatlas.common.prompt import demo_model_path

MODEL: Final = "demo"
BLOCK_SIZE: Final = 16
START_S: Final = 60.0
STOP_S: Final = 8.0
POLL_S: Final = 0.05
LOG_TAIL_CHARS: Final = 2_000
DRAIN_S: Final = 2.0
"""For open streams when the fleet is stopped; shorter than STOP_S."""


class FleetError(KvatlasError):
    """A part of the fleet did not start, or died."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What to run.

    Attributes:
        engines: simulated engines.
        routers: routers.
        router: further settings of the routers.
        engine: further settings of the engines.
        port: first port to try for routers; engines, events and admin ports follow theirs. With 0
            every port is any free one.
    """

    engines: int = 4
    routers: int = 2
    router: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    port: int = 0

    @property
    def parts(self) -> int:
        """Count what gets ready: Redis and the indexer, engines and routers."""
        return 2 + self.engines + self.routers


@dataclass(frozen=True, slots=True)
class EnginePorts:
    """Where an engine is."""

    port: int
    events: int
    replay: int

    @property
    def name(self) -> str:
        """Give its endpoint's name."""
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """Where a router is."""

    port: int
    admin_port: int

    @property
    def name(self) -> str:
        """Give the address of its public port."""
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running fleet.

    Attributes:
        config: the configuration that indexer and routers run with.
        logs: folder with a log per process.
    """

    engines: tuple[EnginePorts, ...]
    routers: tuple[RouterPorts, ...]
    indexer_admin_port: int
    redis: RedisServer
    config: Path
    logs: Path
    _children: dict[str, subprocess.Popen[bytes]]

    def check(self) -> None:
        """Make sure that everything still runs.

        Raises:
            FleetError: something died; names it and the end of its log.
        """
        for name, child in self._children.items():
            if child.poll() is not None:
                raise FleetError(_epitaph(name, child, self.logs))

    def pids(self) -> dict[str, int]:
        """Give the process of each part."""
        return {name: child.pid for name, child in self._children.items()}


@contextlib.contextmanager
def running_fleet(
    plan: FleetPlan, started: Callable[[str], None] = lambda _part: None
) -> Iterator[Fleet]:
    """Run a fleet until the context ends.

    Args:
        plan: what to run.
        started: told of each part that is ready.

    Raises:
        FleetError: a part did not get ready.
        RedisServerError: there is no redis-server.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvatlas-")))
        redis = stack.enter_context(running_redis(folder, tcp=True))
        started("redis")
        fleet = _plan_ports(plan, redis, folder)
        _write_config(plan, fleet)
        stack.callback(_stop_all, fleet._children)  # noqa: SLF001 - the class is this module's own
        for name, arguments in _commands(fleet).items():
            fleet._children[name] = _start(arguments, folder / f"{name}.log")  # noqa: SLF001 - as above
        for name, (port, path) in _readiness(fleet).items():
            _await_ready(fleet, name, port, path)
            started(name)
        yield fleet


def _plan_ports(plan: FleetPlan, redis: RedisServer, folder: Path) -> Fleet:
    ports = Ports()
    first = plan.port
    engines = tuple(
        EnginePorts(
            ports.take(first and first + 21 + number),
            ports.take(first and first + 121 + 2 * number),
            ports.take(first and first + 122 + 2 * number),
        )
        for number in range(plan.engines)
    )
    routers = tuple(
        RouterPorts(
            ports.take(first and first + number), ports.take(first and first + 1_010 + number)
        )
        for number in range(plan.routers)
    )
    indexer = ports.take(first and first + 1_020)
    return Fleet(engines, routers, indexer, redis, folder / "kvatlas.yaml", folder, {})


def _write_config(plan: FleetPlan, fleet: Fleet) -> None:
    config = {
        "redis": {"url": fleet.redis.url},
        "models": [{"name": MODEL, "tokenizer": str(demo_model_path()), "block_size": BLOCK_SIZE}],
        "endpoints": [
            {
                "url": f"http://{engine.name}",
                "model": MODEL,
                "events": f"tcp://127.0.0.1:{engine.events}",
                "replay": f"tcp://127.0.0.1:{engine.replay}",
            }
            for engine in fleet.engines
        ],
        "router": {"pre_stop_s": 0.0, "drain_s": DRAIN_S, **plan.router},
        "indexer": {"admin_port": fleet.indexer_admin_port},
        "engine": {"model": MODEL, "block_size": BLOCK_SIZE, **plan.engine},
    }
    fleet.config.write_text(yaml.safe_dump(config), encoding="utf-8")


def _commands(fleet: Fleet) -> dict[str, list[str]]:
    config = ["--config", str(fleet.config)]
    commands = {
        f"engine{number}": [
            *("engine", *config, "--port", str(engine.port)),
            *("--events", f"tcp://127.0.0.1:{engine.events}"),
            *("--replay", f"tcp://127.0.0.1:{engine.replay}"),
        ]
        for number, engine in enumerate(fleet.engines, 1)
    }
    commands["indexer"] = ["indexer", *config]
    for number, router in enumerate(fleet.routers, 1):
        commands[f"router{number}"] = [
            *("router", *config, "--port", str(router.port)),
            *("--admin-port", str(router.admin_port)),
        ]
    return commands


def _readiness(fleet: Fleet) -> dict[str, tuple[int, str]]:
    """Give port and path where each part says that it is ready."""
    places = {f"engine{n}": (engine.port, "/health") for n, engine in enumerate(fleet.engines, 1)}
    places["indexer"] = (fleet.indexer_admin_port, "/readyz")
    for number, router in enumerate(fleet.routers, 1):
        places[f"router{number}"] = (router.admin_port, "/readyz")
    return places


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start our own command; it dies with this process, however that ends."""
    # The fleet's configuration is the whole truth for it, not the user's environment.
    env = {name: value for name, value in os.environ.items() if not name.startswith("KVATLAS_")}
    with log.open("wb") as out:
        return subprocess.Popen(
            bound_command([sys.executable, "-m", "kvatlas.cli.main", *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            # Ctrl-C is for us; the children are then stopped in order.
            start_new_session=True,
        )


def _await_ready(fleet: Fleet, name: str, port: int, path: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        fleet.check()
        if _answers_ok(port, path):
            return
        time.sleep(POLL_S)
    raise FleetError(f"{name} was not ready in {START_S:.0f} s")


def _answers_ok(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop_all(children: dict[str, subprocess.Popen[bytes]]) -> None:
    """Ask everything to stop, routers first, and make sure of it."""
    for child in reversed(children.values()):
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + STOP_S
    for child in children.values():
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(STOP_S)


def _epitaph(name: str, child: subprocess.Popen[bytes], logs: Path) -> str:
    log = (logs / f"{name}.log").read_text(errors="replace")[-LOG_TAIL_CHARS:]
    return f"{name} ended with status {child.returncode}; the end of its log:\n{log}"

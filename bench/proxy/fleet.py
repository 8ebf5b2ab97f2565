"""What is compared, all of it running at once on the same engines: each router a process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from bench.index.machine import BenchError
from bench.proxy.bodies import source_text, write_bodies
from bench.routing import peers
from bench.routing.routers import kvatlas_route
from bench.routing.site import Engine, Model, Site, await_ok
from kvatlas.cli.bound import bound_command
from kvatlas.cli.processes import Ports

ENGINES: Final = 4
START_S: Final = 120.0
LOAD_SPARE_S: Final = 30.0
POLL_AFTER_S: Final = 1.0
PROFILE_HZ: Final = 400


@dataclass(frozen=True, slots=True)
class Target:
    """Something that requests are sent to.

    Attributes:
        pids: whose CPU counts; for "direct" the engines'.
        beside: other processes of it: the indexer and Redis.
        parts: processes whose CPU is told apart, by name.
    """

    name: str
    ports: list[int]
    pids: list[int]
    beside: list[int]
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement.

    Attributes:
        what: "requests" or "streams".
        size: of a body, KB.
    """

    what: str
    size: int
    concurrency: int
    seconds: float
    warm_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that runs."""

    targets: dict[str, Target]
    bodies: Path

    def measure(self, name: str, load: Load) -> dict[str, Any]:
        """Put a load on one target; give what came of it.

        Raises:
            BenchError: it cannot be measured.
        """
        target = self.targets[name]
        child = self._begin(target, load)
        found = _result(name, load, child)
        cpu = found.pop("cpu_ns")
        own = sum(cpu[str(pid)] for pid in target.pids)
        found["cpu_us"] = own / found["count"] / 1e3
        found["beside_us"] = sum(cpu[str(p)] for p in target.beside) / found["count"] / 1e3
        for part, pid in target.parts.items():
            found[f"{part}_us"] = cpu[str(pid)] / found["count"] / 1e3
        found["per_s"] = found["count"] / found["seconds"]
        found["share"] = own / found["seconds"] / 1e9
        return found

    def stall(self, name: str, load: Load) -> dict[str, Any]:
        """Poll a target under a load; give how long answers to the poll took.

        Raises:
            BenchError: it cannot be measured.
        """
        target = self.targets[name]
        child = self._begin(target, load)
        time.sleep(POLL_AFTER_S)
        poll = Load("poll", load.size, 1, load.seconds + load.warm_s - 2 * POLL_AFTER_S)
        found = _result(name, poll, self._begin(target, poll))
        return {**found, "load": _result(name, load, child)}

    def profile(self, name: str, load: Load, raw: Path) -> None:
        """Sample a target's stacks under a load, where the GIL is held.

        Raises:
            BenchError: py-spy may not, or is not there.
        """
        target = self.targets[name]
        child = self._begin(target, load)
        time.sleep(load.warm_s)
        command = [
            *(str(Path(sys.executable).with_name("py-spy")), "record", "--gil", "-f", "raw"),
            *("-p", str(target.pids[0]), "-r", str(PROFILE_HZ), "-o", str(raw)),
            *("-d", str(max(1, int(load.seconds) - 1))),
        ]
        done = subprocess.run(command, capture_output=True, timeout=load.seconds + 30, check=False)
        _result(name, load, child)
        if done.returncode:
            raise BenchError(f"py-spy: {done.stderr.decode()[-300:]}")

    def _begin(self, target: Target, load: Load) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "bench.proxy.load", load.what),
            *("--ports", *map(str, target.ports)),
            *("--bodies", str(self.bodies), "--size", str(load.size)),
            *("--concurrency", str(load.concurrency)),
            *("--seconds", str(load.seconds), "--warm", str(load.warm_s), "--key", KEY),
            *("--pids", *map(str, [*target.pids, *target.beside, *target.parts.values()])),
        ]
        return subprocess.Popen(
            bound_command(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )


def _result(name: str, load: Load, child: subprocess.Popen[bytes]) -> dict[str, Any]:
    limit = load.seconds + load.warm_s + LOAD_SPARE_S
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise BenchError(f"{name}: the load did not end in {limit:.0f} s") from None
    if child.returncode:
        raise BenchError(f"{name}: {err.decode()[-2_000:]}")
    found: dict[str, Any] = json.loads(out)
    return found


Start = Callable[[contextlib.ExitStack, Site, str], Target]


@contextlib.contextmanager
def running_fleet(
    folder: Path,
    tokenizer: Path,
    names: Sequence[str],
    sizes: Sequence[int],
    known: Mapping[str, Start] | None = None,
) -> Iterator[Fleet]:
    """Run engines and routers until the context ends.

    Args:
        folder: for their files.
        tokenizer: of the model.
        names: of what is to run.
        sizes: of bodies, KB.
        known: how each is started; without it TARGETS.

    Raises:
        BenchError: something does not start.
    """
    with contextlib.ExitStack() as stack:
        site = Site(folder, Model(factor=1.0, time_scale=1.0), Ports(), tokenizer=tokenizer)
        bodies = _write(folder / "bodies", sizes)
        pid = _engines(stack, site, bodies, sizes)
        targets = {}
        for name in names:
            if name == "direct":
                ports = [engine.port for engine in site.engines]
                targets[name] = Target(name, ports, [pid], [])
            else:
                own = replace(site, folder=folder / name)
                own.folder.mkdir()
                targets[name] = (known or TARGETS)[name](stack, own, name)
        yield Fleet(targets, bodies)


def _write(folder: Path, sizes: Sequence[int]) -> Path:
    folder.mkdir()
    text = source_text()
    for size in sizes:
        write_bodies(folder, size, text)
    return folder


def _engines(stack: contextlib.ExitStack, site: Site, bodies: Path, sizes: Sequence[int]) -> int:
    take = site.ports.take
    places = [(take(), take(), take()) for _ in range(ENGINES)]
    command = [
        *(sys.executable, "-m", "bench.proxy.engine", "--model", str(site.tokenizer)),
        *("--bodies", str(bodies), "--sizes", *map(str, sizes), "--"),
        *(":".join(map(str, place)) for place in places),
    ]
    pid, _ = site.start(stack, "engines", command)
    for port, events, replay in places:
        site.engines.append(Engine(port, events, replay, pid))
        await_ok(port, "/health", "an engine", START_S)
    return pid


KEY: Final = "kv-" + "bench" * 8
KEYS: Final = "keys"
TRACES: Final = "traces"
_DEFAULT: Final[Mapping[str, Any]] = {}
_KEY_FILE: Final = {
    "keys": [{"hash": hashlib.sha256(KEY.encode()).hexdigest(), "tenant": "bench"}],
    "limits": {"bench": {"requests_per_minute": 1_000_000}},
}


def _kvatlas(
    stack: contextlib.ExitStack, site: Site, name: str, settings: Mapping[str, Any] = _DEFAULT
) -> Target:
    if KEYS in settings:
        path = site.folder / "keys.yaml"
        path.write_text(yaml.safe_dump(settings[KEYS]), encoding="utf-8")
        settings = {"router": {"api_keys_file": str(path)}}
    elif TRACES in settings:
        settings = {"router": {"trace_url": f"{site.engines[0].url}/v1/traces"}}
    route = kvatlas_route(stack, site, settings)
    ports = [int(url.rsplit(":", 1)[1]) for url in route.urls]
    return Target(name, ports, route.pids, route.shared_pids)


def _bare(stack: contextlib.ExitStack, site: Site, name: str) -> Target:
    port = site.ports.take()
    command = [sys.executable, "-m", "bench.proxy.bare", "--port", str(port)]
    pid, _ = site.start(stack, "bare", [*command, *(engine.url for engine in site.engines)])
    await_ok(port, "/readyz", "the bare proxy")
    return Target(name, [port], [pid], [])


def _peer(
    start: Callable[[contextlib.ExitStack, Site], tuple[int, int]],
    stack: contextlib.ExitStack,
    site: Site,
    name: str,
) -> Target:
    port, pid = start(stack, site)
    return Target(name, [port], [pid], [])


TARGETS: dict[str, Start] = {
    "bare": _bare,
    "kvatlas": _kvatlas,
    "vllm-router-round-robin": partial(_peer, partial(peers.vllm_router, policy="round_robin")),
    "vllm-router-kv-aware": partial(_peer, peers.vllm_router_kv_aware),
    "smg": partial(_peer, peers.smg),
}
NAMES: Final = ("direct", *TARGETS)
VARIANTS: Final[dict[str, Mapping[str, Any]]] = {
    "no log line": {"log": {"level": "warning"}},
    "round-robin": {"router": {"policy": "round-robin"}},
    "no relearning": {"router": {"relearn": False}},
    "no lag shedding": {"router": {"shed_lag_s": 0}},
    "keys and rates": {KEYS: _KEY_FILE},
    "all traced": {TRACES: None},
}
"""What is switched off, or on, against the default."""
TARGETS |= {name: partial(_kvatlas, settings=settings) for name, settings in VARIANTS.items()}

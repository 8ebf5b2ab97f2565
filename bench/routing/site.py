"""Where a run happens: simulated engines, their ports, and what they say in the end."""

from __future__ import annotations

import contextlib
import http.client
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.index.machine import BenchError, Deadline, check_alive, running
from kvatlas.cli.fleet import BLOCK_SIZE, MODEL
from kvatlas.cli.processes import Ports
from kvatlas.common.prompt import demo_model_path

START_S = 60.0
POLL_S = 0.05
_COUNTERS = {
    "queries": "vllm:prefix_cache_queries_total",
    "hits": "vllm:prefix_cache_hits_total",
    "requests": "vllm:request_success_total",
    "preemptions": "vllm:num_preemptions_total",
}


@dataclass(frozen=True, slots=True)
class Model:
    """What the engines compute with, in tokens of the trace; `factor` scales them down.

    Attributes:
        factor: tokens of the trace that one token stands for.
        time_scale: seconds of the model per real second.
        step_tokens: computed in one step at most.
        cache_tokens: what an engine's cache holds.
        sequences: that run at once; more wait.
    """

    engines: int = 8
    factor: float = 8.0
    time_scale: float = 6.0
    prefill_tokens_per_s: float = 15_928.0
    decode_step_ms: float = 10.0
    decode_step_ms_per_seq: float = 0.25
    step_tokens: int = 8_192
    cache_tokens: int = 512_000
    sequences: int = 256

    def engine(self) -> dict[str, Any]:
        """Write the settings of an engine."""
        return {
            "model": MODEL,
            "block_size": BLOCK_SIZE,
            # One of them is the null block.
            "num_blocks": int(self.cache_tokens / self.factor / BLOCK_SIZE) + 1,
            "prefill_tokens_per_s": self.prefill_tokens_per_s / self.factor,
            # A step makes one token, which stands for `factor` of them.
            "decode_step_ms": self.decode_step_ms * self.factor,
            "decode_step_ms_per_seq": self.decode_step_ms_per_seq * self.factor,
            "max_num_batched_tokens": int(self.step_tokens / self.factor),
            "max_num_seqs": self.sequences,
            "max_model_len": int(2**18 / self.factor),
            "time_scale": self.time_scale,
            # vllm-router's kv_aware policy asks engines to render.
            "render": True,
        }


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine."""

    port: int
    events: int
    replay: int
    pid: int

    @property
    def url(self) -> str:
        """Give where it serves HTTP."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(slots=True)
class Site:
    """A folder, ports, and engines that run; what a router is started on.

    Attributes:
        folder: for logs and configurations.
        tokenizer: folder of the model that all prompts are for.
    """

    folder: Path
    model: Model
    ports: Ports
    engines: list[Engine] = field(default_factory=list)
    tokenizer: Path = field(default_factory=demo_model_path)

    def config(self, name: str, sections: Mapping[str, Any]) -> Path:
        """Write a configuration with the model, the engines and whatever else."""
        content = {
            "models": [{"name": MODEL, "tokenizer": str(self.tokenizer), "block_size": BLOCK_SIZE}],
            "endpoints": [
                {
                    "url": engine.url,
                    "model": MODEL,
                    "events": f"tcp://127.0.0.1:{engine.events}",
                    "replay": f"tcp://127.0.0.1:{engine.replay}",
                }
                for engine in self.engines
            ],
            **sections,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    def start(
        self, stack: contextlib.ExitStack, name: str, command: Sequence[str]
    ) -> tuple[int, Path]:
        """Start a process that ends with the stack; give its id and its log."""
        log = self.folder / f"{name}.log"
        child = stack.enter_context(running(command, log))
        stack.callback(check_alive, child, log)
        return child.pid, log


def kvatlas(*arguments: str) -> list[str]:
    """Give the command line of our own command."""
    return [sys.executable, "-m", "kvatlas.cli.main", *arguments]


@contextlib.contextmanager
def running_site(folder: Path, model: Model) -> Iterator[Site]:
    """Run engines with empty caches until the context ends.

    Raises:
        BenchError: one did not start, or died meanwhile.
    """
    with contextlib.ExitStack() as stack:
        site = Site(folder, model, Ports())
        config = site.config("engines", {"engine": model.engine()})
        for number in range(1, model.engines + 1):
            port, events, replay = (site.ports.take() for _ in range(3))
            command = kvatlas(
                *("engine", "--config", str(config), "--port", str(port)),
                *("--events", f"tcp://127.0.0.1:{events}"),
                *("--replay", f"tcp://127.0.0.1:{replay}"),
            )
            pid, _ = site.start(stack, f"engine{number}", command)
            site.engines.append(Engine(port, events, replay, pid))
        for engine in site.engines:
            await_ok(engine.port, "/health", "an engine")
        yield site


def await_ok(port: int, path: str, what: str, seconds: float = START_S) -> None:
    """Wait until a path is answered with 200.

    Raises:
        BenchError: it is not, in time.
    """
    deadline = Deadline(seconds, f"{what} did not get ready")
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if get(port, path)[0] == http.client.OK:
                return
        deadline.check()


def get(port: int, path: str) -> tuple[int, str]:
    """Ask a process on this machine; give status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def counters(engine: Engine) -> dict[str, float]:
    """Read what an engine has counted since it started."""
    status, page = get(engine.port, "/metrics")
    if status != http.client.OK:
        raise BenchError("an engine gives no metrics")
    return {
        name: sum(
            float(value) for value in re.findall(rf"^{metric}{{.*}} (\S+)$", page, re.MULTILINE)
        )
        for name, metric in _COUNTERS.items()
    }

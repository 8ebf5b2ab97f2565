"""What one real engine sends, directly and through a router that asks, cuts and hands over.

Byte for byte, but for ids and times: streams whose usage the router asked for and took out again,
and answers to prompts of which the engine got the token ids. Exits 1 when one differs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.samples import Sample
from rich.console import Console
from rich.table import Table

from kvatlas.cli.processes import free_port
from kvatlas.cli.redis_server import running_redis
from kvatlas.common.log import configure_logs
from kvatlas.common.metrics import Counter
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running, router
from kvatlas.router.endpoint import EngineFacts
from tests.engine.fleet import (
    ENGINE_START_S,
    Engine,
    await_ok,
    child,
    vllm_command,
    vllm_environment,
)
from tests.fakes.services import indexing

CONSOLE = Console(width=100)
CACHE_BLOCKS = 300
MODEL_LEN = 2_048
TRIES = 6
"""Engines put tokens that come close together into one chunk, so two streams may differ in that."""
QUIET_S = 0.05
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MADE_UP = re.compile(
    rb'("(?:id|request_id)":\s*"[^"]*"|"created":\s*\d+|(?:chatcmpl|cmpl)-[0-9a-f]+)'
)

MESSAGES = [
    {"role": "system", "content": "You are the index of a library. " * 12},
    {"role": "user", "content": "Which shelf holds 東京 and naïve caches? 🚀"},
]
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "null": {"stream_options": None},
    "empty": {"stream_options": {}},
    "include_usage false": {"stream_options": {"include_usage": False}},
    "continuous without usage": {"stream_options": {"continuous_usage_stats": True}},
    "usage": {"stream_options": {"include_usage": True}},
    "usage, continuous": {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}
    },
    "n=2": {"n": 2, "temperature": 0.5},
    "n=2, usage": {"n": 2, "temperature": 0.5, "stream_options": {"include_usage": True}},
    "stop": {"stop": ["e", "a"]},
    "one token": {"max_tokens": 1},
    "logprobs": {"logprobs": 1},
    "token ids": {"return_token_ids": True},
    "refused": {"stream_options": {"include_usage": [1]}},
}
ASKED = ("nothing", "null", "empty", "include_usage false", "continuous without usage", "stop",
         "one token", "logprobs", "token ids")  # fmt: skip
"""Those whose usage the router asks for and takes out."""


@dataclass(slots=True)
class Findings:
    """What was compared."""

    equal: dict[str, bool] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def expect(self, name: str, *, holds: bool) -> None:
        """Note a fault."""
        if not holds:
            self.faults.append(name)


def bodies() -> list[tuple[str, str, dict[str, Any]]]:
    """List what is sent: name, path, body."""
    found = []
    for name, options in OPTIONS.items():
        common = {"model": "tiny", "max_tokens": 12, "temperature": 0, "seed": 1, "stream": True}
        chat = {**common, "messages": MESSAGES, **options}
        if "logprobs" in options:
            chat |= {"logprobs": True, "top_logprobs": 1}
        found.append((f"chat, {name}", CHAT, chat))
        prompt = str(MESSAGES[0]["content"])
        found.append((f"completion, {name}", COMPLETIONS, {**common, "prompt": prompt, **options}))
    return found


def settings_for(engine: Engine, model: Path, redis_url: str, *, handover: bool) -> Settings:
    """Configure a router, and the indexer."""
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [{"name": "tiny", "tokenizer": str(model), "token_handover": handover}],
            "endpoints": [
                {
                    "url": engine.url,
                    "model": "tiny",
                    "events": engine.events,
                    "replay": engine.replay,
                }
            ],
            "router": {"port": 0, "admin_port": 0, "handover_check_share": 1.0},
            "indexer": {"admin_port": 0},
            "log": {"level": "error"},
        }
    )


@contextlib.asynccontextmanager
async def routed(settings: Settings, url: str) -> AsyncIterator[tuple[Running, str]]:
    """Run a router that knows its engine."""
    async with router(settings) as running:
        for _ in range(600):
            if running.readiness() is None and _endpoint(running).block_size:
                break
            await asyncio.sleep(0.05)
        facts = EngineFacts(await _version(url), "agrees", frozenset(), MODEL_LEN)
        _endpoint(running).facts = facts
        yield running, f"http://127.0.0.1:{running.port}"


def _endpoint(running: Running) -> Any:
    return next(iter(running.endpoints.all()))


async def _version(url: str) -> tuple[int, ...]:
    async with aiohttp.ClientSession() as client, client.get(f"{url}/version") as reply:
        text: str = (await reply.json())["version"]
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


class Runs:
    """Send the same to the engine and through routers."""

    def __init__(self, client: aiohttp.ClientSession, engine_url: str) -> None:
        self._client = client
        self._engine_url = engine_url
        self.findings = Findings()

    async def ask(self, url: str, path: str, body: Any) -> tuple[int, bytes]:
        """Send a request; give status and body without what is made up per request."""
        await asyncio.sleep(QUIET_S)
        async with self._client.post(url + path, json=body) as reply:
            return reply.status, MADE_UP.sub(b"*", await reply.read())

    async def compare(self, name: str, url: str, path: str, body: dict[str, Any]) -> None:
        """Compare until both were cut alike."""
        await self.ask(self._engine_url, path, body)
        mine = theirs = (0, b"")
        for number in range(TRIES):
            theirs = await self.ask(self._engine_url, path, body)
            mine = await self.ask(url, path, body)
            self.findings.tries[name] = number + 1
            if mine == theirs:
                break
        self.findings.equal[name] = mine == theirs
        if mine != theirs:
            self.findings.faults.append(f"{name}\n  engine {theirs!r}\n  router {mine!r}")


async def compare_streams(runs: Runs, running: Running, url: str, *, forced: bool) -> None:
    """Compare all kinds of streams, asked for by the router where that is sensible."""
    # The first one goes unasked: it tells how this engine reports.
    await runs.ask(url, CHAT, bodies()[0][2])
    habit = _endpoint(running).usage
    wanted = "by_itself" if forced else "on_request"
    runs.findings.expect(f"the engine reports {habit.state}", holds=habit.state == wanted)
    for name, path, body in bodies():
        before = _total(running.metrics.usage_reports)
        await runs.compare(name, url, path, body)
        read = _total(running.metrics.usage_reports) - before
        kind = name.split(", ", 1)[1]
        if kind in ASKED or (forced and kind != "refused"):
            runs.findings.expect(f"{name}: the usage was read", holds=read > 0)


async def compare_handover(runs: Runs, running: Running, url: str) -> None:
    """Compare answers to prompts that the engine gets as token ids."""
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    variants: dict[str, dict[str, Any]] = {
        "whole": {},
        "stream": {"stream": True},
        "continued": {
            "messages": [*MESSAGES, {"role": "assistant", "content": "Shelf"}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
        "n=2": {"n": 2, "temperature": 0.5},
        "tools": {"tools": [tool]},
        "too long an answer": {"max_tokens": 5_000},
        "no messages": {"messages": []},
    }
    metrics = running.metrics
    for name, options in variants.items():
        body = {
            "model": "tiny",
            "messages": MESSAGES,
            "max_tokens": 12,
            "temperature": 0,
            "seed": 1,
        }
        before = _value(metrics.handovers, "handed_over")
        await runs.compare(f"handover, {name}", url, CHAT, {**body, **options})
        handed = _value(metrics.handovers, "handed_over") - before
        expected = name not in ("too long an answer", "no messages")
        runs.findings.expect(f"handover, {name}: {handed}", holds=(handed > 0) == expected)
    await asyncio.sleep(1.0)
    checked = {name: _value(metrics.handover_checks, name) for name in ("agrees", "differs")}
    holds = checked["agrees"] > 0 and checked["differs"] == 0
    runs.findings.expect(f"checks of token ids: {checked}", holds=holds)


def _samples(counter: Counter) -> list[Sample]:
    return [s for m in counter.collect() for s in m.samples if s.name.endswith("_total")]


def _total(counter: Counter) -> float:
    return sum(sample.value for sample in _samples(counter))


def _value(counter: Counter, outcome: str) -> float:
    return sum(s.value for s in _samples(counter) if s.labels.get("outcome") == outcome)


def engine_command(vllm: str, model: Path, engine: Engine, *, forced: bool) -> list[str]:
    """Write the command line; contexts are longer than in the fleet."""
    command = vllm_command(vllm, model, engine, CACHE_BLOCKS)
    command[command.index("--max-model-len") + 1] = str(MODEL_LEN)
    return [*command, *(["--enable-force-include-usage"] if forced else [])]


async def compare_all(engine: Engine, model: Path, redis_url: str, *, forced: bool) -> Findings:
    """Run everything against a running engine."""
    plain = settings_for(engine, model, redis_url, handover=False)
    handing = settings_for(engine, model, redis_url, handover=True)
    async with aiohttp.ClientSession() as client, indexing(plain):
        runs = Runs(client, engine.url)
        async with routed(plain, engine.url) as (running, url):
            await compare_streams(runs, running, url, forced=forced)
            _report_predictions(running)
        async with routed(handing, engine.url) as (running, url):
            await compare_handover(runs, running, url)
            _report_predictions(running)
    return runs.findings


def _report_predictions(running: Running) -> None:
    counts = {
        outcome: int(_value(running.metrics.predictions, outcome))
        for outcome in ("exact", "over", "under", "other_prompt")
    }
    CONSOLE.print("predictions:", counts)


def report(findings: Findings) -> Table:
    """Write the table."""
    table = Table("the same bytes from the engine and through the router", "equal", "tries")
    for name, equal in findings.equal.items():
        table.add_row(name, "yes" if equal else "NO", str(findings.tries[name]))
    return table


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--forced", action="store_true", help="--enable-force-include-usage")
    options = parser.parse_args()
    ports = [free_port() for _ in range(3)]
    engine = Engine(ports[0], f"tcp://127.0.0.1:{ports[1]}", f"tcp://127.0.0.1:{ports[2]}")
    folder = Path(tempfile.mkdtemp(prefix="kva-streams-"))
    CONSOLE.print(f"logs in {folder}")
    command = engine_command(options.vllm, options.model, engine, forced=options.forced)
    with (
        running_redis(folder) as redis,
        child(command, folder / "engine.log", vllm_environment()) as server,
    ):
        await_ok(f"{engine.url}/health", server, ENGINE_START_S)
        configure_logs("error", json=False)
        findings = asyncio.run(compare_all(engine, options.model, redis.url, forced=options.forced))
        bench = ["-m", "bench.handover", "--url", engine.url, "--pid", str(server.pid)]
        subprocess.run([sys.executable, *bench, "--tokenizer", str(options.model)], check=True)
    CONSOLE.print(report(findings))
    for fault in findings.faults:
        CONSOLE.print(fault, markup=False)
    CONSOLE.print("streams and answers are the same" if not findings.faults else "NOT the same")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())

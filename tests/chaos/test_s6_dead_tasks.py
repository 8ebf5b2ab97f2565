"""S6, a supervised task dies: so does the process, within a second, and says which it was."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor, run_service
from kvatlas.indexer.app import Indexer
from kvatlas.router.app import router
from tests.chaos.conftest import Report
from tests.fakes.engines import router_settings

ROUTER = (
    "access", "admission", "configuration", "core", "doubts", "flights", "gauges",
    "handover_checks", "idle_probes", "looks", "pool", "probes", "rates", "relearning",
    "schema", "tls",
)  # fmt: skip
INDEXER = (
    "chores", "configuration", "forget gauges", "look", "mirror", "ownership", "scraping",
    "subscriber", "take", "talk", "tick", "tls", "watch", "write gauges",
)  # fmt: skip
DIES_WITHIN_S = 1.0
RUNS_S = 1.5
NOBODY = "http://127.0.0.1:9"

Main = Callable[[asyncio.Event], Awaitable[None]]


class Injected(Exception):
    """What a task dies of."""


class Deaths:
    """Let the first task of a name die as soon as it runs.

    Attributes:
        started: names of all tasks, without what they are of.
        died_at: when it did.
    """

    def __init__(self, victim: str | None, patch: pytest.MonkeyPatch) -> None:
        self.started: set[str] = set()
        self.died_at: float | None = None
        self._victim = victim
        self._start = Supervisor.start
        deaths = self

        def start(tasks: Supervisor, work: Coroutine[Any, Any, Any], name: str) -> Any:
            return deaths.begun(tasks, work, name)

        patch.setattr(Supervisor, "start", start)

    def begun(self, tasks: Supervisor, work: Coroutine[Any, Any, Any], name: str) -> Any:
        """Start a task, or what dies in its place."""
        kind = name.split(" 127.", maxsplit=1)[0]
        self.started.add(kind)
        if kind == self._victim and self.died_at is None:
            self.died_at = 0.0
            return self._start(tasks, self._die(work), name)
        return self._start(tasks, work, name)

    async def _die(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.wait([task])
        self.died_at = time.monotonic()
        raise Injected


def _main_of(service: str, redis_url: str, folder: Path, *, is_short: bool = False) -> Main:
    if service == "router":
        keys = folder / "keys.yaml"
        keys.write_text("keys: []\n")
        options: dict[str, Any] = {"idle_probe_s": 60, "api_keys_file": keys}
        return _router_main(router_settings([NOBODY], redis_url, **options), is_short=is_short)
    settings = Settings.model_validate({
        "redis": {"url": redis_url},
        "models": [{"name": "demo", "tokenizer": str(demo_model_path()), "block_size": 16}],
        "endpoints": [{"url": NOBODY, "model": "demo", "events": "tcp://127.0.0.1:9"}],
        "indexer": {"admin_port": 0},
    })  # fmt: skip

    async def main(stop: asyncio.Event) -> None:
        _stop_soon(stop, is_short=is_short)
        await Indexer(settings, lambda: None).serve(stop)

    return main


def _router_main(settings: Settings, *, is_short: bool) -> Main:
    async def main(stop: asyncio.Event) -> None:
        _stop_soon(stop, is_short=is_short)
        async with router(settings, lambda _is_asked: None):
            await stop.wait()

    return main


def _stop_soon(stop: asyncio.Event, *, is_short: bool) -> None:
    asyncio.get_running_loop().call_later(RUNS_S if is_short else 15.0, stop.set)


@pytest.mark.parametrize(("service", "names"), [("router", ROUTER), ("indexer", INDEXER)])
def test_s6_no_task_is_forgotten(
    service: str,
    names: tuple[str, ...],
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lists above are what services start; without a death they end well."""
    deaths = Deaths(None, monkeypatch)
    assert run_service(_main_of(service, redis_url, tmp_path, is_short=True)) == 0
    assert deaths.started - {"give back"} == set(names)


@pytest.mark.parametrize(
    "case", [*(("router", n) for n in ROUTER), *(("indexer", n) for n in INDEXER)], ids="-".join
)
def test_s6_a_dead_task_is_a_dead_process(
    case: tuple[str, str],
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: io.StringIO,
) -> None:
    """It ends with a status that is not 0, and tells of the task once."""
    service, victim = case
    deaths = Deaths(victim, monkeypatch)
    status = run_service(_main_of(service, redis_url, tmp_path))
    ended = time.monotonic()
    assert status == 1
    assert deaths.died_at
    assert ended - deaths.died_at < DIES_WITHIN_S
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    died = [line["task"] for line in lines if line["event"] == "task.died"]
    assert [name.split(" 127.")[0] for name in died] == [victim]
    assert [line["event"] for line in lines].count("service.died") == 1
    Report("S6", f"a {service}'s task dies", "exit 1 within a second, `task.died` once").tell()

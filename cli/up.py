"""`kvatlas up`: a fleet in one terminal, until it is told to stop or a part of it dies."""

from __future__ import annotations

import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table

from kvatlas.cli.console import progress
from kvatlas.cli.fleet import MODEL, Fleet, FleetPlan, running_fleet
from kvatlas.cli.redis_server import find_redis_server
from kvatlas.common.ids import ModelName
from kvatlas.common.keyspace import Shard

LOOK_S: Final = 0.2
QUESTION: Final = "Where does a request go whose first words an engine has read before, and why?"
"""Longer than a block, so that asking twice shows a match."""


def run_up(console: Console, told: Console, plan: FleetPlan) -> int:
    """Run a fleet until SIGINT or SIGTERM.

    Args:
        console: for the table of URLs.
        told: for what is under way.
        plan: what to run.

    Returns:
        The exit status, 0.

    Raises:
        FleetError: a part did not start, or died.
    """
    try:
        with _stop_signals(), ExitStack() as stack:
            with progress(told) as bars:
                bar = bars.add_task("starting", total=plan.parts)
                fleet = stack.enter_context(running_fleet(plan, lambda _part: bars.advance(bar)))
            console.print(fleet_table(fleet))
            console.print(hints(fleet), markup=False, soft_wrap=True)
            while True:
                fleet.check()
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        told.print("stopped")
    return 0


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Let SIGTERM end the fleet as Ctrl-C does; once stopping has begun, further ones wait."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fleet_table(fleet: Fleet) -> Table:
    """List what runs, and where."""
    table = Table(title="kvatlas is up")
    for head in ("part", "URL", "admin or events", "pid"):
        table.add_column(head, justify="right" if head == "pid" else "left", no_wrap=True)
    pids = fleet.pids()
    for number, router in enumerate(fleet.routers, 1):
        name = f"router{number}"
        admin = f"http://127.0.0.1:{router.admin_port}"
        table.add_row(name, f"http://{router.name}/v1", admin, str(pids[name]))
    admin = f"http://127.0.0.1:{fleet.indexer_admin_port}"
    table.add_row("indexer", "", admin, str(pids["indexer"]))
    for number, engine in enumerate(fleet.engines, 1):
        name = f"engine{number}"
        events = f"tcp://127.0.0.1:{engine.events}"
        table.add_row(name, f"http://{engine.name}", events, str(pids[name]))
    table.add_row("redis", fleet.redis.url, "", str(fleet.redis.pid))
    return table


def hints(fleet: Fleet) -> str:
    """Write commands to try, ready to be pasted into another terminal."""
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 24}
    text = shlex.quote(orjson.dumps(body).decode())
    router = fleet.routers[0]
    admin = f"http://127.0.0.1:{router.admin_port}"
    chat = f"http://{router.name}/v1/chat/completions"
    return "\n".join(
        [
            f"configuration and logs  {fleet.config.parent}",
            f"ask      curl -s {chat} -H 'content-type: application/json' -d {text}",
            f"explain  echo {text} | kvatlas explain --url {admin} -",
            f"index    kvatlas inspect --config {fleet.config}",
            f"redis    {_redis_cli()} -u {fleet.redis.url} HGETALL '{_holders_key()}'",
            "Ctrl-C stops everything.",
        ]
    )


def _redis_cli() -> str:
    """Name a redis-cli that is there: on the PATH, or beside the server that runs."""
    beside = find_redis_server().with_name("redis-cli")
    return "redis-cli" if shutil.which("redis-cli") or not beside.exists() else str(beside)


def _holders_key() -> str:
    return Shard(ModelName(MODEL), 0).holders

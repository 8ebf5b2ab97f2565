"""A fleet of real processes: it starts, answers, is looked into, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from kvatlas.cli.conversations import Load
from kvatlas.cli.demo import outcome_of
from kvatlas.cli.fleet import BLOCK_SIZE, MODEL, Fleet, FleetError, FleetPlan, running_fleet
from kvatlas.cli.main import app
from kvatlas.cli.up import fleet_table, hints
from kvatlas.cli.users import DemoError, Users

PLAN = FleetPlan(
    engines=2, routers=2, router={"debug_headers": True}, engine={"decode_step_ms": 2.0}
)
LOAD = Load(conversations=6, turns=3, systems=2, users=3, answer_tokens=20, think_s=0.1)
BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Where does a request go, and why there? " * 8}],
    "max_tokens": 4,
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Run a small fleet for all tests of this file."""
    with running_fleet(PLAN) as running:
        yield running


def command(*arguments: str, stdin: str = "") -> str:
    """Run a command that must succeed; give what it prints."""
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def ask(fleet: Fleet, router: int = 0) -> dict[str, str]:
    """Send the body through a router; give the answer's headers."""
    connection = http.client.HTTPConnection(fleet.routers[router].name, timeout=10)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(BODY), headers)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    assert reply.status == 200
    return {name.lower(): value for name, value in reply.getheaders()}


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def await_dead(pids: list[int]) -> None:
    """Wait until no process is left, or fail after some seconds."""
    for _ in range(100):
        if not any(map(is_alive, pids)):
            return
        time.sleep(0.1)
    raise AssertionError("processes are left")


def check_for_ever(fleet: Fleet) -> None:
    """Do as `kvatlas up` does."""
    while True:
        fleet.check()
        time.sleep(0.05)


def test_users_talk_through_both_routers(fleet: Fleet) -> None:
    """Every answer carries tokens, times and an engine of the fleet; later turns are cached."""
    urls = [f"http://{router.name}/v1" for router in fleet.routers]
    asked = asyncio.run(Users(urls, MODEL, LOAD).talk())
    engines = [engine.name for engine in fleet.engines]
    outcome = outcome_of(asked, engines, BLOCK_SIZE)
    assert len(asked) == LOAD.requests
    assert set(outcome.requests) == set(engines)
    assert sum(outcome.requests.values()) == LOAD.requests
    assert all(len(one.served.generated) == LOAD.answer_tokens for one in asked)
    assert 0 < outcome.best_share < 1
    assert outcome.share > 0.5


def test_a_router_that_is_gone_fails_the_demo_with_a_reason() -> None:
    """Users do not go on when a request fails."""
    with pytest.raises(DemoError, match="a request failed"):
        asyncio.run(Users(["http://127.0.0.1:1/v1"], MODEL, LOAD).talk())


def test_explain_and_inspect_agree_about_a_prompt(fleet: Fleet) -> None:
    """Once a prompt was computed, both name its engine and the same blocks."""
    endpoint = ask(fleet)["x-kvatlas-endpoint"]
    admin = f"http://127.0.0.1:{fleet.routers[1].admin_port}"
    body = json.dumps(BODY)
    matches: dict[str, int] = {}
    for _ in range(50):
        found = command(
            "inspect", "--config", str(fleet.config), "--prompt", "-", "--json", stdin=body
        )
        prompt = json.loads(found)["prompt"]
        matches = {name: one["blocks"] for name, one in prompt["matches"].items()}
        if matches.get(endpoint):
            break
        time.sleep(0.1)
    for _ in range(50):
        explained = json.loads(command("explain", "--url", admin, "--json", "-", stdin=body))
        # On a busy machine a lookup may be late, and the decision by load.
        if explained["fallback"] is None:
            break
    assert (explained["endpoint"], explained["fallback"]) == (endpoint, None)
    told = {c["endpoint"]: c["match_blocks"] for c in explained["candidates"] if c["match_blocks"]}
    assert told == matches
    assert f"{endpoint} (chosen)" in command("explain", "--url", admin, "-", stdin=body)


def test_inspect_lists_endpoints_and_models(fleet: Fleet) -> None:
    """Every endpoint has a row with its state, and the model one with the sum of blocks."""
    ask(fleet)
    shown = command("inspect", "--config", str(fleet.config), "--model", MODEL)
    assert all(engine.name in shown for engine in fleet.engines)
    assert "endpoints of demo" in shown
    assert "gauges of demo" in shown
    assert "stale" not in shown
    read = json.loads(command("inspect", "--redis", fleet.redis.url, "--json"))
    assert {one["name"] for one in read["models"][0]["endpoints"]} == {
        e.name for e in fleet.engines
    }
    gauges = read["models"][0]["gauges"]
    assert {one["name"] for one in gauges} == {engine.name for engine in fleet.engines}
    assert all(one["is_up"] and 0 <= one["age_s"] < 10 for one in gauges)
    assert "knows no such model" in command("inspect", "--redis", fleet.redis.url, "--model", "no")


def test_inspect_tells_who_holds_a_block(fleet: Fleet) -> None:
    """A block of which nothing is known is held by nobody."""
    shown = command("inspect", "--redis", fleet.redis.url, "--block", "0123456789abcdef")
    assert "nobody holds it" in shown


def test_explain_tells_a_refusal(fleet: Fleet) -> None:
    """What the router refuses is told with its status and message."""
    admin = f"http://127.0.0.1:{fleet.routers[0].admin_port}"
    result = CliRunner().invoke(app, ["explain", "--url", admin, "-"], input='{"model": "no"}')
    assert result.exit_code == 1
    assert "refused with status 404" in result.stderr


def test_the_table_and_the_hints_name_everything(fleet: Fleet) -> None:
    """Each URL is printed, and the commands can be pasted as they stand."""
    console = Console(file=io.StringIO(), width=120)
    console.print(fleet_table(fleet))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(f"http://{router.name}/v1" in text for router in fleet.routers)
    assert all(f"http://{engine.name}" in text for engine in fleet.engines)
    lines = dict(line.split(maxsplit=1) for line in hints(fleet).splitlines())
    redis = subprocess.run(lines["redis"], shell=True, capture_output=True, text=True, check=False)  # noqa: S602 - as a user pastes it
    if "not found" not in redis.stderr:
        assert redis.stdout.startswith("version")


def test_a_child_that_dies_is_named_with_the_end_of_its_log() -> None:
    """The fleet notices, says who it was, and takes everything else down."""
    with running_fleet(FleetPlan(engines=1, routers=1)) as one:
        pids = [*one.pids().values(), one.redis.pid]
        os.kill(one.pids()["indexer"], signal.SIGKILL)
        with pytest.raises(FleetError, match="indexer ended with status -9"):
            check_for_ever(one)
    await_dead(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_leaves_no_process_behind(number: signal.Signals) -> None:
    """However `kvatlas up` ends, all that it started ends with it."""
    line = [sys.executable, "-m", "kvatlas.cli.main", "up", "--engines", "1", "--routers", "1"]
    with subprocess.Popen(
        [*line, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        shown = ""
        while "Ctrl-C stops everything" not in shown:
            shown += up.stdout.readline()
        pids = [int(pid) for pid in re.findall(r"│ +(\d+) │$", shown, re.MULTILINE)]
        assert len(pids) == 4
        assert "\x1b" not in shown
        up.send_signal(number)
        up.wait(10)
        assert up.returncode == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    await_dead(pids)

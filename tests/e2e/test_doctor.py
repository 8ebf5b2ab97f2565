"""`kvatlas doctor` on a fleet of real processes: quiet when all is well, and each fault by name."""

from __future__ import annotations

import contextlib
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
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from kvatlas.cli.doctor import Report, Row, show
from kvatlas.cli.doctor_facts import Finding
from kvatlas.cli.fleet import MODEL, Fleet, FleetPlan, _answers_ok, running_fleet
from kvatlas.cli.main import app
from kvatlas.cli.processes import Ports
from tests.fakes.engines import other_tokenizer

SECRET = "an unusual word: quokka"  # noqa: S105 - a word to look for, not a password


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Run a small fleet for all tests of this file."""
    with running_fleet(FleetPlan(engines=2, routers=1)) as running:
        yield running


class Doctor:
    """The command, on a configuration that a test may spoil."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.config: dict[str, Any] = yaml.safe_load(fleet.config.read_text())
        self._file = folder / "kvatlas.yaml"

    def run(self, *more: str) -> tuple[int, str]:
        """Run it; give exit status and output."""
        self._file.write_text(yaml.safe_dump(self.config))
        router = f"http://127.0.0.1:{self.fleet.routers[0].admin_port}"
        line = ["doctor", "--config", str(self._file), "--router", router, *more]
        result = CliRunner().invoke(app, line)
        assert SECRET not in result.output
        return result.exit_code, result.stdout

    def findings(self) -> list[dict[str, str]]:
        """Run it for JSON; a fault is an exit status of 1."""
        status, text = self.run("--json")
        report = json.loads(text)
        assert (status == 1) == (report["faults"] > 0)
        found: list[dict[str, str]] = report["findings"]
        return found

    def fault(self, check: str, where: str) -> dict[str, str]:
        """Give the one fault that is expected."""
        faults = [
            one
            for one in self.findings()
            if one["level"] == "fault" and (one["check"], one["where"]) == (check, where)
        ]
        assert len(faults) == 1
        assert faults[0]["advice"].endswith(".")
        return faults[0]


@pytest.fixture
def doctor(fleet: Fleet, tmp_path: Path) -> Doctor:
    """Give the command with the fleet's own configuration."""
    return Doctor(fleet, tmp_path)


def ask(port: int) -> None:
    """Have a chat answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{SECRET} {time.time()} " * 12}],
        "max_tokens": 2,
    }
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    assert reply.status == 200


def test_a_healthy_fleet_is_fine(fleet: Fleet, doctor: Doctor) -> None:
    """Exit status 0, every endpoint looked at in every way, nothing to do."""
    for _ in range(3):
        ask(fleet.routers[0].port)
    found = doctor.findings()
    assert {one["level"] for one in found} == {"ok"}
    checks = {
        "reachable", "model", "tokenizer", "cached_tokens", "block_size", "events", "replay",
        "index", "sequence", "predictions",
    }  # fmt: skip
    for engine in fleet.engines:
        assert {one["check"] for one in found if one["where"] == engine.name} == checks
    assert {one["check"] for one in found if one["where"] == "redis"} == {
        "reachable", "schema", "eviction",
    }  # fmt: skip
    status, text = doctor.run()
    assert status == 0
    assert f"{len(found)} ok, 0 warn, 0 fault" in text
    assert "what to do" not in text
    for engine in fleet.engines:
        assert re.search(rf"│ {engine.name} *│ 0.32.0 *│ agrees *│ flowing *│ 0 ", text)


def test_an_engine_that_is_away_is_named(doctor: Doctor) -> None:
    """Nothing listens at its address."""
    port = Ports().take()
    doctor.config["endpoints"].append({"url": f"http://127.0.0.1:{port}", "model": MODEL})
    assert "does not answer (connection)" in doctor.fault("reachable", f"127.0.0.1:{port}")["found"]


@contextlib.contextmanager
def another_engine(folder: Path, model: dict[str, str], *events: str) -> Iterator[int]:
    """Run one more engine as a process; give its port."""
    port = Ports().take()
    file = folder / "engine.yaml"
    file.write_text(yaml.safe_dump({"models": [model]}))
    line = [sys.executable, "-m", "kvatlas.cli.main", "engine", "--config", str(file)]
    process = subprocess.Popen(
        [*line, "--port", str(port), *events], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            if _answers_ok(port, "/health"):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


EVENTS = ("--events", "tcp://127.0.0.1:0", "--replay", "tcp://127.0.0.1:0")


def test_an_engine_with_another_tokenizer_is_told(doctor: Doctor, tmp_path: Path) -> None:
    """Its folder has a token more; the advice is to export the engine's own."""
    (tmp_path / "other").mkdir()
    model = {"name": MODEL, "tokenizer": str(other_tokenizer(tmp_path / "other"))}
    with another_engine(tmp_path, model, *EVENTS) as port:
        doctor.config["endpoints"].append({"url": f"http://127.0.0.1:{port}", "model": MODEL})
        fault = doctor.fault("tokenizer", f"127.0.0.1:{port}")
        status, text = doctor.run()
    assert "differ on" in fault["found"]
    assert "exported with its transformers" in fault["advice"]
    assert status == 1
    assert "differs" in text


def test_an_engine_with_another_model_is_told(doctor: Doctor, tmp_path: Path) -> None:
    """An address that was given to somebody else."""
    with another_engine(tmp_path, {"name": "other", "tokenizer": "demo"}, *EVENTS) as port:
        doctor.config["endpoints"].append({"url": f"http://127.0.0.1:{port}", "model": MODEL})
        assert "does not serve demo" in doctor.fault("model", f"127.0.0.1:{port}")["found"]


def test_a_wrong_events_port_is_told_with_the_right_one(fleet: Fleet, doctor: Doctor) -> None:
    """The engine names its own; a port where nothing publishes is told as well."""
    first = fleet.engines[0]
    doctor.config["endpoints"][0]["events"] = f"tcp://127.0.0.1:{Ports().take()}"
    fault = doctor.fault("events", first.name)
    assert f"on port {first.events}" in fault["found"]
    doctor.config["endpoints"][0]["events"] = f"tcp://127.0.0.1:{first.replay}"
    assert f"on port {first.events}" in doctor.fault("events", first.name)["found"]
    assert doctor.run()[0] == 1


def test_an_indexer_that_stands_still_is_told_with_the_lag(fleet: Fleet, doctor: Doctor) -> None:
    """It does not answer, and the engine is batches ahead of the index; then all is well again."""
    pid, engine = fleet.pids()["indexer"], fleet.engines[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            ask(engine.port)
        found = doctor.findings()
    finally:
        os.kill(pid, signal.SIGCONT)
    faults = {(one["where"], one["check"]): one for one in found if one["level"] == "fault"}
    url = f"http://127.0.0.1:{fleet.indexer_admin_port}"
    assert set(faults) == {(url, "indexer"), (engine.name, "index")}
    assert "does not answer (timeout)" in faults[url, "indexer"]["found"]
    assert "batches behind the engine" in faults[engine.name, "index"]["found"]
    for _ in range(50):
        if doctor.run()[0] == 0:
            return
        time.sleep(0.1)
    raise AssertionError(doctor.run())


def test_another_block_size_is_told(fleet: Fleet, doctor: Doctor) -> None:
    """Configured is what no engine has."""
    doctor.config["models"][0]["block_size"] = 32
    for engine in fleet.engines:
        fault = doctor.fault("block_size", engine.name)
        assert "have 16 tokens, configured are 32" in fault["found"]


def test_a_render_service_that_does_not_render_is_told(fleet: Fleet, doctor: Doctor) -> None:
    """The engines of the fleet answer 403, as vLLM does unless it is told otherwise."""
    url = f"http://{fleet.engines[0].name}"
    doctor.config["models"][0]["render_url"] = url
    assert "--enable-scale-out" in doctor.fault("render", url)["advice"]


def test_a_redis_that_is_away_is_told(doctor: Doctor) -> None:
    """Once, and not again for every endpoint."""
    doctor.config["redis"]["url"] = f"redis://127.0.0.1:{Ports().take()}/0"
    faults = [one for one in doctor.findings() if one["level"] == "fault"]
    assert [(one["where"], one["check"]) for one in faults] == [("redis", "reachable")]


def test_a_configuration_that_cannot_be_used_is_78(doctor: Doctor) -> None:
    """As with every command."""
    doctor.config["models"][0]["block_size"] = 0
    assert doctor.run()[0] == 78


def test_the_tables_fit_100_columns() -> None:
    """Long names and sentences are folded, not cut."""
    name = "vllm-deployment-7f6d5c4b9-abcde.prefix.svc:8000#3"
    row = Row("m", name, "0.32.0", "agrees", "flowing", "12 / 0.3 s", "1,024 of 16", "1% / 2% / 3%")
    finding = Finding("fault", name, "events", "No events. " * 9, "Correct them. " * 9)
    console = Console(file=io.StringIO(), width=100)
    show(console, Report([row], [finding]))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    text = "".join(console.file.getvalue().split())
    assert text.count("Correctthem.") > 5
    assert lines[-1] == "0 ok, 0 warn, 1 fault"

"""The command line: help, faults, and what each command says when it cannot work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvatlas import __version__
from kvatlas.cli.main import app
from kvatlas.common.prompt import demo_model_path
from tests.fakes.authority import LOCALHOST, Authority

BAD = """
redis: {url: "http://127.0.0.1"}
models: [{name: m, tokenizer: t, block_size: 0}, {name: m, tokenizer: t}]
endpoints: [{url: "127.0.0.1:1", model: other}]
router: {port: 70000, prot: 1}
"""
FAULTS = (
    "redis.url",
    "models.0.block_size",
    "models: 'm' is there twice",
    "endpoints.0.url",
    "endpoints.0.model",
    "router.port",
    "router.prot",
)


def run(*arguments: str, stdin: str = "") -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """Write a configuration with many faults."""
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return str(path)


@pytest.fixture
def good(tmp_path: Path, redis_url: str) -> str:
    """Write a configuration of the demo model."""
    path = tmp_path / "good.yaml"
    model = {"name": "demo", "tokenizer": str(demo_model_path()), "block_size": 16}
    path.write_text(json.dumps({"redis": {"url": redis_url}, "models": [model]}))
    return str(path)


@pytest.mark.parametrize("command", ["router", "indexer", "engine", "check-config", "inspect"])
def test_a_wrong_configuration_tells_every_fault(command: str, bad: str) -> None:
    """Each command exits with 78 and names the path of all faults at once, on standard error."""
    result = run(command, "--config", bad)
    assert result.exit_code == 78
    assert [fault for fault in FAULTS if fault not in result.stderr] == []
    assert result.stdout == ""


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    """A configuration that is not there is told by its name."""
    result = run("router", "--config", str(tmp_path / "none.yaml"))
    assert result.exit_code == 78
    assert "none.yaml: No such file" in result.stderr


def test_command_line_is_checked_like_the_file(good: str) -> None:
    """A port that cannot be is a fault of the setting that it overrides."""
    result = run("router", "--config", good, "--port", "70000")
    assert result.exit_code == 78
    assert "router.port" in result.stderr


def service(command: str, path: Path, **content: Any) -> tuple[int, str]:
    """Run a service in a process of its own until it gives up."""
    model = {"name": "demo", "tokenizer": str(demo_model_path()), "block_size": 16}
    path.write_text(json.dumps({"models": [model], **content}))
    ended = subprocess.run(
        [sys.executable, "-m", "kvatlas.cli.main", command, "--config", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("command", ["router", "indexer"])
def test_files_of_tls_that_cannot_be_used_are_faults(
    command: str, redis_url: str, tmp_path: Path
) -> None:
    """Each is named with its setting, and nothing of what stands in it is told."""
    cert, key = Authority(tmp_path, "ours").issue("server", LOCALHOST)
    key.write_text("canary")
    tls = {"cert_file": str(cert), "key_file": str(key)}
    own = {"redis": {"url": redis_url}, command: {"admin_port": 0, "admin_tls": tls}}
    status, told = service(command, tmp_path / "own.yaml", **own)
    fault = f"{command}.admin_tls.key_file: {key}: holds no private key in PEM that can be read"
    assert (status, fault in told, "canary" in told) == (78, True, False)
    engines = [{"url": "https://e:1", "model": "demo"}]
    others = {"redis": {"url": redis_url}, "endpoints": engines, "endpoint_tls": tls}
    status, told = service(command, tmp_path / "others.yaml", **others)
    fault = f"endpoint_tls.key_file: {key}: holds no private key in PEM that can be read"
    assert (status, fault in told, "canary" in told) == (78, True, False)


def test_check_config_is_content_with_a_good_one(good: str) -> None:
    """A configuration without faults is summed up and exits with 0."""
    result = run("check-config", "--config", good)
    assert (result.exit_code, result.stdout) == (0, "fine: 1 models, 0 endpoints\n")


def test_check_config_tells_what_is_wrong_with_a_profile(tmp_path: Path) -> None:
    """Every fault of the scheduling profile is told by its path, with the same exit status."""
    profile = {"plugins": [{"type": "no-such-scorer"}], "schedulingProfiles": []}
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps({"router": {"profile": profile}}))
    result = run("check-config", "--config", str(path))
    assert result.exit_code == 78
    faults = ("router.profile.plugins.0.type", "router.profile.schedulingProfiles")
    assert [fault for fault in faults if fault not in result.stderr] == []


def test_help_names_every_command_without_colour() -> None:
    """Piped help is plain and lists what there is."""
    result = run("--help")
    commands = "router indexer engine up demo inspect explain render fetch-tokenizer version"
    assert [name for name in commands.split() if name not in result.stdout] == []
    assert "\x1b" not in result.stdout


def test_version_is_the_packages() -> None:
    """The version stands alone on its line."""
    assert run("version").stdout == f"{__version__}\n"


def test_inspect_of_an_empty_index_says_so(good: str) -> None:
    """No indexer has run: that is said, and is no failure."""
    result = run("inspect", "--config", good)
    assert result.exit_code == 0
    assert "has an indexer run?" in result.stdout


def test_inspect_without_redis_fails_with_the_reason() -> None:
    """A Redis that is not there is told in one line."""
    result = run("inspect", "--redis", "unix:///nowhere/redis.sock")
    assert (result.exit_code, result.stderr) == (1, "error: Redis: connection\n")


@pytest.mark.parametrize(
    ("body", "fault", "status"),
    [
        ("no json", "is not JSON", 78),
        ("[1]", "is not a JSON object", 78),
        ('{"model": "other", "messages": []}', "not one of the configured", 78),
        ('{"model": "demo", "messages": []}', "knows no model 'demo'", 1),
    ],
)
def test_inspect_refuses_what_is_no_prompt(good: str, body: str, fault: str, status: int) -> None:
    """Each fault of a prompt is told in one line and not with a traceback."""
    result = run("inspect", "--config", good, "--prompt", "-", stdin=body)
    assert result.exit_code == status
    assert fault in result.stderr


def test_inspect_refuses_a_block_that_is_none() -> None:
    """A block hash has 16 hex digits."""
    result = run("inspect", "--block", "xyz")
    assert (result.exit_code, "16 hex digits" in result.stderr) == (78, True)


@pytest.mark.parametrize(
    ("arguments", "body", "fault", "status"),
    [
        (["--url", "127.0.0.1:1"], "{}", "is written http://host:port", 78),
        (["--url", "http://127.0.0.1:x"], "{}", "is written http://host:port", 78),
        (["--url", "http://127.0.0.1:1"], "nothing", "the body is not JSON", 78),
        (["--url", "http://127.0.0.1:1"], "{}", "was not reached", 1),
    ],
)
def test_explain_tells_what_is_wrong(
    arguments: list[str], body: str, fault: str, status: int
) -> None:
    """Each fault is told in one line and not with a traceback."""
    result = run("explain", *arguments, "-", stdin=body)
    assert result.exit_code == status
    assert fault in result.stderr


def test_explain_reads_a_file_or_says_why_not(tmp_path: Path) -> None:
    """A body file that is not there, or not text, is told by its name."""
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert "No such file" in run("explain", str(tmp_path / "none")).stderr
    assert "is not UTF-8" in run("explain", str(tmp_path / "bytes")).stderr


def test_render_writes_a_line_per_request(good: str) -> None:
    """Token ids and text come out for each line that goes in."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    line = json.dumps({"path": "/v1/chat/completions", "body": body})
    result = run("render", "--config", good, stdin=f"{line}\nnonsense\n")
    first, second = map(json.loads, result.stdout.splitlines())
    assert "Hello" in first["text"][0]
    assert len(first["token_ids"][0]) > 4
    assert second["fallback"] == "malformed"

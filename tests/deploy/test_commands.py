"""What the manifests and the compose file call is there to be called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from deploy.kube.documents import containers, workloads
from deploy.kube.render import FOLDERS, kubectl, render
from kvatlas.cli.main import app
from kvatlas.common.prompt import demo_model_path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined] # a group, as there are several


def _options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def _unknown_options(words: list[str]) -> set[str]:
    known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
    return _options(words[1:]) - known


def test_compose_calls_commands_that_exist() -> None:
    """Every command line in the compose file has a command and options of ours."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    for name, service in services.items():
        if name != "redis":
            assert _unknown_options(service["command"]) == set()


@pytest.mark.skipif(kubectl() is None, reason="there is no kubectl")
def test_pods_call_commands_that_exist() -> None:
    """Every container of our image is given a command and options of ours."""
    called = set()
    for document in [each for folder in FOLDERS for each in workloads(render(folder))]:
        for container in containers(document):
            if container["image"].startswith("kvatlas"):
                assert _unknown_options(container["args"]) == set()
                called.add(container["args"][0])
    assert called == {"router", "picker", "indexer", "engine", "doctor", "fetch-tokenizer"}


def test_full_folder_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer in the folder nothing is fetched, so the hub need not be there."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    command = [
        "fetch-tokenizer",
        "--model",
        "own/er",
        "--revision",
        "0" * 40,
        "--out",
        str(demo_model_path()),
    ]
    assert CliRunner().invoke(app, command).exit_code == 0


def test_bad_hub_id_is_a_configuration_error(tmp_path: Path) -> None:
    """What cannot be a hub id ends the init container with status 78, which says why."""
    command = ["fetch-tokenizer", "--model", "no/hub/id", "--revision", "0" * 40]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "model")])
    assert result.exit_code == 78
    assert "no/hub/id is no hub id" in result.output

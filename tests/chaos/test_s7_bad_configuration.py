"""S7, a bad configuration: refused before anything runs, all faults at once, no secret told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import EX_CONFIG
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary

NEEDED: dict[str, dict[str, Any]] = {
    "models": {"name": "m", "tokenizer": "demo"},
    "endpoints": {"url": "http://127.0.0.1:1", "model": "m"},
}
TAKES_ANY = {"router.profile", "models.0.default_chat_template_kwargs"}
"""Mappings of names that are others': what they hold is checked when it is used."""


def _sections_in(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    """Find the sections that a setting holds, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
    is_list = get_origin(annotation) is list
    for part in get_args(annotation):
        for section, is_listed in _sections_in(part):
            yield section, is_listed or is_list


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """List every setting below a section by its path."""
    for name, field in section.model_fields.items():
        path = prefix + name
        yield path
        for inner, is_listed in _sections_in(field.annotation):
            yield from _paths(inner, f"{path}.0." if is_listed else f"{path}.")


EVERY = sorted(set(_paths(Settings)))


def _kind_with(setting: str) -> str:
    """Give a kind of place that has a setting."""
    kinds = [kind for kind, _ in _sections_in(Settings.model_fields["discovery"].annotation)]
    chosen = next(kind for kind in kinds if setting in kind.model_fields)
    return str(get_args(chosen.model_fields["kind"].annotation)[0])


def _wrong(path: str, secret: str) -> dict[str, Any]:
    """Write a configuration with what no setting takes at one place."""
    content: Any = {"no": [[secret]]}
    for name in reversed(path.split(".")):
        content = [content] if name == "0" else {name: content}
    if path.startswith("discovery.0.") and path != "discovery.0.kind":
        content["discovery"][0]["kind"] = _kind_with(path.split(".")[2])
    for name, needed in NEEDED.items():
        given = content.get(name, [needed])
        if isinstance(given, list):
            content[name] = [needed | given[0]]
    made: dict[str, Any] = content
    return made


def test_s7_every_setting_is_there() -> None:
    """Of all sections, those in lists and those in others."""
    assert {"redis.url", "router.ejection.failures", "models.0.name", "log.level"} <= set(EVERY)
    assert len(EVERY) > 100


@pytest.mark.parametrize("path", [each for each in EVERY if each not in TAKES_ANY])
def test_s7_every_setting_is_refused_by_name(path: str, canary: Canary) -> None:
    """Its fault begins with its path, and does not repeat what it was."""
    with pytest.raises(ConfigError) as caught:
        Settings(**_wrong(path, canary.text))
    assert any(fault.startswith(path) for fault in caught.value.faults), caught.value.faults
    assert canary.text not in str(caught.value)


async def test_s7_all_are_told_at_once(canary: Canary, tmp_path: Path) -> None:
    """A process whose every setting is wrong lists them all."""
    content: dict[str, Any] = {}
    told = [path for path in EVERY if len(path.replace(".0.", ".").split(".")) == 2]
    # Without its kind nobody knows what an entry may hold.
    told = [path for path in told if not path.startswith("discovery.0.")] + ["discovery.0.kind"]
    for path in told:
        section, _, name = path.rpartition(".")
        section, is_listed = section.removesuffix(".0"), section.endswith(".0")
        made = content.setdefault(section, [{}] if is_listed else {})
        (made[0] if is_listed else made)[name] = {"no": [[canary.text]]}
    file = tmp_path / "kvatlas.yaml"
    file.write_text(yaml.safe_dump(content))
    status, said = await asyncio.to_thread(_run, "router", file)
    assert status == EX_CONFIG, said
    assert [path for path in told if path not in said and path not in TAKES_ANY] == []
    assert canary.text not in said
    Report(
        "S7", f"{len(told)} settings wrong at once", "exit 78, each told by its path, no value"
    ).tell()


def _run(service: str, file: Path) -> tuple[int, str]:
    """Start a service; give its exit status and what it said."""
    line = [sys.executable, "-m", "kvatlas.cli.main", service, "-c", str(file)]
    environment = os.environ | {"KVATLAS_LOG__LEVEL": "loud"}
    ended = subprocess.run(line, capture_output=True, check=False, env=environment, timeout=20)
    return ended.returncode, (ended.stdout + ended.stderr).decode()


@pytest.mark.parametrize("service", ["router", "indexer"])
async def test_s7_a_service_exits_with_78(service: str, canary: Canary, tmp_path: Path) -> None:
    """Its faults stand on stderr, each of them; passwords do not."""
    file = tmp_path / "kvatlas.yaml"
    content = {
        "redis": {"url": f"http://:{canary.text}@127.0.0.1/0"},
        "models": [{"name": "m", "tokenizer": "/nowhere", "block_size": 0}],
        "endpoints": [{"url": "http://127.0.0.1:1", "model": "other"}],
        service: {"admin_port": 70_000, "no_such_setting": 1},
    }
    file.write_text(yaml.safe_dump(content))
    status, said = await asyncio.to_thread(_run, service, file)
    assert status == EX_CONFIG, said
    for name in (
        "redis.url", "models.0.block_size", "endpoints.0.model", f"{service}.admin_port",
        f"{service}.no_such_setting", "log.level",
    ):  # fmt: skip
        assert name in said
    assert canary.text not in said
    Report(
        "S7", f"a {service} whose settings are all wrong", "exit 78, every fault told, no secret"
    ).tell()

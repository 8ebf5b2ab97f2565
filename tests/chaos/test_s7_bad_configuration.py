"""S7, a bad configuration: refused before anything runs, all faults at once, no secret told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import (
    EngineSettings,
    IndexerSettings,
    LogSettings,
    RedisSettings,
    RouterSettings,
    Settings,
)
from kvatlas.common.tasks import EX_CONFIG
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary

SECTIONS: dict[str, type[BaseModel]] = {
    "redis": RedisSettings,
    "router": RouterSettings,
    "indexer": IndexerSettings,
    "engine": EngineSettings,
    "log": LogSettings,
}
EVERY = [(s, name) for s, section in SECTIONS.items() for name in section.model_fields]


def _wrong(secret: str) -> dict[str, Any]:
    """Give what no setting takes: none is a list of lists of a set of texts."""
    return {"no": [[secret]]}


def test_s7_every_setting_is_refused_by_name(canary: Canary) -> None:
    """All are wrong at once, and each is told of, without what it was."""
    content: dict[str, Any] = {name: {} for name in SECTIONS}
    for section, name in EVERY:
        content[section][name] = _wrong(canary.text)
    with pytest.raises(ConfigError) as caught:
        Settings(**content)
    told = "\n".join(caught.value.faults)
    takes_any = {("router", "profile"), ("router", "rewrites")}
    missing = [f"{s}.{n}" for s, n in EVERY if f"{s}.{n}" not in told and (s, n) not in takes_any]
    assert missing == []
    assert canary.text not in told


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
    line = [sys.executable, "-m", "kvatlas.cli.main", service, "-c", str(file)]
    environment = os.environ | {"KVATLAS_LOG__LEVEL": "loud"}
    ended = await asyncio.to_thread(
        subprocess.run, line, capture_output=True, check=False, env=environment, timeout=20
    )
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == EX_CONFIG, said
    for name in (
        "redis.url", "models.0.block_size", "endpoints.0.model", f"{service}.admin_port",
        f"{service}.no_such_setting", "log.level",
    ):  # fmt: skip
        assert name in said
    assert canary.text not in said
    Report(
        "S7", f"a {service} whose settings are all wrong", "exit 78, every fault told, no secret"
    ).tell()

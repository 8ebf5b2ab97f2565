"""docs/CONFIG.md describes every setting, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kvatlas.common.settings import Settings, load

DOCS = Path(__file__).resolve().parents[2] / "docs" / "CONFIG.md"


def section_of(field: FieldInfo) -> type[BaseModel]:
    """Find the section behind a field, be it one or a list of them."""
    found = field.annotation
    assert found is not None
    inner = (
        found if isinstance(found, type) and issubclass(found, BaseModel) else get_args(found)[0]
    )
    assert issubclass(inner, BaseModel)
    return inner


def settings_paths() -> set[str]:
    """List all settings as the page writes them."""
    paths = set()
    for name, field in Settings.model_fields.items():
        dots = "[]." if name in ("models", "endpoints") else "."
        paths |= {f"{name}{dots}{inner}" for inner in section_of(field).model_fields}
    return paths


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    """The first column of the tables lists exactly the settings that there are."""
    documented = re.findall(r"^\| `([a-z_]+(?:\[\])?\.[a-z_]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == settings_paths()


def test_documented_defaults_are_the_real_ones() -> None:
    """The default in a table is the one in the code, written as YAML."""
    rows = re.findall(
        r"^\| `([a-z]+(?:\[\])?)\.([a-z_]+)` \|[^|]*\| ([^|]*) \|", DOCS.read_text(), re.MULTILINE
    )
    for section, name, shown in rows:
        field = section_of(Settings.model_fields[section.removesuffix("[]")]).model_fields[name]
        assert shown.strip("` ") == yaml_text(field), f"{section}.{name}"


def yaml_text(field: FieldInfo) -> str:
    """Write a default as the page does."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def test_the_example_of_the_page_is_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first YAML block can be used as it stands."""
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example is not None
    file = tmp_path / "kvatlas.yaml"
    file.write_text(example[1])
    settings = load(file)
    assert [model.name for model in settings.models] == ["qwen3"]
    assert settings.endpoints[0].host_port == "127.0.0.1:8101"

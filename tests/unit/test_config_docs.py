"""docs/CONFIG.md describes every setting, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kvatlas.common.settings import Settings, load

DOCS = Path(__file__).resolve().parents[2] / "docs" / "CONFIG.md"


def sections_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Find the sections behind a field: one, or a list of them, of one kind or of several."""

    def inside(annotation: object) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [each for inner in get_args(annotation) for each in inside(inner)]

    found = inside(field.annotation)
    assert found
    return found


def is_list(field: FieldInfo) -> bool:
    """Tell whether there may be several of a section."""
    return get_origin(field.annotation) is list


def settings_paths() -> set[str]:
    """List all settings as the page writes them."""
    paths = set()
    for name, field in Settings.model_fields.items():
        dots = "[]." if is_list(field) else "."
        paths |= {
            f"{name}{dots}{inner}" for each in sections_of(field) for inner in each.model_fields
        }
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
        sections = sections_of(Settings.model_fields[section.removesuffix("[]")])
        fields = [each.model_fields[name] for each in sections if name in each.model_fields]
        assert {shown.strip("` ")} == {yaml_text(field) for field in fields}, f"{section}.{name}"


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

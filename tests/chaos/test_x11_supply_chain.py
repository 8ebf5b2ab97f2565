"""X11, a dependency is exchanged or has a hole: what a checkout can say of it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from deploy.sbom import LOCK, ROOT, bill, locked
from tests.chaos.conftest import Report

LEAST = {"jinja2": (3, 1, 6), "aiohttp": (3, 14, 1), "msgpack": (1, 1, 1), "redis": (8, 1)}
"""Releases below have holes that are known, or lack what we rely on."""
WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".ckpt", ".h5", ".npz"}
FILE_BYTES_MAX = 1_000_000
LOCKS = [LOCK, LOCK.with_name("dev.txt")]


def numbers(version: str) -> tuple[int, ...]:
    """Read a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def tracked() -> list[Path]:
    """List the files of the repository."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_x11_everything_is_locked_by_hash(lock: Path) -> None:
    """Each package has one version and the SHA-256 of its files; no index, link or checkout."""
    text = lock.read_text(encoding="utf-8")
    packages = list(locked(text))
    assert len(packages) > 20
    assert not re.search(r"^\s*(-i|-f|-e|--(extra-)?index-url|--find-links)\b", text, re.MULTILINE)
    assert not re.search(r"(git\+|https?|file):", text)
    versions = {each.name.lower(): numbers(each.version) for each in packages}
    for name, least in LEAST.items():
        assert versions[name] >= least


def test_x11_nothing_is_installed_past_the_lock() -> None:
    """Image, wheel check and Makefile ask for hashes wherever they install packages."""
    for name in ("Dockerfile", "Makefile", "deploy/check_wheel.sh"):
        text = (ROOT / name).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if re.search(r"requirements/\w+\.txt", line)]
        installs = [line for line in lines if "install" in line]
        assert installs
        assert all("--require-hashes" in line for line in installs)


def test_x11_ranges_keep_holes_out() -> None:
    """Who installs the wheel without the lock gets no release that has one of them either."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pattern = re.compile(r"([a-z0-9-]+)(?:\[\w+\])?>=([\d.]+)")
    found = [pattern.match(each) for each in project["dependencies"]]
    ranges = {each[1]: each[2] for each in found if each}
    assert len(ranges) == len(found)
    for name, least in LEAST.items():
        assert numbers(ranges[name]) >= least


def test_x11_no_weights_and_nothing_large() -> None:
    """Neither wheel nor image can carry a model: the tree, of which they are made, has none."""
    files = [path for path in tracked() if path.is_file() and not path.is_symlink()]
    assert len(files) > 200
    assert [path for path in files if path.suffix in WEIGHTS] == []
    assert [path for path in files if path.stat().st_size > FILE_BYTES_MAX] == []


def test_x11_there_is_a_bill_of_materials() -> None:
    """It lists what the lock lists; a lock that is not by hash has none."""
    text = LOCK.read_text(encoding="utf-8")
    components = bill(text)["components"]
    assert len(components) == len(list(locked(text)))
    assert all(each["purl"].startswith("pkg:pypi/") for each in components)
    with pytest.raises(ValueError, match="not pinned"):
        bill("aiohttp>=3\n")
    Report("X11", "the locked packages", f"{len(components)}, each by SHA-256; a bill").tell()

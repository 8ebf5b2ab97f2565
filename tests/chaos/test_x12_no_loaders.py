"""X12, bytes that become code: nothing in the product loads, evaluates or runs what it is sent."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.sbom import ROOT
from tests.chaos.conftest import Report

SHIPPED = ("common", "router", "indexer", "simulator", "planner", "cli")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "joblib"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "torch.load", "numpy.load", "pydoc.locate",
}  # fmt: skip
ALLOWED = {
    # The loader is SafeLoader, or the same in C.
    ("router/keys.py", "yaml.load"),
    ("common/discovery/files.py", "yaml.load"),
}


def findings(path: Path, source: str) -> Iterator[tuple[str, str]]:
    """List what a file has of these."""
    name = str(path.relative_to(ROOT)) if path.is_absolute() else str(path)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((name, each.name) for each in node.names if each.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield name, node.module
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                yield name, called
            if any(word.arg == "shell" and _is_true(word.value) for word in node.keywords):
                yield name, "shell=True"


def _is_true(node: ast.expr) -> bool:
    return not (isinstance(node, ast.Constant) and node.value is False)


def sources() -> list[Path]:
    """List the files that are shipped."""
    return [path for folder in SHIPPED for path in sorted((ROOT / folder).rglob("*.py"))]


def test_x12_nothing_is_loaded_or_evaluated() -> None:
    """No pickle, no eval, no unsafe YAML, no shell, in any file that is shipped."""
    found = {each for path in sources() for each in findings(path, path.read_text("utf-8"))}
    assert found == ALLOWED
    assert "SafeLoader" in (ROOT / "router/keys.py").read_text("utf-8")
    Report("X12", f"{len(sources())} shipped files", "no pickle, eval, unsafe YAML or shell").tell()


def test_x12_msgpack_is_read_strictly() -> None:
    """Wherever msgpack is unpacked its options are written out; events go through types."""
    calls = [
        ast.unparse(node)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("unpackb", "Unpacker"))
    ]
    assert calls
    assert all("raw=False" in call and "strict_map_key=True" in call for call in calls)
    text = (ROOT / "indexer/decode.py").read_text("utf-8")
    assert "from msgspec.msgpack import Decoder" in text
    assert "FRAME_BYTES_MAX" in text


def test_x12_the_linter_looks_for_it() -> None:
    """All of ruff's rules are on, and S is left out for shipped folders in no file's list."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    assert not [code for code in lint["ignore"] if code.startswith("S")]
    for pattern, codes in lint["per-file-ignores"].items():
        if pattern.split("/")[0] in SHIPPED:
            assert set(codes) & {"S301", "S307", "S506", "S602", "S604", "S605"} == set()


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from marshal import loads", "eval(x)", "yaml.load(x)", "run(x, shell=True)",
     "os.system(x)", "yaml.full_load(x)"],
)  # fmt: skip
def test_x12_the_search_finds_it(line: str) -> None:
    """Each of them is found where it is."""
    assert list(findings(Path("x.py"), line))

"""`kvatlas simulate`: what it prints and writes, and what it says of bad input."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvatlas.cli.main import app
from kvatlas.common.tasks import EX_CONFIG

LINE = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}'
SMALL = ("--trace", "made:hot-prompt", "--requests", "40", "--endpoints", "2")


def simulate(*options: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["simulate", *options])


def test_it_prints_a_table_with_a_row_for_each_policy() -> None:
    """Expect what was asked for, and the ceiling."""
    told = simulate(*SMALL, "--policy", "round-robin", "--policy", "kvatlas")
    assert told.exit_code == 0
    assert "round-robin" in told.output
    assert "kvatlas" in told.output
    assert "oracle" not in told.output
    assert "an endless cache would hit" in told.output


def test_it_writes_what_it_found(tmp_path: Path) -> None:
    """Expect figures by policy, and everything that decides them."""
    file = tmp_path / "figures.json"
    assert simulate(*SMALL, "--routers", "3", "--json", str(file)).exit_code == 0
    whole = json.loads(file.read_text())
    assert set(whole["policies"]) == {"kvatlas", "oracle"}
    assert whole["policies"]["kvatlas"]["requests"] == 40
    assert (whole["fleet"]["routers"], whole["seed"]) == (3, 1)
    assert 0 < whole["hit_ceiling"] < 1


def test_json_goes_to_standard_output_alone() -> None:
    """Expect nothing beside it."""
    told = simulate(*SMALL, "--policy", "kvatlas", "--json", "-")
    assert json.loads(told.stdout)["policies"]["kvatlas"]["requests"] == 40


def test_it_reads_a_file_and_draws(tmp_path: Path) -> None:
    """Expect a picture of a trace from a file."""
    pytest.importorskip("matplotlib")
    trace, picture = tmp_path / "trace.jsonl", tmp_path / "picture.png"
    trace.write_text(LINE + "\n")
    assert simulate("--trace", str(trace), "--plot", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--trace", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("--trace", "made:x"), "--trace made:x: is none of made:documents"),
        ((*SMALL, "--policy", "best"), "--policy best: is none of kvatlas, oracle"),
        ((*SMALL, "--block-size", "24"), "--block-size 24: does not divide 512"),
        ((*SMALL, "--cache-blocks", "3"), "--cache-blocks 3: a request of"),
        ((*SMALL, "--start-s", "9999"), "no request between --start-s"),
        ((*SMALL, "--scrape-ms", "inf"), "scrape_s: inf is no number to go by"),
        ((*SMALL, "--json", "/no/such/file"), "--json /no/such/file: No such file"),
        ((*SMALL, "--config", "/no/such/file"), "/no/such/file"),
    ],
)
def test_bad_input_is_named(options: tuple[str, ...], told: str) -> None:
    """Expect a line that says what is wrong, and the status of a wrong configuration."""
    result = simulate(*options)
    assert result.exit_code == EX_CONFIG
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_wrong_line_is_told_with_its_number(tmp_path: Path) -> None:
    """Expect file and line."""
    trace = tmp_path / "t.jsonl"
    trace.write_text(f"{LINE}\n{{}}\n")
    result = simulate("--trace", str(trace))
    assert result.exit_code == EX_CONFIG
    assert "line 2: timestamp is not a whole number" in result.output.replace("\n", " ")


@pytest.mark.parametrize("option", [("--endpoints", "0"), ("--speedup", "nan"), ("--seed", "x")])
def test_options_out_of_range_are_refused(option: tuple[str, str]) -> None:
    """Expect the usage error of the command line."""
    assert simulate(*SMALL, *option).exit_code == 2


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect to be told what to install."""
    load = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = simulate(*SMALL, "--policy", "round-robin", "--plot", "x.png")
    assert result.exit_code == EX_CONFIG
    assert "pip install 'kvatlas[plot]'" in result.output


def test_the_routers_go_by_their_configuration(tmp_path: Path) -> None:
    """Expect another policy to be another outcome."""
    file = tmp_path / "kvatlas.yaml"
    file.write_text("router: {policy: round-robin}\n")
    asked = ("--trace", "made:agents", "--requests", "200", "--policy", "kvatlas", "--json", "-")
    plain, configured = (
        json.loads(simulate(*asked, *more).stdout)["policies"]["kvatlas"]["hit_share"]
        for more in ((), ("--config", str(file)))
    )
    assert configured < plain

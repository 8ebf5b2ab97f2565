"""Plugins of third parties: an installed distribution with entry points, in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

MODULE = '''
"""A plugin as a third party writes it: it knows nothing of kvatlas."""
from pathlib import Path

Path(__file__).with_name("loaded").touch()

class NameScorer:
    def __init__(self, parameters):
        self.best = parameters["best"]

    def score(self, work, candidates):
        if work.prompt_tokens == 0:
            raise RuntimeError("on purpose")
        return [2.0 if each.endpoint == self.best else -1.0 for each in candidates]

def broken(parameters):
    raise ValueError("out of order")

number = 7
'''
ENTRY_POINTS = """
[kvatlas.scheduling]
name-scorer = thirdparty:NameScorer
broken-scorer = thirdparty:broken
number-scorer = thirdparty:number
missing-scorer = nosuchmodule:Scorer
queue-scorer = thirdparty:broken
"""
DECIDE = """
import json, sys
from kvatlas.common.ids import EndpointName
from kvatlas.common.log import configure_logs
from kvatlas.common.settings import load
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.profiles import build_profile
from kvatlas.router.scheduling import Work
from pathlib import Path
from tests.fakes.scheduling import FIRST, candidates, Busy
from prometheus_client import generate_latest

configure_logs("info", json=True)
metrics = RouterMetrics()
profile = build_profile(load(Path(sys.argv[1])).router, metrics)
known = candidates(*[(0, Busy())] * 3)
orders = [list(profile.run(Work(n), known, FIRST).order) for n in (1, 1, 0)]
page = generate_latest(metrics.registry).decode()
faults = [line for line in page.splitlines() if line.startswith("kvatlas_router_plugin_faults_t")]
print(json.dumps({"orders": orders, "faults": faults}))
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A folder with an installed distribution, as pip leaves it."""

    folder: Path

    @property
    def was_loaded(self) -> bool:
        """Tell whether its module was imported."""
        return (self.folder / "loaded").exists()

    def install(self, name: str) -> None:
        """Put a distribution there that offers the entry points."""
        info = self.folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        (info / "RECORD").write_text("thirdparty.py,,\n")
        (self.folder / "thirdparty.py").write_text(MODULE)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the distribution on its path."""
        path = os.pathsep.join([str(self.folder), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=15,
        )

    def check(self, config: Path) -> subprocess.CompletedProcess[str]:
        """Check a configuration."""
        return self.run("-m", "kvatlas.cli.main", "check-config", "--config", str(config))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Install a distribution."""
    folder = tmp_path / "site"
    folder.mkdir()
    made = Site(folder)
    made.install("thirdparty")
    return made


def written(tmp_path: Path, *types: str, **parameters: Any) -> Path:
    """Write a configuration with a profile of plugins."""
    names = [*types, "max-score-picker"]
    plugins = [{"type": each} for each in names]
    plugins[0]["parameters"] = parameters  # type: ignore[assignment]
    refs = [{"pluginRef": each} for each in names]
    profile = {"plugins": plugins, "schedulingProfiles": [{"name": "default", "plugins": refs}]}
    file = tmp_path / "kvatlas.json"
    file.write_text(json.dumps({"router": {"profile": profile}}))
    return file


def test_an_installed_plugin_decides_and_is_held_in_check(site: Site, tmp_path: Path) -> None:
    """Expect its favourite to be chosen, scores out of range to be counted, and no exception."""
    ran = site.run("-c", DECIDE, str(written(tmp_path, "name-scorer", best="e1")))
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [order[0] for order in told["orders"][:2]] == [1, 1]
    assert sorted(told["orders"][2]) == [0, 1, 2]
    assert told["faults"] == [
        'kvatlas_router_plugin_faults_total{fault="range",plugin="name-scorer"} 2.0',
        'kvatlas_router_plugin_faults_total{fault="raised",plugin="name-scorer"} 1.0',
    ]
    # The first of each kind is logged, by the name of what was raised and not by its text.
    assert ran.stderr.count("plugin.failed") == 2
    assert "RuntimeError" in ran.stderr
    assert "on purpose" not in ran.stderr


def test_a_plugin_that_nobody_names_is_not_loaded(site: Site, tmp_path: Path) -> None:
    """Expect the module not even to be imported, nor where the type is one of ours."""
    assert site.check(written(tmp_path, "queue-scorer")).returncode == 0
    assert not site.was_loaded
    assert site.check(written(tmp_path, "name-scorer", best="e1")).returncode == 0
    assert site.was_loaded


def test_broken_plugins_are_named_at_the_start(site: Site, tmp_path: Path) -> None:
    """Expect one error with a line for each: it raises, is none, is not there, is unknown."""
    types = ("broken-scorer", "number-scorer", "missing-scorer", "unheard-of-scorer", "name-scorer")
    checked = site.check(written(tmp_path, *types))
    assert checked.returncode == 78
    expected = [
        "router.profile.plugins.0: plugin 'broken-scorer': ValueError: out of order",
        "router.profile.plugins.1: plugin 'number-scorer': TypeError: thirdparty:number cannot",
        "router.profile.plugins.2: plugin 'missing-scorer': ModuleNotFoundError: ",
        "router.profile.plugins.3.type: there is no plugin 'unheard-of-scorer'",
        "router.profile.plugins.4: plugin 'name-scorer': KeyError: 'best'",
    ]
    told = " ".join(checked.stderr.split())
    assert [line for line in expected if line not in told] == []


def test_two_distributions_with_the_same_type_are_a_fault(tmp_path: Path, site: Site) -> None:
    """Expect the start to fail rather than to take either."""
    info = site.folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kvatlas.scheduling]\nname-scorer = other:Scorer\n")
    checked = site.check(written(tmp_path, "name-scorer", best="e1"))
    assert checked.returncode == 78
    assert "more than one installed distribution offers it" in " ".join(checked.stderr.split())

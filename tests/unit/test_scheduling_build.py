"""From a configuration to a profile, and every fault of it at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import RouterSettings, SessionSettings, load
from kvatlas.router.profiles import build_profile
from kvatlas.router.scheduling import CostScorer, EvenScorer, HealthyFilter, RequestScorer, Work
from kvatlas.router.scheduling.build import Builder
from kvatlas.router.scheduling.pickers import MaxScorePicker, RoundRobinPicker
from kvatlas.router.scheduling.registry import OURS
from tests.fakes.scheduling import FIRST, Busy, Faults, built, candidate, candidates

PLUGINS: list[dict[str, Any]] = [
    {"type": "label-selector-filter", "name": "big", "parameters": {"matchLabels": {"gpu": "b"}}},
    {"type": "queue-scorer"},
    {"type": "prefix-cache-scorer", "parameters": {}},
    {"type": "kv-cache-utilization-scorer", "parameters": None},
    {"type": "max-score-picker"},
]
REFS: list[dict[str, Any]] = [
    {"pluginRef": "big"},
    {"pluginRef": "queue-scorer", "weight": 2},
    {"pluginRef": "prefix-cache-scorer", "weight": 3.0},
    {"pluginRef": "kv-cache-utilization-scorer"},
    {"pluginRef": "max-score-picker"},
]


def config(plugins: Any = None, refs: Any = None) -> dict[str, Any]:
    """Write a configuration; by default a good one."""
    profile = {"name": "default", "plugins": REFS if refs is None else refs}
    return {
        "plugins": PLUGINS if plugins is None else plugins,
        "schedulingProfiles": [profile],
    }


def faults_of(written: Mapping[str, Any]) -> list[str]:
    """Build a profile that cannot be built."""
    with pytest.raises(ConfigError) as caught:
        Builder(lambda _kind: None, Faults().report).build(written)
    return caught.value.faults


def test_a_profile_in_the_way_of_llm_d_is_built() -> None:
    """Expect its filter, its weights, and the filter of health that every profile has."""
    profile = Builder(lambda _kind: None, Faults().report).build(config())
    assert [each.weight for each in profile.scorers] == [2.0, 3.0, 1.0]
    known = [
        candidate("e0", 900, Busy(waiting=1), labels={"gpu": "b"}),
        candidate("e1", 0, Busy(), labels={"gpu": "b"}),
        candidate("e2", 999, Busy(healthy=False), labels={"gpu": "b"}),
        candidate("e3", 1_000, Busy(), labels={"gpu": "a"}),
    ]
    ranking = profile.run(Work(1_000), known, FIRST)
    assert list(ranking.order) == [0, 1, 2]
    assert ranking.scores == pytest.approx([(3 * 0.9 + 1) / 6, (2 + 1) / 6, 0.0, 0.0])


@pytest.mark.parametrize(
    ("policy", "scorer", "picker"),
    [
        ("prefix", CostScorer(7.0), MaxScorePicker()),
        ("least-load", RequestScorer(), MaxScorePicker()),
        ("round-robin", EvenScorer(), RoundRobinPicker()),
    ],
)
def test_a_policy_is_a_short_form_of_a_profile(policy: Any, scorer: object, picker: object) -> None:
    """Expect the health filter, one scorer and its picker, with the settings' price."""
    profile: Any = build_profile(RouterSettings(policy=policy, work_price=7.0))
    assert [each.plugin for each in profile.filters] == [HealthyFilter()]
    assert [each.scorer.plugin for each in profile.scorers] == [scorer]
    assert profile.picker.plugin == picker


def test_a_profile_that_names_the_health_filter_has_it_once() -> None:
    """Expect it where the profile has it."""
    plugins = [*PLUGINS, {"type": "healthy-filter", "name": "alive"}]
    profile: Any = Builder(lambda _kind: None, Faults().report).build(
        config(plugins, [*REFS, {"pluginRef": "alive"}])
    )
    assert [each.name for each in profile.filters] == ["big", "alive"]


def test_a_weight_of_zero_switches_a_scorer_off() -> None:
    """Expect it not to be run; and no profile where all are off."""
    refs = [*REFS[1:], {"pluginRef": "big"}]
    off = [{**refs[0], "weight": 0}, *refs[1:]]
    profile = Builder(lambda _kind: None, Faults().report).build(config(refs=off))
    assert [each.weight for each in profile.scorers] == [3.0, 1.0]
    none = [{"pluginRef": "queue-scorer", "weight": 0.0}, {"pluginRef": "max-score-picker"}]
    assert faults_of(config(refs=none)) == [
        "router.profile.schedulingProfiles.0: has no scorer with a weight above 0"
    ]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    """Expect one error with a line for each fault, each beginning with its path."""
    plugins = [
        {"type": "no-such-scorer"},
        {"type": "load-aware-scorer", "parameters": {"threshold": 0, "treshold": 1}},
        {"type": "queue-scorer"},
        {"type": "queue-scorer"},
        {"type": "even-scorer", "params": {}},
        "max-score-picker",
        {"type": 3},
        {"type": "session-affinity-scorer"},
        {"type": "healthy-filter"},
    ]
    refs = [
        {"pluginRef": "queue-scorer", "weight": "2"},
        {"pluginRef": "load-aware-scorer", "weight": float("nan")},
        {"pluginRef": "no-such-scorer", "weight": float("inf")},
        {"pluginRef": "even-scorer", "weight": -1},
        {"pluginRef": "session-affinity-scorer", "weight": True},
        {"pluginRef": "healthy-filter", "weight": 1},
        {"pluginRef": "nowhere"},
        {"pluginRef": "healthy-filter"},
        {"plugin": "queue-scorer"},
    ]
    at, profile = "router.profile.plugins", "router.profile.schedulingProfiles.0"
    begins = [
        f"{at}.0.type: there is no plugin 'no-such-scorer'",
        f"{at}.1.parameters.threshold: ",
        f"{at}.1.parameters.treshold: unknown",
        f"{at}.3: the name 'queue-scorer' is there twice",
        f"{at}.4.params: unknown",
        f"{at}.5: ",
        f"{at}.6.type: ",
        f"{at}.7: session-affinity-scorer needs router.session",
        f"{profile}.plugins.0.weight: ",
        f"{profile}.plugins.1.weight: ",
        f"{profile}.plugins.2.weight: ",
        f"{profile}.plugins.3.weight: ",
        f"{profile}.plugins.4.weight: ",
        f"{profile}.plugins.5.weight: 'healthy-filter' is no scorer",
        f"{profile}.plugins.6.pluginRef: there is no plugin named 'nowhere'",
        f"{profile}.plugins.7.pluginRef: 'healthy-filter' is there twice",
        f"{profile}.plugins.8.pluginRef: ",
        f"{profile}.plugins.8.plugin: unknown",
        f"{profile}: has no picker",
        f"{profile}: has no scorer",
    ]
    found = faults_of(config(plugins, refs))
    assert len(found) == len(begins), found
    for line, begin in zip(found, begins, strict=True):
        assert line.startswith(begin)


@pytest.mark.parametrize(
    ("written", "begins"),
    [
        ({}, ["router.profile.schedulingProfiles: must be one profile, not 0"]),
        ({"plugins": 3}, ["router.profile.plugins: ", "router.profile.schedulingProfiles: must"]),
        (
            {"plugins": [], "profiles": []},
            ["router.profile.profiles: unknown", "router.profile.schedulingProfiles: must"],
        ),
        (
            {"schedulingProfiles": [{"name": "a"}]},
            ["router.profile.schedulingProfiles.0.plugins: "],
        ),
        ({"schedulingProfiles": ["a"]}, ["router.profile.schedulingProfiles.0: "]),
        (
            {"schedulingProfiles": [{"name": "a", "plugins": []}]},
            ["router.profile.schedulingProfiles.0.plugins: "],
        ),
    ],
)
def test_a_configuration_of_another_shape_is_refused(
    written: dict[str, Any], begins: list[str]
) -> None:
    """Expect what is missing or strange to be named, not an exception."""
    found = faults_of(written)
    assert len(found) == len(begins), found
    assert all(line.startswith(begin) for line, begin in zip(found, begins, strict=True))


def test_two_profiles_or_two_pickers_are_too_many() -> None:
    """Expect both to be said: only one profile is run, and only one picker picks."""
    two = {**config(), "schedulingProfiles": config()["schedulingProfiles"] * 2}
    assert faults_of(two) == ["router.profile.schedulingProfiles: must be one profile, not 2"]
    plugins, refs = [*PLUGINS, {"type": "random-picker"}], [*REFS, {"pluginRef": "random-picker"}]
    assert faults_of(config(plugins, refs)) == [
        "router.profile.schedulingProfiles.0: has more than one picker"
    ]


def test_a_plugin_that_is_both_filters_and_scores() -> None:
    """Expect one reference to be enough for both."""
    plugins = [
        {"type": "context-length-aware", "parameters": {"enableFiltering": True}},
        {"type": "max-score-picker"},
    ]
    refs = [{"pluginRef": "context-length-aware", "weight": 2}, {"pluginRef": "max-score-picker"}]
    profile = Builder(lambda _kind: None, Faults().report).build(config(plugins, refs))
    known = [candidate("e0", labels={"llm-d.ai/context-length-range": "0-9"}), candidate("e1")]
    assert list(profile.run(Work(1_000), known, FIRST).order) == [1]


# --- the page -----------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "SCHEDULING.md").read_text()
ODD_NAMES = {
    "max_ttft_penalty_ms": "maxTTFTPenaltyMs",
    "composite_kv_weight": "compositeKVWeight",
}


@pytest.mark.parametrize("kind", OURS)
def test_every_plugin_has_its_paragraph(kind: str) -> None:
    """Expect the page to name each type in bold, and every parameter as it is written."""
    assert f"**`{kind}`**" in PAGE
    for parameter in fields(OURS[kind]):
        if parameter.init:
            name = ODD_NAMES.get(parameter.name, to_camel(parameter.name))
            assert f"`{name}`" in PAGE


def test_the_example_of_the_page_is_a_profile() -> None:
    """Expect the first YAML block to be built as it stands, with the filter first."""
    example = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    profile: Any = build_profile(
        RouterSettings.model_validate(yaml.safe_load(example[1])["router"])
    )
    assert [each.name for each in profile.filters] == ["healthy-filter", "big"]
    policy: Any = build_profile(RouterSettings())
    assert profile.scorers[0].scorer.plugin == policy.scorers[0].scorer.plugin
    assert profile.picker.plugin == policy.picker.plugin


# --- third parties ------------------------------------------------------------------------------


class Third:
    """A scorer of a third party that remembers its parameters."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = parameters

    def score(self, work: Work, candidates: list[Any]) -> list[float]:  # noqa: ARG002 - interface
        """Score the last candidate best."""
        return [i / len(candidates) for i in range(len(candidates))]


THIRD = [{"type": "third", "parameters": {"a": 1}}, {"type": "max-score-picker"}]
THIRD_REFS = [{"pluginRef": "third"}, {"pluginRef": "max-score-picker"}]


def test_a_third_partys_plugin_gets_its_parameters_and_scores() -> None:
    """Expect it to be made by its factory, and its scores to count."""
    asked = []

    def find(kind: str) -> type[Third]:
        asked.append(kind)
        return Third

    profile: Any = Builder(find, Faults().report).build(config(THIRD, THIRD_REFS))
    assert asked == ["third"]
    assert profile.scorers[0].scorer.plugin.parameters == {"a": 1}
    assert not profile.scorers[0].scorer.is_trusted
    assert profile.run(Work(1), candidates(*[(0, Busy())] * 3), FIRST).order[0] == 2


def broken(_parameters: Mapping[str, Any]) -> object:
    """Fail to make a plugin."""
    raise ValueError("needs a key")


@pytest.mark.parametrize(
    ("factory", "fault"),
    [
        (broken, "plugin 'third': ValueError: needs a key"),
        (lambda _parameters: object(), "plugin 'third' is no filter, scorer or picker"),
        (lambda: Third({}), "plugin 'third': TypeError: "),
    ],
)
def test_a_broken_plugin_is_named(factory: Any, fault: str) -> None:
    """Expect the start to fail with the plugin's type and what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        Builder(lambda _kind: factory, Faults().report).build(config(THIRD, THIRD_REFS))
    assert caught.value.faults[0].startswith(f"router.profile.plugins.0: {fault}")


# --- the settings -------------------------------------------------------------------------------


def written(tmp_path: Path, router: Mapping[str, Any]) -> Path:
    """Write a configuration file with a router section."""
    file = tmp_path / "kvatlas.yaml"
    file.write_text(yaml.safe_dump({"router": dict(router)}))
    return file


def test_a_profile_in_the_file_is_what_is_built(tmp_path: Path) -> None:
    """Expect the file's plugins, and the command line not to get in their way."""
    settings = load(written(tmp_path, {"profile": config()}), {"router": {"port": 1}})
    profile: Any = build_profile(settings.router)
    assert [each.scorer.name for each in profile.scorers] == [ref["pluginRef"] for ref in REFS[1:4]]


def test_policy_and_profile_exclude_each_other(tmp_path: Path) -> None:
    """Expect a fault instead of one of them being ignored."""
    with pytest.raises(ConfigError, match="policy and profile exclude each other"):
        load(written(tmp_path, {"profile": config(), "policy": "prefix"}))


def test_a_profile_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect JSON to be read as any other setting that is not a single value."""
    monkeypatch.setenv("KVATLAS_ROUTER__PROFILE", yaml.safe_dump(config(), default_flow_style=True))
    with pytest.raises(ConfigError):
        load(None)
    monkeypatch.setenv("KVATLAS_ROUTER__PROFILE", json.dumps(config()))
    assert load(None).router.profile == config()


def test_session_plugins_go_with_sessions() -> None:
    """Expect no fault once a header tells conversations apart."""
    plugins = [*PLUGINS, {"type": "session-affinity-filter"}]
    profile = config(plugins, [*REFS, {"pluginRef": "session-affinity-filter"}])
    session = SessionSettings(id_headers=["x-session-id"])
    build_profile(RouterSettings(profile=profile, session=session))
    with pytest.raises(ConfigError, match=r"needs router\.session"):
        build_profile(RouterSettings(profile=profile))


def test_a_plugin_that_remembers_is_told_of_decisions() -> None:
    """Expect cold requests to go round, one endpoint after the other."""
    profile, known = built("no-hit-lru-scorer", "max-score-picker"), candidates(*[(0, Busy())] * 3)
    chosen = []
    for _ in range(6):
        chosen.append(profile.run(Work(1), known, FIRST).order[0])
        profile.note(Work(1), known, chosen[-1])
    assert chosen == [0, 1, 2, 0, 1, 2]

"""llm-d's EndpointPickerConfig: what is around scheduling, faults, and a file of ours over it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d import merged, translate
from kvatlas.common.llm_d.plugin_types import USES
from kvatlas.router.scheduling.registry import OURS
from tests.fakes.llm_d import faults, faults_of, plugin, translated

PRECISE = "precise-prefix-cache-producer"


# --- what is around -------------------------------------------------------------------------------


def test_parsers_say_which_bodies_are_taken() -> None:
    """Expect everything to be taken where the one that does not read is there, or none is named."""
    parsers = {"parsers": [{"pluginRef": "openai-parser"}, {"pluginRef": "passthrough-parser"}]}
    for sections, passes in (
        ({}, True),
        ({"requestHandler": {}}, True),
        ({"requestHandler": parsers}, True),
        ({"requestHandler": {"parsers": [{"pluginRef": "openai-parser"}]}}, False),
        ({"parser": {"pluginRef": "openai-parser"}}, False),
        ({"parser": {"pluginRef": "passthrough-parser"}}, True),
        ({"parser": {"pluginRef": "openai-parser"}, "requestHandler": parsers}, True),
    ):
        found = translated("queue-scorer", **sections)
        assert found.content["picker"] == {"passthrough": passes}
    found = translated(
        plugin("openai-parser", "mine"),
        "queue-scorer",
        requestHandler={"parsers": [{"pluginRef": "mine"}]},
    )
    assert found.warnings == ["bodies are read by our own parsers (openai-parser)"]
    unknown = {"parsers": [{"pluginRef": "vertexai-parser"}]}
    assert faults_of("queue-scorer", requestHandler=unknown) == [
        "requestHandler.parsers.0.pluginRef: there is no plugin named 'vertexai-parser'"
    ]


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("haPopulateNonLeaderDatastore", ["feature gates without a counterpart (%s)"]),
        ("flowControl=false", []),
        (
            "flowControl",
            ["requests do not queue by priority and fairness (featureGates: %s)"],
        ),
    ],
)
def test_feature_gates_are_known(gate: str, expected: list[str]) -> None:
    """Expect those of llm-d to be warned of where they are open."""
    found = translated("queue-scorer", featureGates=[gate]).warnings
    assert found == [each % gate for each in expected]


def test_what_is_around_is_looked_through() -> None:
    """Expect references to plugins that are not there, wherever they stand."""
    found = faults_of(
        "queue-scorer",
        featureGates=["flowControl=maybe", "other"],
        flowControl={
            "defaultPriorityBand": {"fairnessPolicyRef": "a"},
            "priorityBands": [{"priority": 1, "orderingPolicyRef": "b"}],
            "usageLimitPolicyPluginRef": "c",
            "saturationDetector": {"pluginRef": "d"},
        },
        saturationDetector={"pluginRef": "e"},
        dataLayer={"sources": [{"pluginRef": "f", "extractors": [{"pluginRef": "g"}]}]},
    )
    assert found == [
        "featureGates.0: is written flowControl=true or =false",
        "featureGates.1: unknown feature gate 'other'",
        "flowControl.usageLimitPolicyPluginRef: there is no plugin named 'c'",
        "flowControl.saturationDetector.pluginRef: there is no plugin named 'd'",
        "flowControl.defaultPriorityBand.fairnessPolicyRef: there is no plugin named 'a'",
        "flowControl.priorityBands.0.orderingPolicyRef: there is no plugin named 'b'",
        "saturationDetector.pluginRef: there is no plugin named 'e'",
        "dataLayer.sources.0.pluginRef: there is no plugin named 'f'",
        "dataLayer.sources.0.extractors.0.pluginRef: there is no plugin named 'g'",
    ]


def test_what_is_done_without_is_named() -> None:
    """Expect one warning of each kind, with all that it is about."""
    found = translated(
        "queue-scorer",
        "probabilistic-admitter",
        "latency-slo-admitter",
        "request-attribute-reporter",
        "local-syncer",
        "dcgm-data-source",
        dataLayer={
            "peerDiscovery": {"pluginRef": "local-syncer"},
            "crossReplicaSyncerPluginRef": "local-syncer",
        },
        flowControl={},
        saturationDetector={"pluginRef": "utilization-detector"},
        schedulingProfiles=[{"name": "a", "plugins": [{"pluginRef": "queue-scorer"}]}],
    )
    assert found.warnings == [
        "requests do not queue by priority and fairness (flowControl)",
        "nothing is refused or held for a saturated pool (utilization-detector)",
        "nothing is refused for its priority (probabilistic-admitter, latency-slo-admitter)",
        "no attribute is reported to the gateway (request-attribute-reporter)",
        "engines are watched in our own way (local-syncer, dcgm-data-source)",
        "replicas share what they know through Redis (local-syncer)",
    ]


def test_metrics_are_read_as_often_and_as_we_do() -> None:
    """Expect the interval, and warnings of other places and names."""
    found = translated(
        plugin("metrics-data-source", interval="250ms", path="/m", port=9000),
        plugin("core-metrics-extractor", engineConfigs=[{"name": "mine"}]),
        "queue-scorer",
    )
    assert found.content["router"]["metrics_interval_s"] == pytest.approx(0.25)
    assert "metrics are read at /metrics where requests go (metrics-data-source)" in found.warnings
    assert "only vLLM's metrics are read (core-metrics-extractor)" in found.warnings
    plain = translated("metrics-data-source", "core-metrics-extractor", "queue-scorer")
    assert plain.warnings == [
        "engines are watched in our own way (metrics-data-source, core-metrics-extractor)"
    ]
    assert "metrics_interval_s" not in plain.content["router"]


def test_endpoints_may_stand_in_a_file() -> None:
    """Expect the place, in the words of either version."""
    file = plugin("file-discovery", "f", path="/e.yaml", watchFile=True)
    refs: tuple[dict[str, Any], ...] = ({"pluginRef": "f"}, {"endpoints": {"pluginRef": "f"}})
    for each in refs:
        found = translated(file, "queue-scorer", dataLayer={"discovery": each})
        assert found.content["discovery"] == [{"kind": "file", "path": "/e.yaml"}]
    assert "discovery" not in translated(file, "queue-scorer", dataLayer={}).content


ONE_REF = ": needs one pluginRef, its own or under endpoints"


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({}, ONE_REF),
        ({"pluginRef": "f", "endpoints": {"pluginRef": "f"}}, ONE_REF),
        ({"pluginRef": "queue-scorer"}, ".pluginRef: queue-scorer finds no endpoints"),
        ({"pluginRef": "none"}, ".pluginRef: there is no plugin named 'none'"),
    ],
)
def test_what_finds_no_endpoints_is_a_fault(spec: dict[str, Any], fault: str) -> None:
    """Expect to be told what is wrong with the place."""
    file = plugin("file-discovery", "f", path="/e.yaml")
    found = faults_of(file, "queue-scorer", dataLayer={"discovery": spec})
    assert found == [f"dataLayer.discovery{fault}"]


def test_a_file_of_endpoints_has_a_path() -> None:
    """Expect one fault where it has none."""
    sections = {"discovery": {"pluginRef": "file-discovery"}}
    assert faults_of("file-discovery", "queue-scorer", dataLayer=sections) == [
        "plugins.0.parameters.path: Field required"
    ]


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", "the configuration is not YAML in line 1"),
        ("a: \x00", "the configuration is not YAML"),
        ("- a", "the configuration is not a mapping"),
        ("1: 2", "the configuration is not a mapping"),
        ("a" * 3_000_000, "the configuration is too long"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, fault: str) -> None:
    """Expect one fault."""
    assert faults(text) == [fault]


def test_every_fault_is_told_at_once() -> None:
    """Expect a line for each, with its path in the file, whoever finds it."""
    text = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "EndpointPickerConfig",
            "surprise": 1,
            "plugins": [
                {"type": "openai-parser"},
                {"type": "queue-scorer", "parameters": {"nonsense": 1}},
                {"type": "magic-scorer"},
                {"type": "queue-scorer"},
                {"name": "typeless"},
                {"type": "load-aware-scorer", "odd": 1},
                "text",
                {"type": "header-profile-handler"},
                {"type": "endpoint-attribute-scorer"},
                {"type": "topology-affinity-filter"},
            ],
            "schedulingProfiles": [
                {
                    "name": "default",
                    "plugins": [
                        {"pluginRef": "openai-parser"},
                        {"pluginRef": "queue-scorer", "weight": -1},
                        {"pluginRef": "load-aware-scorer"},
                        {"pluginRef": "nobody"},
                        {"pluginRef": "endpoint-attribute-scorer"},
                        {"weight": 1},
                    ],
                }
            ],
            "flowControl": {"maxBytes": "much", "defaultRequestTTL": "60"},
        }
    )
    assert faults(text) == [
        (
            "apiVersion: Input should be 'llm-d.ai/v1alpha1' or"
            " 'inference.networking.x-k8s.io/v1alpha1'"
        ),
        "surprise: unknown field",
        "plugins.2.type: unknown plugin 'magic-scorer'",
        "plugins.3: the name 'queue-scorer' is there twice",
        "plugins.4.type: Field required",
        "plugins.5.odd: unknown field",
        "plugins.6: Input should be a valid dictionary or instance of PluginSpec",
        "schedulingProfiles.0.plugins.3.pluginRef: there is no plugin named 'nobody'",
        "schedulingProfiles.0.plugins.5.pluginRef: Field required",
        "plugins.7.type: there is nothing like header-profile-handler here",
        "flowControl.maxBytes: is a quantity such as 5000, 1G or 8Gi",
        "flowControl.defaultRequestTTL: is a duration such as 500ms or 1m30s",
        (
            "schedulingProfiles.0.plugins.4.pluginRef: there is nothing like"
            " endpoint-attribute-scorer here"
        ),
        "plugins.1.parameters.nonsense: unknown",
        "schedulingProfiles.0.plugins.1.weight: Input should be greater than or equal to 0",
        "schedulingProfiles.0: has no scorer with a weight above 0",
    ]


def test_faults_of_what_we_add_have_a_path_too() -> None:
    """Expect the profile to be named where two plugins pick."""
    assert faults_of("max-score-picker", "random-picker", "queue-scorer") == [
        "schedulingProfiles.0: has more than one picker"
    ]


def test_a_profile_that_cannot_be_read_is_the_fault() -> None:
    """Expect no further ones of it."""
    assert faults_of("queue-scorer", schedulingProfiles=[{"plugins": []}]) == [
        "schedulingProfiles.0.name: Field required"
    ]


def test_every_type_of_llm_d_has_a_use() -> None:
    """Expect what schedules to be one of our own types, so that none is forgotten there."""
    ours = {kind for kind, use in USES.items() if use in ("scorer", "filter", "picker", "session")}
    assert ours - {"by-label-selector"} <= set(OURS)


# --- with a file of ours --------------------------------------------------------------------------


def test_our_own_file_says_more() -> None:
    """Expect models of the same name to be one, lists to be joined, and our settings to count."""
    found = translated(
        plugin("token-producer", modelName="m"),
        plugin(PRECISE, indexerConfig={"kvCacheBackendConfigs": [{"name": "cpu", "weight": 0.5}]}),
        plugin("file-discovery", path="/a"),
        plugin("metrics-data-source", interval="1s"),
        "queue-scorer",
        dataLayer={"discovery": {"pluginRef": "file-discovery"}},
    )
    own = {
        "models": [
            {"name": "m", "tokenizer": "/models/m"},
            {"name": "n", "tokenizer": "/models/n", "tier_weights": {"cpu": 1.0}},
            "odd",
        ],
        "discovery": [{"kind": "dns", "host": "h", "replay_port": 7}],
        "endpoints": [{"url": "http://e:1", "model": "m"}],
        "router": {"metrics_interval_s": 2},
    }
    added = {"models": [{"name": "n", "tokenizer": "/other"}], "discovery": [{"kind": "pods"}]}
    whole = merged(own, found, added)
    weights = {"cpu": 0.5}
    assert whole["models"] == [
        {
            "name": "m",
            "tokenizer": "/models/m",
            "render_url": "http://localhost:8000",
            "tier_weights": weights,
        },
        {"name": "n", "tokenizer": "/other", "tier_weights": {"cpu": 1.0}},
        "odd",
    ]
    assert whole["discovery"] == [
        {"kind": "file", "path": "/a", "events_port": 5557, "replay_port": None},
        {"kind": "dns", "host": "h", "events_port": 5557, "replay_port": 7},
        {"kind": "pods", "events_port": 5557, "replay_port": None},
    ]
    assert whole["router"]["metrics_interval_s"] == 2
    assert "profile" in whole["router"]
    assert whole["endpoints"] == own["endpoints"]
    assert found.content["router"]["metrics_interval_s"] == 1.0


def test_one_of_both_says_how_to_choose() -> None:
    """Expect a fault where both do, and ours instead of llm-d's default."""
    own = {"router": {"policy": "least-load"}}
    with pytest.raises(ConfigError, match=r"router\.policy: llm-d's configuration"):
        merged(own, translated("queue-scorer"))
    assert merged(own, translate(None))["router"] == {"policy": "least-load"}
    assert merged({"router": 5}, translate(None))["router"] == 5
    assert merged({"models": 5, "discovery": 5}, translate(None))["models"] == 5

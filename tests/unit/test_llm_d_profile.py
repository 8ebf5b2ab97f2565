"""Which plugins of llm-d's schedule, and how conversations are told apart."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common.llm_d import merged, translate
from kvatlas.common.settings import load_content
from kvatlas.router.profiles import profile_faults
from tests.fakes.llm_d import EXAMPLE, HERMETIC, STAGES, entry, faults_of, plugin, refs, translated

# --- scheduling -----------------------------------------------------------------------------------


def test_llm_d_s_example_is_a_configuration_of_ours() -> None:
    """Expect models, rendering, index, events, places and weights, and warnings of the rest."""
    text = EXAMPLE.replace("MODEL", "Qwen/Qwen3-8B").replace("FILE", "/e.yaml")
    found = translate(text.replace("REDIS", "redis-0:6379"), profile_faults)
    assert refs(found) == [
        ("active-request-scorer", 4.0),
        ("kv-cache-utilization-scorer", 2.0),
        ("prefix-cache-scorer", 2.0),
        ("no-hit-lru-scorer", 2.0),
        ("max-score-picker", None),
    ]
    assert found.content["models"] == [
        {
            "name": "Qwen/Qwen3-8B",
            "tokenizer": "Qwen/Qwen3-8B",
            "render_url": "http://localhost:8000",
        }
    ]
    assert found.content["redis"] == {"url": "redis://redis-0:6379"}
    assert found.content["discovery"] == [{"kind": "file", "path": "/e.yaml"}]
    assert found.content["picker"] == {"passthrough": False}
    assert found.of_discovery == {"events_port": 5557, "replay_port": 5558}
    assert found.warnings == [
        (
            "requests do not queue by priority and fairness (featureGates: flowControl,"
            " flowControl, round-robin-fairness-policy, edf-ordering-policy,"
            " static-usage-limit-policy)"
        ),
        "nothing is refused or held for a saturated pool (utilization-detector)",
        (
            "prefill, decode and encode are not told apart (disagg-headers-handler,"
            " prefix-based-pd-decider)"
        ),
        "a renderer is waited for as long as models[].render_timeout_s says (timeout, mmTimeout)",
        "bodies are read by our own parsers (openai-parser, anthropic-parser)",
        "engines are watched in our own way (endpoint-notification-source)",
    ]
    settings = load_content(merged({}, found))
    assert settings.discovery[0].replay_port == 5558
    assert settings.models[0].render_url == "http://localhost:8000"


def test_without_a_configuration_llm_d_s_own_counts() -> None:
    """Expect queue 2, cache 2, prefix 3, and everything taken that a parser does not know."""
    for text in (None, "", " \n"):
        found = translate(text, profile_faults)
        assert found.is_default
        assert refs(found) == [
            ("queue-scorer", 2.0),
            ("kv-cache-utilization-scorer", 2.0),
            ("prefix-cache-scorer", 3.0),
            ("max-score-picker", None),
        ]
        assert found.content["picker"] == {"passthrough": True}
        assert [each.partition(":")[0] for each in found.warnings] == [
            "matches come from engines' KV events, not from what was sent before"
        ]


def test_the_configuration_of_llm_d_s_black_box_tests() -> None:
    """Expect its four scorers, each of weight 1 by default, and the older version of the API."""
    assert refs(translate(HERMETIC, profile_faults)) == [
        ("queue-scorer", None),
        ("kv-cache-utilization-scorer", None),
        ("prefix-cache-scorer", None),
        ("lora-affinity-scorer", None),
        ("max-score-picker", None),
    ]


def test_of_stages_decode_decides() -> None:
    """Expect its filter and scorer, and to be told which profiles are not run."""
    found = translate(STAGES, profile_faults)
    assert refs(found) == [
        ("decode-filter", None),
        ("queue-scorer", 1.0),
        ("max-score-picker", None),
    ]
    assert found.warnings == [
        (
            "prefill, decode and encode are not told apart (disagg-headers-handler,"
            " always-disagg-multimodal-decider, prefix-based-pd-decider, disagg-profile-handler,"
            " encode-filter, prefill-filter)"
        ),
        "profile 'decode' decides for a whole request, others are not run (encode, prefill)",
    ]


def test_the_profile_of_a_stage_can_have_any_name() -> None:
    """Expect the handler to say it, in the way of either version; a missing one is a fault."""
    profiles = [
        {"name": "p", "plugins": []},
        {"name": "d", "plugins": [{"pluginRef": "queue-scorer"}]},
    ]
    for handler in (
        plugin("disagg-profile-handler", profiles={"decode": "d", "prefill": "p"}),
        plugin("pd-profile-handler", decodeProfile="d", prefillProfile="p"),
    ):
        found = translated(handler, "queue-scorer", schedulingProfiles=profiles)
        assert refs(found)[0] == ("queue-scorer", None)
    missing = faults_of("disagg-profile-handler", "queue-scorer", schedulingProfiles=profiles)
    assert missing == ["schedulingProfiles: disagg-profile-handler needs a profile 'decode'"]
    one = [{"name": "decode", "plugins": [{"pluginRef": "queue-scorer"}]}]
    found = translated("disagg-profile-handler", "queue-scorer", schedulingProfiles=one)
    assert found.warnings[-1] == "profile 'decode' decides for a whole request"


def test_several_profiles_need_a_handler_that_chooses() -> None:
    """Expect a fault without one, with one that does not, and with two."""
    profiles = [{"name": each, "plugins": [{"pluginRef": "queue-scorer"}]} for each in "ab"]
    for handler in ((), ("single-profile-handler",)):
        assert faults_of(*handler, "queue-scorer", schedulingProfiles=profiles) == [
            "schedulingProfiles: several profiles need a disagg-profile-handler"
        ]
    two = faults_of("single-profile-handler", "disagg-profile-handler", "queue-scorer")
    assert two[0] == (
        "plugins: there may be one profile handler, not single-profile-handler,"
        " disagg-profile-handler"
    )


def test_what_a_profile_lacks_is_added() -> None:
    """Expect a picker, the configured one if there is one, and a scorer that scores alike."""
    found = translated("random-picker", schedulingProfiles=[{"name": "x"}])
    assert refs(found) == [("random-picker", None), ("even-scorer", None)]
    found = translated("decode-filter", "weighted-random-picker")
    assert refs(found) == [
        ("decode-filter", None),
        ("weighted-random-picker", None),
        ("even-scorer", None),
    ]


def test_without_profiles_all_plugins_make_one() -> None:
    """Expect every filter, scorer and picker in it, and nothing else."""
    plugins = ("queue-scorer", "decode-filter", "random-picker", "openai-parser")
    assert refs(translated(*plugins, schedulingProfiles=[])) == [
        ("queue-scorer", None),
        ("decode-filter", None),
        ("random-picker", None),
    ]


def test_weights_count_for_scorers_only() -> None:
    """Expect that of a filter to be passed over, as llm-d does."""
    profile = [
        {
            "name": "default",
            "plugins": [
                {"pluginRef": "decode-filter", "weight": 5},
                {"pluginRef": "queue-scorer", "weight": 0.5},
            ],
        }
    ]
    found = translated("decode-filter", "queue-scorer", schedulingProfiles=profile)
    assert refs(found)[:2] == [("decode-filter", None), ("queue-scorer", 0.5)]


def test_older_types_and_parameters_are_known() -> None:
    """Expect what they are called since; what belonged to an index that guesses is left out."""
    found = translated(
        plugin("by-label-selector", matchLabels={"a": "b"}),
        plugin("by-label", label="a", validValues=["b"]),
        plugin("prefix-cache-scorer", prefixLengthWeight=0.5, maxModelLen=16_384),
        plugin("prefix-cache-scorer", "old", hashBlockSize=64, lruCapacityPerServer=31_250),
        plugin("precise-prefix-cache-scorer", "exact", speculativeIndexing=True),
    )
    assert entry(found, "by-label-selector")["type"] == "label-selector-filter"
    assert entry(found, "prefix-cache-scorer")["parameters"] == {
        "matchLengthWeight": 0.5,
        "matchLengthScaleTokens": 16_384,
    }
    assert "parameters" not in entry(found, "old")
    assert entry(found, "exact") == {"type": "prefix-cache-scorer", "name": "exact"}
    assert "an index that guesses has no place here (old)" in found.warnings
    assert refs(found)[4] == ("exact", None)


def test_a_saturation_detector_in_a_profile_is_a_filter() -> None:
    """Expect its bounds with its headroom; the one that knows engines gives in to a full pool."""
    found = translated(
        plugin("utilization-detector", queueDepthThreshold=10, headroom=0.5),
        plugin("concurrency-detector", maxConcurrency=50, headroom=0.1),
        "queue-scorer",
    )
    assert entry(found, "utilization-detector")["parameters"] == {
        "conditions": [
            {"metric": "waiting-queue", "maxValue": 15.0},
            {"metric": "kv-cache-utilization", "maxValue": 1.0},
        ],
        "fallbackOnEmpty": True,
    }
    assert entry(found, "concurrency-detector")["parameters"]["conditions"] == [
        {"metric": "active-requests", "maxValue": pytest.approx(55)}
    ]
    assert not [each for each in found.warnings if "saturated" in each]
    assert faults_of(plugin("concurrency-detector", concurrencyMode="tokens"), "queue-scorer") == [
        "plugins.0.parameters.concurrencyMode: only requests are counted where it is a filter"
    ]


def test_a_picker_says_how_many_endpoints_a_gateway_is_told() -> None:
    """Expect the number, up to what we tell at most; a wrong one is the picker's fault."""
    for count, told in ((1, None), (3, 3), (20, 8)):
        found = translated(plugin("max-score-picker", maxNumOfEndpoints=count), "queue-scorer")
        assert found.content["picker"].get("destinations") == told
    assert "a gateway is told 8 endpoints at most (maxNumOfEndpoints)" in found.warnings
    assert faults_of(plugin("max-score-picker", maxNumOfEndpoints=0), "queue-scorer") == [
        "plugins.0.parameters.maxNumOfEndpoints: Input should be greater than or equal to 1"
    ]
    (fault,) = faults_of(plugin("max-score-picker", maxNumOfEndpoints="2"), "queue-scorer")
    assert fault.startswith("plugins.0.parameters.maxNumOfEndpoints")


def test_latency_is_not_predicted() -> None:
    """Expect the scorer without predictions, and the filter of predictions to keep everybody."""
    found = translated("predicted-latency-producer", "slo-headroom-tier-filter", "latency-scorer")
    assert refs(found) == [("latency-scorer", None), ("max-score-picker", None)]
    assert found.warnings[0] == (
        "no latency is predicted to compare with wishes (predicted-latency-producer,"
        " slo-headroom-tier-filter, latency-scorer)"
    )


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "section"),
    [
        ({}, {"header": "x-session-token"}),
        ({"strategy": "encoded_endpoint_header"}, {"header": "x-session-token"}),
        ({"encodedEndpointHeaderConfig": {"header": "x-mine"}}, {"header": "x-mine"}),
        ({"headerName": "x-old"}, {"header": "x-old"}),
        ({"strategy": "session_id"}, {"id_headers": ["x-session-id"]}),
        (
            {
                "strategy": "session_id",
                "sessionIdConfig": {
                    "sources": [{"header": "x-a"}, {"header": "x-b"}, {"header": "x-a"}],
                    "evictionTtlSeconds": 300,
                },
            },
            {"id_headers": ["x-a", "x-b"]},
        ),
        (
            {"algorithm": "session_id_header", "missThreshold": 3, "evictionSweepSeconds": 30},
            {"id_headers": ["x-session-token"]},
        ),
        ({"algorithm": "session_id_header", "headerName": "x-c"}, {"id_headers": ["x-c"]}),
    ],
)
@pytest.mark.parametrize("kind", ["session-affinity-scorer", "session-affinity-filter"])
def test_sessions_become_a_section(
    kind: str, parameters: dict[str, Any], section: dict[str, Any]
) -> None:
    """Expect the header of a token, or those of an id, with llm-d's defaults."""
    found = translated(plugin(kind, **parameters))
    assert found.content["router"]["session"] == section
    assert entry(found, kind) == {"type": kind, "name": kind}


def test_ids_may_come_from_plugins_that_read_headers() -> None:
    """Expect the headers that these read; what is no header is a fault."""

    def section(source: dict[str, str], *plugins: Any) -> Any:
        ids = {"sources": [source]}
        affine = plugin("session-affinity-filter", strategy="session_id", sessionIdConfig=ids)
        return translated(affine, *plugins).content["router"]["session"]["id_headers"]

    producer = plugin("session-id-producer", headerName="x-id")
    assert section({"attribute": "SessionID", "producer": "session-id-producer"}, producer) == [
        "x-id"
    ]
    assert section({"attribute": "session-id-producer"}, "session-id-producer") == ["x-session-id"]
    agents = plugin("agent-identity", additionalSessionHeaders=["x-agent"])
    assert section({"attribute": "agent-identity"}, agents) == [
        "x-claude-code-session-id",
        "x-session-affinity",
        "session-id",
        "session_id",
        "x-agent",
    ]
    path = "plugins.0.parameters.sessionIdConfig.sources.0"
    for source in ({"attribute": "other"}, {"attribute": "s"}):
        ids = {"sources": [source]}
        affine = plugin("session-affinity-filter", strategy="session_id", sessionIdConfig=ids)
        assert faults_of(affine, plugin("session-id-producer", "s", cookieName="c")) == [
            f"{path}.attribute: is not a header that requests have"
        ]
    both = {"sources": [{"header": "a", "attribute": "b"}]}
    affine = plugin("session-affinity-filter", strategy="session_id", sessionIdConfig=both)
    assert faults_of(affine) == [f"{path}: has either header or attribute"]


def test_only_the_profile_that_decides_tells_conversations_apart() -> None:
    """Expect those of another stage to count for nothing, and two headers to be a fault."""
    decode = plugin("session-affinity-filter", "d")
    prefill = plugin("session-affinity-filter", "p", headerName="x-p", profileName="prefill")
    profiles = [
        {"name": "decode", "plugins": [{"pluginRef": "d"}]},
        {"name": "prefill", "plugins": [{"pluginRef": "p"}]},
    ]
    found = translated("disagg-profile-handler", decode, prefill, schedulingProfiles=profiles)
    assert found.content["router"]["session"] == {"header": "x-session-token"}
    assert faults_of(decode, prefill) == [
        "plugins.1.parameters: conversations have one header, not x-session-token too"
    ]

"""What llm-d's plugins say of models, rendering, the index and events."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.llm_d import faults_of, plugin, translated

PRECISE = "precise-prefix-cache-producer"


# --- models, index, events ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, "http://localhost:8000"),
        ("http://render", "http://render:80"),
        ("https://render", "https://render:443"),
        ("https://render:8443/", "https://render:8443"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_renderer_is_written_with_its_port(url: str | None, expected: str) -> None:
    """Expect the default of the scheme where none is there."""
    vllm = {} if url is None else {"url": url}
    found = translated(plugin("token-producer", modelName="m", vllm=vllm), "queue-scorer")
    assert found.content["models"] == [{"name": "m", "tokenizer": "m", "render_url": expected}]


@pytest.mark.parametrize(
    "url", ["render:8000", "ftp://x", "http://x/p", "http://u@x", "http://x:0x", "http://"]
)
def test_what_is_no_address_of_a_renderer_is_a_fault(url: str) -> None:
    """Expect to be told how it is written."""
    assert faults_of(plugin("token-producer", modelName="m", vllm={"url": url})) == [
        "plugins.0.parameters.vllm.url: is written http://host:port"
    ]


def test_what_produces_tokens_names_models() -> None:
    """Expect a model of each name, and a renderer only where llm-d asks one."""
    found = translated(
        plugin("token-producer", modelName="m"),
        plugin("tokenizer", modelName="m", udsTokenizerConfig={"socketFile": "/x"}),
        plugin("token-producer", "guess", estimate={"image": {"mode": "static"}}),
        plugin("token-producer", "found", modelName="n", vllm={"endpointDiscovery": {}}),
        plugin(
            "token-producer",
            "secure",
            modelName="s",
            vllm={
                "url": "https://r:1",
                "caCertPath": "/ca",
                "clientCertPath": "/c",
                "clientKeyPath": "/k",
                "insecureSkipVerify": True,
            },
        ),
        "queue-scorer",
    )
    assert found.content["models"] == [
        {"name": "m", "tokenizer": "m", "render_url": "http://localhost:8000"},
        {"name": "n", "tokenizer": "n"},
        {"name": "s", "tokenizer": "s", "render_url": "https://r:1"},
    ]
    assert found.content["endpoint_tls"] == {"ca_file": "/ca", "cert_file": "/c", "key_file": "/k"}
    assert found.warnings == [
        "prompts are tokenized here (udsTokenizerConfig)",
        "prompts are rendered here (endpointDiscovery)",
        "certificates of renderers are verified (insecureSkipVerify)",
    ]
    both = {"url": "http://r:1", "endpointDiscovery": {}}
    assert faults_of(plugin("token-producer", modelName="m", vllm=both)) == [
        "plugins.0.parameters.vllm: url and endpointDiscovery exclude each other"
    ]
    assert faults_of(plugin("token-producer", vllm={}), plugin(PRECISE, odd=1)) == [
        "plugins.0.parameters: modelName is needed with vllm",
        "plugins.1.parameters.odd: unknown field",
    ]


@pytest.mark.parametrize(
    ("kind", "address", "url"),
    [
        ("redisConfig", "redis:6379", "redis://redis:6379"),
        ("redisConfig", "", "redis://127.0.0.1:6379"),
        ("redisConfig", "rediss://u:p@r:1/2", "rediss://u:p@r:1/2"),
        ("redisConfig", "unix:///run/r", "unix:///run/r"),
        ("valkeyConfig", "valkey://v:1", "redis://v:1"),
        ("valkeyConfig", "valkeys://v:1", "rediss://v:1"),
    ],
)
def test_the_index_stays_where_it_is(kind: str, address: str, url: str) -> None:
    """Expect Redis at the address of llm-d's."""
    store = {kind: {"address": address, "enableRDMA": True}}
    found = translated(plugin(PRECISE, indexerConfig={"kvBlockIndexConfig": store}))
    assert found.content["redis"] == {"url": url}
    assert "Redis is spoken to over TCP (enableRDMA)" in found.warnings


def test_an_address_that_is_none_is_a_fault() -> None:
    """Expect it to be named without its value, which may hold a password."""
    store = {"redisConfig": {"address": "http://u:secret@r:1"}}
    path = "plugins.0.parameters.indexerConfig.kvBlockIndexConfig.redisConfig.address"
    assert faults_of(plugin(PRECISE, indexerConfig={"kvBlockIndexConfig": store})) == [
        f"{path}: is an address of Redis"
    ]


def test_tiers_weigh_what_they_are_told() -> None:
    """Expect our names of them; what is not named keeps its weight, or gets the default one."""
    backends = [{"name": "GPU", "weight": 1.0}, {"name": "cpu", "weight": 0.7}]
    found = translated(plugin(PRECISE, indexerConfig={"kvCacheBackendConfigs": backends}))
    assert found.of_models == {"tier_weights": {"gpu": 1.0, "cpu": 0.7}}
    more = [*backends, {"name": "storage", "weight": 0.3}]
    indexer = {"kvCacheBackendConfigs": more, "kvCacheDefaultBackendWeight": 0.2}
    found = translated(plugin(PRECISE, indexerConfig=indexer))
    assert found.of_models == {"tier_weights": {"gpu": 1.0, "cpu": 0.7, "disk": 0.3, "remote": 0.2}}


def test_events_are_had_where_engines_tell_them() -> None:
    """Expect the ports of all places, with a word on what is lost without replays."""
    pods = {"socketPort": 6000, "replaySocketPort": 6001, "podLabelSelector": "a=b"}
    found = translated(plugin(PRECISE, kvEventsConfig={"podDiscoveryConfig": pods}))
    assert found.of_discovery == {"events_port": 6000, "replay_port": 6001}
    assert found.warnings == []
    found = translated(PRECISE)
    assert found.of_discovery == {"events_port": 5557, "replay_port": None}
    assert found.warnings == ["each gap in events is a new beginning without replaySocketPort"]
    found = translated(plugin(PRECISE, kvEventsConfig={"discoverPods": False}))
    assert found.of_discovery == {"events_port": None, "replay_port": None}


def test_events_that_cannot_reach_us_are_a_fault() -> None:
    """Expect engines that would connect here, and other engines' events, to be refused."""
    path = "plugins.0.parameters.kvEventsConfig"
    (fault,) = faults_of(plugin(PRECISE, kvEventsConfig={"zmqEndpoint": "tcp://*:5557"}))
    assert fault.startswith(f"{path}.zmqEndpoint: engines cannot connect to kvatlas")
    events = {"zmqEndpoint": "tcp://*:5557", "discoverPods": True}
    assert (
        "engines cannot connect to kvatlas (zmqEndpoint)"
        in translated(plugin(PRECISE, kvEventsConfig=events)).warnings
    )
    assert faults_of(plugin(PRECISE, kvEventsConfig={"engineType": "sglang"})) == [
        f"{path}.engineType: only events of vllm are read"
    ]


def test_an_older_index_that_tokenizes_names_its_model() -> None:
    """Expect the model, tokenized here."""
    indexer = {"tokenizersPoolConfig": {"modelName": "m", "hf": {"token": "x"}}}
    found = translated(plugin("precise-prefix-cache-scorer", indexerConfig=indexer))
    assert found.content["models"] == [{"name": "m", "tokenizer": "m"}]
    assert "prompts are tokenized here (tokenizersPoolConfig)" in found.warnings
    nameless: dict[str, Any] = {"tokenizersPoolConfig": {}}
    found = translated(plugin("precise-prefix-cache-scorer", indexerConfig=nameless))
    assert "models" not in found.content


def test_an_index_that_guesses_is_told_what_is_different() -> None:
    """Expect a warning where matches were guessed, none where there are events or no matches."""
    guessed = "matches come from engines' KV events, not from what was sent before: engines need"
    with_both = translated("prefix-cache-scorer", PRECISE, "approx-prefix-cache-producer")
    assert f"{guessed} --kv-events-config (approx-prefix-cache-producer)" in with_both.warnings
    alone = translated("prefix-cache-scorer", "no-hit-lru-scorer")
    assert alone.warnings == [
        f"{guessed} --kv-events-config (prefix-cache-scorer, no-hit-lru-scorer)"
    ]
    assert translated("queue-scorer").warnings == []

"""Configurations as llm-d's users have them."""

from __future__ import annotations

from typing import Any, Final

import pytest
import yaml

from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d import Translation, translate
from kvatlas.router.profiles import profile_faults

EXAMPLE: Final = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- type: token-producer
  parameters: {modelName: MODEL, vllm: {url: "http://localhost:8000", timeout: 5s, mmTimeout: 30s}}
- type: endpoint-notification-source
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSizeTokens: 16}
    speculativeIndexing: true
    indexerConfig: {kvBlockIndexConfig: {enableMetrics: true, redisConfig: {address: "REDIS"}}}
    kvEventsConfig:
      topicFilter: "kv@"
      concurrency: 32
      discoverPods: true
      podDiscoveryConfig: {socketPort: 5557, replaySocketPort: 5558}
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: kv-cache-utilization-scorer
- type: active-request-scorer
- type: no-hit-lru-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: file-discovery
  parameters: {path: FILE, watchFile: true}
- type: round-robin-fairness-policy
- type: edf-ordering-policy
- type: static-usage-limit-policy
- type: utilization-detector
- type: openai-parser
- type: anthropic-parser
- type: disagg-headers-handler
- type: prefix-based-pd-decider
  parameters: {nonCachedTokens: 16}
dataLayer:
  injectDefaults: true
  sources:
  - pluginRef: endpoint-notification-source
    extractors: [{pluginRef: precise-prefix-cache-producer}]
  discovery: {pluginRef: file-discovery}
  crossReplicaSyncInterval: 200ms
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: active-request-scorer, weight: 4}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - {pluginRef: no-hit-lru-scorer, weight: 2}
flowControl:
  maxBytes: 8Gi
  maxRequests: 20000
  defaultRequestTTL: 60s
  noEndpointRequestTTL: 300s
  defaultPriorityBand: {maxRequests: 5000}
  defaultNegativePriorityBand: {maxRequests: 10}
  priorityBands:
  - {priority: 10, maxRequests: 5000, maxBytes: 1G, fairnessPolicyRef: round-robin-fairness-policy,
     orderingPolicyRef: edf-ordering-policy}
  usageLimitPolicyPluginRef: static-usage-limit-policy
  saturationDetector: {pluginRef: utilization-detector}
  enableEviction: false
requestHandler:
  parsers: [{pluginRef: openai-parser}, {pluginRef: anthropic-parser}]
"""
"""llm-d's own example, with what it leaves open filled in; MODEL, REDIS and FILE are the test's."""

HERMETIC: Final = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
- type: lora-affinity-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
  - pluginRef: kv-cache-utilization-scorer
  - pluginRef: prefix-cache-scorer
  - pluginRef: lora-affinity-scorer
"""
"""The one of llm-d's black-box tests."""

STAGES: Final = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: disagg-headers-handler
- type: queue-scorer
- type: encode-filter
- type: prefill-filter
- type: decode-filter
- type: always-disagg-multimodal-decider
- type: prefix-based-pd-decider
  parameters:
    nonCachedTokens: 16
- type: disagg-profile-handler
  parameters:
    deciders:
      encode: always-disagg-multimodal-decider
      prefill: prefix-based-pd-decider
schedulingProfiles:
- name: encode
  plugins:
  - pluginRef: encode-filter
- name: prefill
  plugins:
  - pluginRef: prefill-filter
  - {pluginRef: queue-scorer, weight: 1}
- name: decode
  plugins:
  - pluginRef: decode-filter
  - {pluginRef: queue-scorer, weight: 1}
"""
"""Encode, prefill and decode on different engines."""


def config(*plugins: str | dict[str, Any], **sections: Any) -> str:
    """Write a configuration of plugins, each a type or an entry.

    Args:
        plugins: of which each is in the only profile, unless `schedulingProfiles` is given.
        sections: further ones.
    """
    entries = [{"type": each} if isinstance(each, str) else each for each in plugins]
    refs = [{"pluginRef": each.get("name", each["type"])} for each in entries]
    whole = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": entries,
        "schedulingProfiles": [{"name": "default", "plugins": refs}],
    }
    return str(yaml.safe_dump({**whole, **sections}))


def translated(*plugins: str | dict[str, Any], **sections: Any) -> Translation:
    """Translate a configuration of plugins."""
    return translate(config(*plugins, **sections), profile_faults)


def plugin(kind: str, name: str | None = None, **parameters: Any) -> dict[str, Any]:
    """Write a plugin."""
    named = {"name": name} if name is not None else {}
    return {"type": kind, **named, "parameters": parameters}


def faults(text: str) -> list[str]:
    """Give what is wrong with a configuration."""
    with pytest.raises(ConfigError) as caught:
        translate(text, profile_faults)
    return caught.value.faults


def faults_of(*plugins: str | dict[str, Any], **sections: Any) -> list[str]:
    """Give what is wrong with plugins."""
    return faults(config(*plugins, **sections))


def refs(found: Translation) -> list[tuple[str, float | None]]:
    """List the plugins of the profile with their weights."""
    (profile,) = found.content["router"]["profile"]["schedulingProfiles"]
    return [(each["pluginRef"], each.get("weight")) for each in profile["plugins"]]


def entry(found: Translation, name: str) -> dict[str, Any]:
    """Find a plugin of the profile."""
    entries = found.content["router"]["profile"]["plugins"]
    return next(each for each in entries if each["name"] == name)

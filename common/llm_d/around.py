"""What a configuration of llm-d's says of all that is around scheduling. Pure.

Most of it is done without here, or otherwise: it is looked through for faults, and named in
warnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from kvatlas.common.llm_d.parameters import FileDiscovery, MetricsExtractor, MetricsSource
from kvatlas.common.llm_d.plugin_types import STAGED, Use
from kvatlas.common.llm_d.plugins import Plugin, Plugins, Warned
from kvatlas.common.llm_d.profile import Chosen
from kvatlas.common.llm_d.schema import (
    FEATURE_GATES,
    DataLayer,
    FlowControl,
    MaybeRef,
    Reader,
    Ref,
    RequestHandler,
    Whole,
)

_BY_ITSELF: Final = frozenset({
    "global-strict-fairness-policy", "fcfs-ordering-policy", "static-usage-limit-policy",
    "utilization-detector", "openai-parser", "anthropic-parser", "vllmhttp-parser",
    "passthrough-parser", "metrics-data-source", "core-metrics-extractor",
})  # fmt: skip
"""Plugins that llm-d has whether they are named or not."""
_YES: Final = frozenset({"", "1", "t", "true"})
_NO: Final = frozenset({"0", "f", "false"})
_MENTIONED: Final[tuple[Use, ...]] = ("admission", "reports", "prediction")


class Around:
    """Looks through it."""

    def __init__(self, reader: Reader, plugins: Plugins, warned: Warned, whole: Whole) -> None:
        self._reader = reader
        self._plugins = plugins
        self._warned = warned
        self._whole = whole

    def look(self, in_use: Sequence[Plugin]) -> None:
        """Note what is wrong, and what is done without.

        Args:
            in_use: the plugins of the profile that decides.
        """
        self._gates(self._whole.feature_gates or [])
        for each in self._plugins.used("steers"):
            self._reader.faults.append(f"{each.path}.type: there is nothing like {each.type} here")
        self._flow_control()
        self._saturation(in_use)
        for use in _MENTIONED:
            self._mention(use)

    def disaggregation(self, chosen: Chosen | None) -> None:
        """Say who decides where llm-d knows stages."""
        names = [each.name for each in self._plugins.used("disaggregation")]
        in_use = chosen.plugins if chosen is not None else []
        stages = self._plugins.of("encode-filter", "prefill-filter")
        names += [each.name for each in stages if each not in in_use]
        if names:
            self._warned.use("disaggregation", names)
        if chosen is not None and self._plugins.of(*STAGED):
            text = f"profile {chosen.name!r} decides for a whole request"
            self._warned.add(f"{text}, others are not run" if chosen.left else text, *chosen.left)

    def parsing(self) -> dict[str, Any]:
        """Give the settings of the picker that say which bodies are taken."""
        told = self._reader.section(RequestHandler, self._whole.request_handler, "requestHandler")
        old = self._reader.section(Ref, self._whole.parser, "parser")
        named = [(f"requestHandler.parsers.{i}", each) for i, each in enumerate(_parsers(told))]
        if not named and old is not None:
            named = [("parser", old)]
        types = [self._type(each.plugin_ref, f"{path}.pluginRef") for path, each in named]
        if types:
            self._warned.use("parsing", filter(None, types))
        # Where none is named llm-d has all, and the one that does not read takes what is left.
        return {"passthrough": not types or "passthrough-parser" in types}

    def discovery(self) -> list[dict[str, Any]]:
        """Give the places where endpoints are found, as far as the file tells."""
        self._mention("data")
        told = self._reader.section(DataLayer, self._whole.data_layer, "dataLayer")
        if told is None:
            return []
        for path, ref in _sources(told):
            self._demand(ref.plugin_ref, f"{path}.pluginRef")
        peers = [told.peer_discovery.plugin_ref] if told.peer_discovery else []
        peers += list(filter(None, [told.cross_replica_syncer_plugin_ref]))
        if peers:
            self._warned.add("replicas share what they know through Redis", *peers)
        return self._places(told)

    def metrics(self) -> dict[str, Any]:
        """Give the settings of the router that say how often engines are looked at."""
        section: dict[str, Any] = {}
        for each in self._plugins.of("core-metrics-extractor"):
            told = self._plugins.parameters(MetricsExtractor, each)
            if told is not None and (told.engine_configs or told.default_engine != "vllm"):
                self._warned.add("only vLLM's metrics are read", each.name)
        for each in self._plugins.of("metrics-data-source"):
            source = self._plugins.parameters(MetricsSource, each)
            if source is not None and source.interval:
                section["metrics_interval_s"] = source.interval
            if source is not None and (source.path != "/metrics" or source.port is not None):
                self._warned.add("metrics are read at /metrics where requests go", each.name)
        return section

    # --- inside -----------------------------------------------------------------------------------

    def _gates(self, gates: Sequence[str]) -> None:
        for i, gate in enumerate(gates):
            name, _, value = gate.partition("=")
            word = value.strip().lower()
            if name not in FEATURE_GATES:
                self._reader.faults.append(f"featureGates.{i}: unknown feature gate {name!r}")
            elif word not in _YES | _NO:
                self._reader.faults.append(f"featureGates.{i}: is written {name}=true or =false")
            elif name != "flowControl":
                self._warned.add("feature gates without a counterpart", name)
            elif word in _YES:
                self._warned.use("flow_control", ["featureGates: flowControl"])

    def _flow_control(self) -> None:
        told = self._reader.section(FlowControl, self._whole.flow_control, "flowControl")
        if told is not None:
            self._warned.use("flow_control", ["flowControl"])
            for path, name in _policies(told):
                self._demand(name, path)
        self._mention("flow_control")

    def _saturation(self, in_use: Sequence[Plugin]) -> None:
        names = [each.name for each in self._plugins.used("saturation") if each not in in_use]
        old = self._whole.saturation_detector
        detector = self._reader.section(MaybeRef, old, "saturationDetector")
        if detector is not None and detector.plugin_ref:
            self._demand(detector.plugin_ref, "saturationDetector.pluginRef")
            names.append(detector.plugin_ref)
        if names:
            self._warned.use("saturation", names)

    def _mention(self, use: Use) -> None:
        if names := [each.name for each in self._plugins.used(use)]:
            self._warned.use(use, names)

    def _demand(self, name: str, path: str) -> None:
        """Demand a plugin, unless it is one that llm-d has by itself."""
        if name not in _BY_ITSELF:
            self._plugins.demand(name, path)

    def _type(self, name: str, path: str) -> str | None:
        known = self._plugins.get(name)
        if known is None and name in _BY_ITSELF:
            return name
        found = known or self._plugins.demand(name, path)
        return found.type if found is not None else None

    def _places(self, told: DataLayer) -> list[dict[str, Any]]:
        spec, path = told.discovery, "dataLayer.discovery"
        if spec is None:
            return []
        refs = [spec.plugin_ref, spec.endpoints.plugin_ref if spec.endpoints else None]
        names = [each for each in refs if each is not None]
        if len(names) != 1:
            self._reader.faults.append(f"{path}: needs one pluginRef, its own or under endpoints")
            return []
        plugin = self._plugins.demand(names[0], f"{path}.pluginRef")
        if plugin is None or plugin.use is None:
            return []
        if plugin.use != "discovery":
            self._reader.faults.append(f"{path}.pluginRef: {plugin.type} finds no endpoints")
            return []
        file = self._plugins.parameters(FileDiscovery, plugin)
        return [] if file is None else [{"kind": "file", "path": file.path}]


def _parsers(told: RequestHandler | None) -> Sequence[Ref]:
    return (told.parsers if told is not None else None) or []


def _sources(told: DataLayer) -> Iterator[tuple[str, Ref]]:
    for i, source in enumerate(told.sources or []):
        path = f"dataLayer.sources.{i}"
        yield path, source
        for j, each in enumerate(source.extractors or []):
            yield f"{path}.extractors.{j}", each


def _policies(told: FlowControl) -> Iterator[tuple[str, str]]:
    """Give what flow control refers to, with paths."""
    bands = [
        ("defaultPriorityBand", told.default_priority_band),
        ("defaultNegativePriorityBand", told.default_negative_priority_band),
        *((f"priorityBands.{i}", each) for i, each in enumerate(told.priority_bands or [])),
    ]
    found = [("usageLimitPolicyPluginRef", told.usage_limit_policy_plugin_ref)]
    if told.saturation_detector is not None:
        found.append(("saturationDetector.pluginRef", told.saturation_detector.plugin_ref))
    for where, band in bands:
        if band is not None:
            found.append((f"{where}.fairnessPolicyRef", band.fairness_policy_ref))
            found.append((f"{where}.orderingPolicyRef", band.ordering_policy_ref))
    return ((f"flowControl.{where}", name) for where, name in found if name)

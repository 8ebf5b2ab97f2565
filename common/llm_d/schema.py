"""The form of llm-d's EndpointPickerConfig: which fields there are, whatever they do. Pure.

Lists stay as they are, so that each entry is read by itself and every fault is found at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from kvatlas.common import limits
from kvatlas.common.llm_d.values import Duration, Quantity

API_VERSIONS: Final = ("llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1")
FEATURE_GATES: Final = frozenset({
    "flowControl", "haPopulateNonLeaderDatastore",
    "dataLayer", "enableLegacyMetrics", "prepareDataPlugins",
})  # fmt: skip
"""Those of llm-d, with those of its older versions in the second line."""

Name = Annotated[str, Field(min_length=1, max_length=limits.PLUGIN_NAME_CHARS_MAX)]
AnyList = Annotated[list[Any], Field(max_length=limits.LLM_D_ENTRIES_MAX)] | None
_UNKNOWN: Final = frozenset({"extra_forbidden", "unexpected_keyword_argument"})


class Entry(BaseModel):
    """A part of it: other fields than these are faults."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        alias_generator=to_camel,
    )


AnyEntry = TypeVar("AnyEntry", bound=Entry)


class Whole(Entry):
    """All of it."""

    api_version: Literal["llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"]
    kind: Literal["EndpointPickerConfig"]
    feature_gates: list[str] | None = None
    plugins: AnyList = None
    scheduling_profiles: AnyList = None
    data_layer: dict[str, Any] | None = None
    flow_control: dict[str, Any] | None = None
    request_handler: dict[str, Any] | None = None
    saturation_detector: dict[str, Any] | None = None
    parser: dict[str, Any] | None = None


_FORM: Final = {"apiVersion": API_VERSIONS[0], "kind": "EndpointPickerConfig"}


class PluginSpec(Entry):
    """A plugin: a type, a name that others refer to it by, and its parameters."""

    type: Name
    name: Name | None = None
    parameters: dict[str, Any] | None = None


class Ref(Entry):
    """A plugin, by its name."""

    plugin_ref: Name


class MaybeRef(Entry):
    """A plugin, by its name, or the default one."""

    plugin_ref: str = ""


class ProfileRef(Ref):
    """A plugin of a profile; only scorers weigh anything."""

    weight: Annotated[float, Field(allow_inf_nan=False)] | None = None


class ProfileSpec(Entry):
    """Which plugins make up a profile."""

    name: Name
    plugins: AnyList = None


class DiscoverySpec(Entry):
    """Which plugin finds endpoints: under `endpoints` in newer versions, at once in older ones."""

    plugin_ref: Name | None = None
    endpoints: Ref | None = None


class SourceSpec(Ref):
    """A source of data and what is read from it."""

    extractors: list[Ref] | None = None


class DataLayer(Entry):
    """Where data about endpoints comes from."""

    inject_defaults: bool | None = None
    sources: list[SourceSpec] | None = None
    discovery: DiscoverySpec | None = None
    peer_discovery: Ref | None = None
    cross_replica_syncer_plugin_ref: str = ""
    cross_replica_sync_interval: Duration | None = None


class Band(Entry):
    """What requests of a priority may take up."""

    priority: int = 0
    max_bytes: Quantity | None = None
    max_requests: Quantity | None = None
    fairness_policy_ref: str = ""
    ordering_policy_ref: str = ""


class FlowControl(Entry):
    """How requests queue."""

    max_bytes: Quantity | None = None
    max_requests: Quantity | None = None
    default_request_ttl: Annotated[Duration | None, Field(alias="defaultRequestTTL")] = None
    no_endpoint_request_ttl: Annotated[Duration | None, Field(alias="noEndpointRequestTTL")] = None
    default_priority_band: Band | None = None
    default_negative_priority_band: Band | None = None
    priority_bands: list[Band] | None = None
    usage_limit_policy_plugin_ref: str = ""
    saturation_detector: MaybeRef | None = None
    enable_eviction: bool = False


class RequestHandler(Entry):
    """How bodies are read."""

    parsers: list[Ref] | None = None


class Reader:
    """Reads parts of a configuration, and collects what is wrong with them.

    Attributes:
        faults: a line each, beginning with the path.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []

    def read(self, cls: type[AnyEntry], value: Any, path: str) -> AnyEntry | None:
        """Read a part, or note what is wrong and give None."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            self.faults += fault_lines(error, path)
            return None

    def whole(self, content: Mapping[str, Any]) -> Whole:
        """Read all of it; what is wrong at the top is noted, and left out."""
        try:
            return Whole.model_validate(content)
        except ValidationError as error:
            self.faults += fault_lines(error)
            wrong = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
            right = {name: value for name, value in content.items() if name not in wrong}
            return Whole.model_validate({**right, **_FORM})

    def section(
        self, cls: type[AnyEntry], value: Mapping[str, Any] | None, path: str
    ) -> AnyEntry | None:
        """Read a part that need not be there."""
        return None if value is None else self.read(cls, value, path)


def fault_lines(error: ValidationError, path: str = "") -> list[str]:
    """Say what is wrong and where, without the values."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(filter(None, (path, *map(str, fault["loc"]))))
        text = "unknown field" if fault["type"] in _UNKNOWN else fault["msg"]
        text = text.removeprefix("Value error, ")
        lines.append(f"{where}: {text}" if where else text)
    return lines

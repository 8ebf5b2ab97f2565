"""From a configuration to a profile, with every fault of it at once. Pure.

The configuration is in the way of llm-d's EndpointPickerConfig: `plugins` names and parameterizes,
`schedulingProfiles` says which of them make up the profile, and how much each scorer weighs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.router.scheduling.filters import HealthyFilter
from kvatlas.router.scheduling.guard import Guarded, Report
from kvatlas.router.scheduling.interfaces import is_hard
from kvatlas.router.scheduling.parameters import Amount, fault_lines, read
from kvatlas.router.scheduling.profile import Profile, Weighted
from kvatlas.router.scheduling.registry import NEEDS_SESSION, OURS, Kind, kinds_of

Factory = Callable[[Mapping[str, Any]], object]
Find = Callable[[str], Factory | None]
"""Finds what makes a third party's plugin of its parameters, by type; None where nobody does."""

Name = Annotated[str, Field(min_length=1, max_length=limits.PLUGIN_NAME_CHARS_MAX)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _PluginEntry(_Entry):
    type: Name
    name: Name | None = None
    parameters: dict[str, Any] | None = None


class _RefEntry(_Entry):
    plugin_ref: Annotated[Name, Field(alias="pluginRef")]
    weight: Amount | None = None


class _ProfileEntry(_Entry):
    name: Name
    plugins: Annotated[list[Any], Field(min_length=1, max_length=limits.PLUGINS_MAX)]


class _Whole(_Entry):
    plugins: Annotated[list[Any], Field(max_length=limits.PLUGINS_MAX)] = []
    profiles: Annotated[list[Any], Field(alias="schedulingProfiles")] = []


AnyEntry = TypeVar("AnyEntry", bound=_Entry)
HEALTHY: Final = "healthy-filter"


@dataclass(slots=True)
class _Known:
    """A plugin that the configuration names.

    Attributes:
        guarded: None where it is faulty.
        kinds: what it is; as far as that is known of a faulty one.
    """

    guarded: Guarded | None
    kinds: frozenset[Kind]


@dataclass(slots=True)
class Builder:
    """Reads one configuration.

    Attributes:
        find: third parties' plugins.
        report: told of what plugins do wrong later on.
        has_sessions: whether requests may tell which conversation they belong to.
        path: of the configuration, which faults begin with.
    """

    find: Find
    report: Report
    has_sessions: bool = False
    path: str = "router.profile"
    faults: list[str] = field(default_factory=list)
    _known: dict[str, _Known] = field(default_factory=dict)

    def build(self, config: Mapping[str, Any]) -> Profile:
        """Make the profile.

        Raises:
            ConfigError: with every fault found.
        """
        whole = self._read(_Whole, config, self.path) or _Whole()
        for i, entry in enumerate(whole.plugins):
            self._plugin(entry, f"{self.path}.plugins.{i}")
        profiles = f"{self.path}.schedulingProfiles"
        if len(whole.profiles) != 1:
            self.faults.append(f"{profiles}: must be one profile, not {len(whole.profiles)}")
        built = [self._profile(each, f"{profiles}.{i}") for i, each in enumerate(whole.profiles)]
        if self.faults or built[0] is None:
            raise ConfigError(self.faults)
        return built[0]

    def _plugin(self, entry: Any, path: str) -> None:
        spec = self._read(_PluginEntry, entry, path)
        if spec is None:
            self._claim(entry)
            return
        name = spec.name or spec.type
        if name in self._known:
            self.faults.append(f"{path}: the name {name!r} is there twice")
            return
        self._known[name] = self._made(spec, path)

    def _claim(self, entry: Any) -> None:
        """Know the name of an entry that cannot be read, so that references to it are no faults."""
        if isinstance(entry, Mapping):
            kind, name = entry.get("type"), entry.get("name", entry.get("type"))
            if isinstance(kind, str) and isinstance(name, str):
                self._known.setdefault(name, _Known(None, kinds_of(OURS.get(kind))))

    def _made(self, spec: _PluginEntry, path: str) -> _Known:
        parameters = spec.parameters or {}
        cls = OURS.get(spec.type)
        if cls is None:
            return self._third_party(spec, parameters, path)
        if spec.type in NEEDS_SESSION and not self.has_sessions:
            self.faults.append(f"{path}: {spec.type} needs router.session, which names no header")
        try:
            plugin: object = read(cls, parameters)
        except ConfigError as error:
            self.faults += [f"{path}.parameters.{line}" for line in error.faults]
            return _Known(None, kinds_of(cls))
        return _Known(self._guarded(plugin, spec, is_trusted=True), kinds_of(cls))

    def _third_party(self, spec: _PluginEntry, parameters: Mapping[str, Any], path: str) -> _Known:
        try:
            factory = self.find(spec.type)
            if factory is None:
                self.faults.append(f"{path}.type: there is no plugin {spec.type!r}")
                return _Known(None, frozenset())
            plugin = factory(parameters)
            kinds = kinds_of(plugin)
            guarded = self._guarded(plugin, spec, is_trusted=False)
        except Exception as error:  # noqa: BLE001 - strangers' code may raise anything
            told = f"{type(error).__name__}: {error}"
            self.faults.append(f"{path}: plugin {spec.type!r}: {told}")
            return _Known(None, frozenset())
        if not kinds:
            self.faults.append(f"{path}: plugin {spec.type!r} is no filter, scorer or picker")
        return _Known(guarded, kinds)

    def _guarded(self, plugin: Any, spec: _PluginEntry, *, is_trusted: bool) -> Guarded:
        hard, name = is_hard(plugin), spec.name or spec.type
        return Guarded(plugin, name, self.report, is_trusted=is_trusted, is_hard=hard)

    def _profile(self, entry: Any, path: str) -> Profile | None:
        spec = self._read(_ProfileEntry, entry, path)
        if spec is None:
            return None
        parts = _Parts()
        for i, each in enumerate(spec.plugins):
            where = f"{path}.plugins.{i}"
            ref = self._read(_RefEntry, each, where)
            if ref is not None:
                self._take(ref, where, parts)
        if len(parts.pickers) != 1:
            found = "more than one" if parts.pickers else "no"
            self.faults.append(f"{path}: has {found} picker")
        if not parts.scorers:
            self.faults.append(f"{path}: has no scorer with a weight above 0")
        if self.faults:
            return None
        return self._assembled(parts)

    def _take(self, ref: _RefEntry, path: str, parts: _Parts) -> None:
        """Put a plugin where it belongs, under every role that it has."""
        name = ref.plugin_ref
        known = self._known.get(name)
        if known is None:
            self.faults.append(f"{path}.pluginRef: there is no plugin named {name!r}")
            return
        if name in parts.names:
            self.faults.append(f"{path}.pluginRef: {name!r} is there twice")
            return
        parts.names.append(name)
        if ref.weight is not None and known.kinds and "scorer" not in known.kinds:
            self.faults.append(f"{path}.weight: {name!r} is no scorer")
        if "filter" in known.kinds:
            parts.filters.append(name)
        if "picker" in known.kinds:
            parts.pickers.append(name)
        weight = 1.0 if ref.weight is None else ref.weight
        if "scorer" in known.kinds and weight > 0.0:
            parts.scorers.append((name, weight))

    def _assembled(self, parts: _Parts) -> Profile:
        guarded = {name: known.guarded for name, known in self._known.items() if known.guarded}
        filters = [guarded[name] for name in parts.filters]
        if not any(isinstance(each.plugin, HealthyFilter) for each in filters):
            filters.insert(0, Guarded(HealthyFilter(), HEALTHY, self.report, is_trusted=True))
        scorers = [Weighted(guarded[name], weight) for name, weight in parts.scorers]
        return Profile(filters, scorers, guarded[parts.pickers[0]])

    def _read(self, cls: type[AnyEntry], value: Any, path: str) -> AnyEntry | None:
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            self.faults += [f"{path}.{line}".replace(".: ", ": ") for line in fault_lines(error)]
            return None


@dataclass(slots=True)
class _Parts:
    """Names of what a profile is made of, in order."""

    names: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    pickers: list[str] = field(default_factory=list)
    scorers: list[tuple[str, float]] = field(default_factory=list)


def short_form(scorer: str, picker: str, **parameters: Any) -> dict[str, Any]:
    """Write the configuration of a profile of one scorer and a picker."""
    types: Sequence[Mapping[str, Any]] = [
        {"type": scorer, "parameters": parameters},
        {"type": picker},
    ]
    refs = [{"pluginRef": each["type"]} for each in types]
    return {"plugins": types, "schedulingProfiles": [{"name": "default", "plugins": refs}]}

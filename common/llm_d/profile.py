"""The scheduling profile of a configuration of llm-d's, as `router.profile` has it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.llm_d.parameters import (
    ConcurrencyDetector,
    PrefixScorer,
    StagedHandler,
    UtilizationDetector,
)
from kvatlas.common.llm_d.plugin_types import HANDLERS, RENAMED, STAGED
from kvatlas.common.llm_d.plugins import Plugin, Plugins, Warned
from kvatlas.common.llm_d.schema import ProfileRef, ProfileSpec, Reader

Check = Callable[[Mapping[str, Any]], Sequence[str]]
"""Says what is wrong with a profile, a line each, beginning with the path inside it."""

PREFIX_OLD: Final = frozenset({
    "autoTune", "blockSize", "blockSizeTokens", "hashBlockSize", "lruCapacityPerServer",
    "maxPrefixBlocksToMatch", "maxPrefixTokensToMatch",
})  # fmt: skip
"""What older versions of the prefix scorer were told of an index that guessed."""

_SCHEDULES: Final = frozenset({"scorer", "filter", "picker", "session"})
_PLUGIN: Final = re.compile(r"plugins\.(\d+)(?=[.:])")
_REF: Final = re.compile(r"schedulingProfiles\.0\.plugins\.(\d+)(?=[.:])")


@dataclass(slots=True)
class Chosen:
    """The profile that decides.

    Attributes:
        position: in the list.
        refs: the plugins in it, each with its position there and its weight.
        left: names of the profiles that are not run.
    """

    position: int
    name: str
    refs: list[tuple[int, Plugin, float | None]]
    left: list[str] = field(default_factory=list)

    @property
    def plugins(self) -> list[Plugin]:
        """List the plugins in it."""
        return [plugin for _, plugin, _ in self.refs]


def choose(reader: Reader, plugins: Plugins, entries: Sequence[Any]) -> Chosen | None:
    """Find the profile that decides; None where there is none, which is noted."""
    read = [_profile(reader, plugins, entry, i) for i, entry in enumerate(entries)]
    profiles = [each for each in read if each is not None]
    handlers = [each for each in plugins if each.type in HANDLERS]
    if len(handlers) > 1:
        names = ", ".join(each.name for each in handlers)
        reader.faults.append(f"plugins: there may be one profile handler, not {names}")
    if not entries:
        return _everything(plugins)
    staged = [each for each in handlers if each.type in STAGED]
    if staged:
        return _staged(reader, plugins, staged[0], profiles)
    if len(entries) > 1:
        text = "several profiles need a disagg-profile-handler"
        reader.faults.append(f"schedulingProfiles: {text}")
    return profiles[0] if profiles else None


def _profile(reader: Reader, plugins: Plugins, entry: Any, position: int) -> Chosen | None:
    path = f"schedulingProfiles.{position}"
    spec = reader.read(ProfileSpec, entry, path)
    if spec is None:
        return None
    refs = []
    for i, each in enumerate(spec.plugins or []):
        where = f"{path}.plugins.{i}"
        ref = reader.read(ProfileRef, each, where)
        plugin = plugins.demand(ref.plugin_ref, f"{where}.pluginRef") if ref else None
        if ref is not None and plugin is not None:
            refs.append((i, plugin, ref.weight))
    return Chosen(position, spec.name, refs)


def _everything(plugins: Plugins) -> Chosen:
    """Make a profile of all that may be in one, as llm-d does where there is none."""
    known = [each for each in plugins if each.use in _SCHEDULES or each.scores]
    return Chosen(0, "default", [(i, each, None) for i, each in enumerate(known)])


def _staged(
    reader: Reader, plugins: Plugins, handler: Plugin, profiles: Sequence[Chosen]
) -> Chosen | None:
    name = str(handler.parameters.get("decodeProfile") or "decode")
    if handler.type == "disagg-profile-handler":
        told = plugins.parameters(StagedHandler, handler)
        if told is not None and told.profiles is not None:
            name = told.profiles.decode
    for each in profiles:
        if each.name == name:
            each.left = [other.name for other in profiles if other is not each]
            return each
    reader.faults.append(f"schedulingProfiles: {handler.name} needs a profile {name!r}")
    return None


class ProfileMaker:
    """Writes the profile that decides as one of ours, and remembers where each part came from."""

    def __init__(self, reader: Reader, plugins: Plugins, chosen: Chosen, warned: Warned) -> None:
        self._reader = reader
        self._plugins = plugins
        self._chosen = chosen
        self._warned = warned
        self._positions: list[int | None] = []
        self._ref_positions: list[int | None] = []
        self._entries: list[dict[str, Any]] = []
        self._refs: list[dict[str, Any]] = []

    def make(self) -> dict[str, Any]:
        """Write it."""
        in_use = {each.name for each in self._chosen.plugins}
        for plugin in self._plugins:
            self._enter(plugin, is_used=plugin.name in in_use)
        entered = {str(each["name"]) for each in self._entries}
        for position, plugin, weight in self._chosen.refs:
            self._refer(position, plugin, weight, entered)
        uses = {each.use for each in self._chosen.plugins}
        if "picker" not in uses:
            pickers = self._plugins.used("picker")
            self._add(None if pickers else "max-score-picker", pickers[0].name if pickers else "")
        if not any(each.scores for each in self._chosen.plugins):
            # llm-d scores everybody 0 where nothing scores.
            self._add("even-scorer", "even-scorer")
        profile = {"name": self._chosen.name, "plugins": self._refs}
        return {"plugins": self._entries, "schedulingProfiles": [profile]}

    def placed(self, faults: Sequence[str]) -> list[str]:
        """Write faults of our profile with the paths of llm-d's file."""
        return [self._placed(each) for each in faults]

    def _enter(self, plugin: Plugin, *, is_used: bool) -> None:
        if plugin.use in ("scorer", "filter", "picker"):
            self._append(plugin, plugin.type, self._own(plugin))
        elif plugin.type == "precise-prefix-cache-scorer" or (is_used and plugin.use == "session"):
            # Its parameters have become settings.
            self._append(plugin, plugin.type, {})
        elif is_used and plugin.use == "saturation":
            self._append(plugin, "utilization-filter", self._bounds(plugin))

    def _append(self, plugin: Plugin, kind: str, parameters: Mapping[str, Any]) -> None:
        entry = {"type": RENAMED.get(kind, kind), "name": plugin.name}
        self._entries.append({**entry, "parameters": dict(parameters)} if parameters else entry)
        self._positions.append(plugin.position)

    def _refer(
        self, position: int, plugin: Plugin, weight: float | None, entered: set[str]
    ) -> None:
        where = f"schedulingProfiles.{self._chosen.position}.plugins.{position}"
        if plugin.use == "steers_profile":
            text = f"there is nothing like {plugin.type} here"
            self._reader.faults.append(f"{where}.pluginRef: {text}")
        if plugin.type in ("latency-scorer", "slo-headroom-tier-filter"):
            self._warned.use("prediction", [plugin.name])
        if plugin.name in entered:
            ref: dict[str, Any] = {"pluginRef": plugin.name}
            if weight is not None and plugin.scores:
                ref["weight"] = weight
            self._refs.append(ref)
            self._ref_positions.append(position)

    def _add(self, kind: str | None, name: str) -> None:
        if kind is not None:
            name = name or kind
            self._entries.append({"type": kind, "name": name})
            self._positions.append(None)
        self._refs.append({"pluginRef": name})
        self._ref_positions.append(None)

    def _own(self, plugin: Plugin) -> Mapping[str, Any]:
        """Give the parameters that our plugin of the same type takes."""
        if plugin.type != "prefix-cache-scorer":
            return plugin.parameters
        old = [each for each in plugin.parameters if each in PREFIX_OLD]
        if old:
            self._warned.add("an index that guesses has no place here", plugin.name)
        left = {name: each for name, each in plugin.parameters.items() if name not in PREFIX_OLD}
        names = {"prefixLengthWeight": "matchLengthWeight", "maxModelLen": "matchLengthScaleTokens"}
        if renamed := {name: left.pop(name) for name in names if name in left}:
            path = f"{plugin.path}.parameters"
            self._reader.read(PrefixScorer, renamed, path)
        return {**left, **{names[name]: each for name, each in renamed.items()}}

    def _bounds(self, plugin: Plugin) -> dict[str, Any]:
        """Write a saturation detector in a profile as what it is there: a filter."""
        if plugin.type == "utilization-detector":
            return self._utilization(plugin)
        told = self._plugins.parameters(ConcurrencyDetector, plugin) or ConcurrencyDetector()
        if told.concurrency_mode != "requests":
            text = "only requests are counted where it is a filter"
            self._reader.faults.append(f"{plugin.path}.parameters.concurrencyMode: {text}")
        most = told.max_concurrency * (1.0 + told.headroom)
        return {"conditions": [{"metric": "active-requests", "maxValue": most}]}

    def _utilization(self, plugin: Plugin) -> dict[str, Any]:
        told = self._plugins.parameters(UtilizationDetector, plugin) or UtilizationDetector()
        factor = 1.0 + told.headroom
        conditions = [
            {"metric": "waiting-queue", "maxValue": told.queue_depth_threshold * factor},
            {
                "metric": "kv-cache-utilization",
                "maxValue": min(1.0, told.kv_cache_util_threshold * factor),
            },
        ]
        return {"conditions": conditions, "fallbackOnEmpty": True}

    def _placed(self, fault: str) -> str:
        if found := _REF.match(fault):
            at, root = (
                _at(self._ref_positions, found[1]),
                f"schedulingProfiles.{self._chosen.position}",
            )
            return fault.replace(found[0], root if at is None else f"{root}.plugins.{at}", 1)
        if found := _PLUGIN.match(fault):
            at = _at(self._positions, found[1])
            return fault.replace(found[0], "plugins" if at is None else f"plugins.{at}", 1)
        root = f"schedulingProfiles.{self._chosen.position}"
        return fault.replace("schedulingProfiles.0", root, 1)


def _at(positions: Sequence[int | None], index: str) -> int | None:
    return positions[int(index)] if int(index) < len(positions) else None


def destinations_within(plugins: Plugins, chosen: Chosen | None, warned: Warned) -> int:
    """Tell how many endpoints a gateway is told, as the picker of the profile says."""
    own = [each for each in chosen.plugins if each.use == "picker"] if chosen is not None else []
    pickers = own or plugins.used("picker")
    count = pickers[0].parameters.get("maxNumOfEndpoints", 1) if pickers else 1
    if not isinstance(count, int) or isinstance(count, bool):
        return 1
    most = limits.PICKER_DESTINATIONS_MAX
    if count > most:
        warned.add(f"a gateway is told {most} endpoints at most", "maxNumOfEndpoints")
    return min(count, most)

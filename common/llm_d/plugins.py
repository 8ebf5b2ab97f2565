"""The plugins that a configuration of llm-d's names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvatlas.common.llm_d.plugin_types import SCORING, USES, WARNINGS, Use
from kvatlas.common.llm_d.schema import AnyEntry, PluginSpec, Reader


@dataclass(frozen=True, slots=True)
class Plugin:
    """One of them.

    Attributes:
        position: in the list, for paths.
        use: what it is to us; None where its type is not known.
    """

    position: int
    name: str
    type: str
    use: Use | None
    parameters: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Give where it stands."""
        return f"plugins.{self.position}"

    @property
    def scores(self) -> bool:
        """Tell whether a weight means anything to it."""
        return self.use == "scorer" or self.type in SCORING


class Plugins:
    """All of them, by name, and what is to be said of them."""

    def __init__(self, reader: Reader, entries: Sequence[Any]) -> None:
        self._reader = reader
        self._known: dict[str, Plugin] = {}
        for i, entry in enumerate(entries):
            self._add(i, entry)

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self._known.values())

    def get(self, name: str) -> Plugin | None:
        """Find one by its name."""
        return self._known.get(name)

    def of(self, *types: str) -> list[Plugin]:
        """List those of some types, in order."""
        return [each for each in self if each.type in types]

    def used(self, use: Use) -> list[Plugin]:
        """List those of a use, in order."""
        return [each for each in self if each.use == use]

    def parameters(self, cls: type[AnyEntry], plugin: Plugin) -> AnyEntry | None:
        """Read the parameters of one, or note what is wrong and give None."""
        return self._reader.read(cls, dict(plugin.parameters), f"{plugin.path}.parameters")

    def demand(self, name: str, path: str) -> Plugin | None:
        """Find one that something refers to, or note that it is not there."""
        found = self._known.get(name)
        if found is None:
            self._reader.faults.append(f"{path}: there is no plugin named {name!r}")
        return found

    def _add(self, position: int, entry: Any) -> None:
        spec = self._reader.read(PluginSpec, entry, f"plugins.{position}")
        if spec is None:
            self._claim(position, entry)
            return
        name = spec.name or spec.type
        if name in self._known:
            self._reader.faults.append(f"plugins.{position}: the name {name!r} is there twice")
            return
        use = USES.get(spec.type)
        if use is None:
            self._reader.faults.append(f"plugins.{position}.type: unknown plugin {spec.type!r}")
        self._known[name] = Plugin(position, name, spec.type, use, spec.parameters or {})

    def _claim(self, position: int, entry: Any) -> None:
        """Know the name of an entry that cannot be read, so that references to it are no faults."""
        if isinstance(entry, Mapping):
            kind, name = entry.get("type"), entry.get("name", entry.get("type"))
            if isinstance(kind, str) and isinstance(name, str):
                self._known.setdefault(name, Plugin(position, name, kind, None, {}))


@dataclass(slots=True)
class Warned:
    """What is done without, or otherwise: each thing once, in the order of its kind."""

    _named: dict[str, list[str]] = field(default_factory=dict)

    def use(self, use: Use, names: Iterable[str]) -> None:
        """Note what of a use is there."""
        self.add(WARNINGS[use], *names)

    def add(self, text: str, *names: str) -> None:
        """Note something, and what it is about; nothing where that is a list without an entry."""
        known = self._named.setdefault(text, [])
        known += [each for each in dict.fromkeys(names) if each not in known]

    def lines(self) -> list[str]:
        """Write each as a line."""
        return [
            f"{text} ({', '.join(names)})" if names else text for text, names in self._named.items()
        ]

"""Which model a client's `model` means: one of the configuration, or a LoRA adapter of one. Pure.

An adapter is known because the configuration names it or because an engine lists it. A name that
is a configured model's is that model; an adapter that two models have belongs to the one that had
it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvatlas.common import limits
from kvatlas.common.ids import ModelName
from kvatlas.common.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Served:
    """What a name stands for.

    Attributes:
        model: the configured (base) model.
        adapter: name of the adapter, or None for the model itself.
    """

    model: ModelName
    adapter: str | None = None


class ServedNames:
    """All names that clients may ask for.

    Args:
        models: of the configuration.
        assumes_adapters: take a name that nobody knows for an adapter of the only model, which an
            engine may load, or refuse.
    """

    def __init__(self, models: Sequence[ModelSettings], *, assumes_adapters: bool = False) -> None:
        is_alone = assumes_adapters and len(models) == 1
        self._assumed = models[0].model if is_alone else None
        self._models = {model.name: Served(model.model) for model in models}
        self._configured = {
            name: Served(model.model, name)
            for model in models
            for name in model.lora_adapters
            if name not in self._models
        }
        self._learned: dict[str, Served] = {}

    def find(self, name: str) -> Served | None:
        """Give what a name stands for, or None."""
        known = self._models.get(name) or self._configured.get(name) or self._learned.get(name)
        if known is None and self._assumed is not None and len(name) <= limits.MODEL_NAME_CHARS_MAX:
            return Served(self._assumed, name)
        return known

    def may_be_loaded(self, served: Served) -> bool:
        """Tell whether an adapter that no engine lists may be one that they load when asked."""
        is_assumed = self._assumed is not None and served.adapter not in self._learned
        return is_assumed or served.adapter in self._configured

    def adapters(self) -> list[Served]:
        """List all adapters, by name."""
        known = {**self._learned, **self._configured}
        return [known[name] for name in sorted(known)]

    def learn(self, adapters: Mapping[ModelName, Iterable[str]]) -> None:
        """Take over what engines list, all of it, by their model."""
        learned: dict[str, Served] = {}
        for model, names in adapters.items():
            for name in names:
                if name not in self._models:
                    before = self._learned.get(name)
                    kept = before if before and name in adapters.get(before.model, ()) else None
                    learned.setdefault(name, kept or Served(model, name))
        self._learned = learned

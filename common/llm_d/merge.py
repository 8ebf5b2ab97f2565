"""A translated configuration and one of ours, put together. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d.translate import Translation


def merged(
    own: Mapping[str, Any], translation: Translation, added: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Put our own file over what was translated.

    Models of the same name become one; other lists are joined; of anything else our own file says
    what counts, except for the way to choose, which only one of both may tell.

    Args:
        own: the content of our own file; of any form, since whoever reads the whole will see.
        translation: of llm-d's.
        added: what neither of them tells, in the same form: models, and places of discovery.

    Raises:
        ConfigError: both say how to choose.
    """
    content = _over(_over(_base(own, translation), own), added or {})
    if isinstance(models := content.get("models"), list):
        content["models"] = [_filled(each, translation.of_models) for each in models]
    if isinstance(places := content.get("discovery"), list):
        content["discovery"] = [_filled(each, translation.of_discovery) for each in places]
    return content


def _base(own: Mapping[str, Any], translation: Translation) -> Mapping[str, Any]:
    """Give what was translated, without a default profile where our own file says how to choose."""
    router = own.get("router")
    told = [
        name for name in ("profile", "policy") if isinstance(router, Mapping) and name in router
    ]
    if not told:
        return translation.content
    if not translation.is_default:
        raise ConfigError([f"router.{told[0]}: llm-d's configuration says how to choose, too"])
    router = translation.content.get("router", {})
    left = {name: each for name, each in router.items() if name != "profile"}
    return {**translation.content, "router": left}


def _over(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(base)
    for name, value in other.items():
        known = content.get(name)
        if name == "models" and isinstance(known, list) and isinstance(value, list):
            content[name] = _joined(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            content[name] = [*known, *value]
        elif isinstance(known, Mapping) and isinstance(value, Mapping):
            content[name] = {**known, **value}
        else:
            content[name] = value
    return content


def _joined(known: list[Any], others: list[Any]) -> list[Any]:
    """Join models by their names; each other one says more of a known one, or is a new one."""
    models = list(known)
    for other in others:
        name = other.get("name") if isinstance(other, Mapping) else None
        for i, model in enumerate(models):
            if isinstance(model, Mapping) and name is not None and model.get("name") == name:
                models[i] = {**model, **other}
                break
        else:
            models.append(other)
    return models


def _filled(entry: Any, defaults: Mapping[str, Any]) -> Any:
    return {**defaults, **entry} if isinstance(entry, Mapping) else entry

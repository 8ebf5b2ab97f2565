"""From llm-d's EndpointPickerConfig to a configuration of ours. Pure.

What has a counterpart becomes settings. What has none is a fault where requests would go elsewhere
without it, and a warning otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import yaml

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d.around import Around
from kvatlas.common.llm_d.index import IndexReader
from kvatlas.common.llm_d.plugins import Plugins, Warned
from kvatlas.common.llm_d.profile import Check, Chosen, ProfileMaker, choose, destinations_within
from kvatlas.common.llm_d.schema import Reader
from kvatlas.common.llm_d.session import SessionReader

_SCORERS: Final = {
    "queue-scorer": 2.0,
    "kv-cache-utilization-scorer": 2.0,
    "prefix-cache-scorer": 3.0,
}
DEFAULT: Final[dict[str, Any]] = {
    "apiVersion": "llm-d.ai/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [{"type": each} for each in _SCORERS],
    "schedulingProfiles": [
        {
            "name": "default",
            "plugins": [{"pluginRef": each, "weight": weight} for each, weight in _SCORERS.items()],
        }
    ],
}
"""What llm-d does where nothing is configured."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A configuration of ours.

    Attributes:
        content: in the form of our file.
        of_models: settings of each model that does not say so itself.
        of_discovery: settings of each place where endpoints are found, alike.
        warnings: what is done without, or otherwise, a line each.
        is_default: it comes of no file.
    """

    content: dict[str, Any]
    of_models: dict[str, Any]
    of_discovery: dict[str, Any]
    warnings: list[str]
    is_default: bool = False


def translate(text: str | None, check: Check | None = None) -> Translation:
    """Translate a configuration.

    Args:
        text: YAML or JSON; llm-d's own default where there is none.
        check: looks at the profile, whose plugins know themselves what they can be given.

    Raises:
        ConfigError: with every fault found, each with its path in the file.
    """
    reader, warned, is_default = Reader(), Warned(), text is None or not text.strip()
    content = DEFAULT if text is None or is_default else _content(text)
    whole = reader.whole(content)
    plugins = Plugins(reader, whole.plugins or [])
    chosen = choose(reader, plugins, whole.scheduling_profiles or [])
    around = Around(reader, plugins, warned, whole)
    in_use = chosen.plugins if chosen is not None else []
    around.look(in_use)
    around.disaggregation(chosen)
    index = IndexReader(reader, plugins, warned).read(in_use)
    translated = {
        "router": {**_scheduling(reader, plugins, chosen, warned, check), **around.metrics()},
        "picker": {**_picker(plugins, chosen, warned), **around.parsing()},
        "discovery": around.discovery(),
        "models": index.models,
        "redis": index.redis,
        "endpoint_tls": index.tls,
    }
    if reader.faults:
        raise ConfigError(list(dict.fromkeys(reader.faults)))
    sections = {name: section for name, section in translated.items() if section}
    return Translation(sections, index.of_models, index.events, warned.lines(), is_default)


def _content(text: str) -> dict[str, Any]:
    if len(text) > limits.LLM_D_CONFIG_BYTES_MAX:
        raise ConfigError(["the configuration is too long"])
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError([f"the configuration is not YAML{where}"]) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(["the configuration is not a mapping"])
    return content


def _scheduling(
    reader: Reader, plugins: Plugins, chosen: Chosen | None, warned: Warned, check: Check | None
) -> dict[str, Any]:
    if chosen is None:
        return {}
    maker = ProfileMaker(reader, plugins, chosen, warned)
    profile = maker.make()
    session = SessionReader(reader, plugins).read(chosen.plugins)
    if check is not None:
        reader.faults += maker.placed(check(profile))
    return {"profile": profile, **({"session": session} if session else {})}


def _picker(plugins: Plugins, chosen: Chosen | None, warned: Warned) -> dict[str, Any]:
    count = destinations_within(plugins, chosen, warned)
    return {"destinations": count} if count > 1 else {}

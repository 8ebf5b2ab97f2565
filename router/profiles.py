"""The configured way to choose: the settings, the plugins that are installed, and what they do.

Third parties offer plugins as entry points of the group `kvatlas.scheduling`: the name is the
plugin's type, the object a callable that makes a plugin of its parameters, a mapping. One is
loaded only where the configuration names its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from kvatlas.common.errors import ConfigError
from kvatlas.common.log import logger
from kvatlas.common.settings import RouterSettings
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.scheduling import Profile
from kvatlas.router.scheduling.build import Builder, Factory, short_form
from kvatlas.router.scheduling.guard import Fault

GROUP: Final = "kvatlas.scheduling"
_ROOT: Final = "profile"

_LOG = logger("profiles")


def build_profile(settings: RouterSettings, metrics: RouterMetrics | None = None) -> Profile:
    """Put together the configured way to choose.

    Args:
        settings: `profile` where it is there, else what `policy` stands for.
        metrics: told of what plugins do wrong.

    Raises:
        ConfigError: with every fault of the configuration, a plugin that cannot be loaded among
            them.
    """
    watch = _Watch(metrics)
    builder = Builder(_find, watch.report, has_sessions=settings.session.is_on)
    return builder.build(_config(settings))


def profile_faults(profile: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a profile, a line each, beginning with the path inside it.

    Conversations are taken to be known: who writes the profile knows how they are told apart.
    """
    builder = Builder(_find, _Watch(None).report, has_sessions=True, path=_ROOT)
    try:
        builder.build(profile)
    except ConfigError as error:
        return [each.removeprefix(f"{_ROOT}.") for each in error.faults]
    return []


def _config(settings: RouterSettings) -> Mapping[str, Any]:
    if settings.profile is not None:
        return settings.profile
    match settings.policy:
        case "prefix":
            return short_form("cost-scorer", "max-score-picker", workPrice=settings.work_price)
        case "least-load":
            return short_form("request-count-scorer", "max-score-picker")
        case "round-robin":
            return short_form("even-scorer", "round-robin-picker")


def _find(kind: str) -> Factory | None:
    """Find a third party's plugin by its type.

    Raises:
        LookupError: more than one distribution offers it.
        TypeError: what is offered cannot be called.
        Exception: whatever loading it raises.
    """
    offered = [*entry_points(group=GROUP, name=kind)]
    if not offered:
        return None
    if len({each.value for each in offered}) > 1:
        raise LookupError(f"more than one installed distribution offers it in {GROUP}")
    factory = offered[0].load()
    if not callable(factory):
        raise TypeError(f"{offered[0].value} cannot be called")
    found: Factory = factory
    return found


class _Watch:
    """Counts what plugins do wrong, and logs the first of each kind."""

    def __init__(self, metrics: RouterMetrics | None) -> None:
        self._metrics = metrics
        self._logged: set[tuple[str, Fault]] = set()

    def report(self, plugin: str, fault: Fault, error: Exception | None) -> None:
        """Note a fault; what was raised is named by its type, since its text may hold anything."""
        if self._metrics is not None:
            self._metrics.plugin_faults.labels(plugin, fault).inc()
        if (plugin, fault) not in self._logged:
            self._logged.add((plugin, fault))
            raised = None if error is None else type(error).__name__
            _LOG.error("plugin.failed", plugin=plugin, fault=fault, error=raised)

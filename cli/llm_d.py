"""llm-d's configuration and flags as settings of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from kvatlas.cli.picker_flags import PickerFlags, read_flags
from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d import Translation, merged, translate
from kvatlas.common.reload import WatchedFile
from kvatlas.common.settings import Settings, load_content, read_content
from kvatlas.router.profiles import profile_faults

_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - as llm-d's picker, whose place ours takes
_LISTENING: Final[Mapping[str, Mapping[str, Any]]] = {
    "router": {"admin_host": _EVERYWHERE},
    "picker": {"host": _EVERYWHERE},
}
"""Where we listen in the place of llm-d's picker, unless something is said of it."""
Made = TypeVar("Made")
_NOTHING: Final = Translation({}, {}, {}, [], is_default=True)


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration that was put together.

    Attributes:
        content: in the form of our file.
        overrides: what flags say over it.
        warnings: what llm-d does and we do without, or otherwise.
    """

    content: dict[str, Any]
    overrides: dict[str, dict[str, Any]]
    warnings: list[str]

    def checked(self) -> Settings:
        """Read it, with the environment over the files and the flags over both.

        Raises:
            ConfigError: with every fault found.
        """
        return load_content(self.content, dict(self.overrides))

    def settings(self) -> Settings:
        """Read it as a picker needs it, with models and places where endpoints are.

        Raises:
            ConfigError: with every fault found.
        """
        settings = self.checked()
        faults = []
        if not settings.models:
            faults.append(
                "models: none is named, by a token-producer's modelName, --model or our own file"
            )
        if not settings.endpoints and not settings.discovery:
            faults.append(
                "discovery: no endpoints are named, by --pool-name, --endpoint-selector or our own"
                " file"
            )
        if faults:
            raise ConfigError(faults)
        return settings

    def as_yaml(self) -> str:
        """Write it as a file of ours."""
        content = _over(self.content, self.overrides)
        return yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True)


class ConfigFiles:
    """A configuration that is put together, and again when one of its files has changed.

    Attributes:
        first: as it was at first.
    """

    def __init__(
        self, arguments: Sequence[str], own: Path | None, environment: Mapping[str, str]
    ) -> None:
        """Put it together, as `configure` does.

        Raises:
            ConfigError: with every fault found.
        """
        self._asked = (arguments, own, environment)
        self.first = configure(*self._asked)
        files = (own, read_flags(arguments, environment).config_file)
        self._files = [WatchedFile(each) for each in files if each is not None]

    def read(self, is_asked: bool) -> Settings | None:
        """Read it again where a file has changed, or somebody asks for it; else give None.

        Raises:
            ConfigError: with every fault found.
        """
        others = [each for each in self._files if each.changed() is not None]
        return configure(*self._asked).settings() if others or is_asked else None


def configure(
    arguments: Sequence[str], own: Path | None, environment: Mapping[str, str]
) -> Configured:
    """Put together what flags, llm-d's configuration and our own file say.

    Without llm-d's configuration its default counts, unless there is a file of ours.

    Args:
        arguments: llm-d's flags.
        own: our own file.
        environment: of the process.

    Raises:
        ConfigError: with every fault found.
    """
    flags = read_flags(arguments, environment)
    faults = [*flags.faults]
    content = (_tried(lambda: read_content(own), faults) if own is not None else None) or {}
    text = _tried(lambda: _text(flags), faults)
    is_theirs = own is None or text is not None
    translation = _NOTHING
    if is_theirs:
        found = _tried(lambda: translate(text, profile_faults), faults)
        translation = found if found is not None else _NOTHING
    added, warnings = _added(flags, translation)
    whole = _tried(lambda: merged(content, translation, added), faults)
    if faults or whole is None:
        raise ConfigError(faults)
    if is_theirs:
        whole = _over(_LISTENING, whole)
    return Configured(whole, flags.overrides, [*translation.warnings, *warnings])


def _over(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Put sections over others of the same name; what is no section stays what it is."""
    both = {
        name: {**base[name], **section} if isinstance(section, Mapping) else section
        for name, section in other.items()
        if name in base
    }
    return {**base, **other, **both}


def _tried(make: Callable[[], Made], faults: list[str]) -> Made | None:
    """Make something, or take note of what is wrong."""
    try:
        return make()
    except ConfigError as error:
        faults += error.faults
        return None


def _added(flags: PickerFlags, translation: Translation) -> tuple[dict[str, Any], list[str]]:
    """Give what flags add, and what is to be said of them."""
    if "discovery" not in flags.added or "discovery" not in translation.content:
        return flags.added, flags.warnings
    left = {name: each for name, each in flags.added.items() if name != "discovery"}
    text = "endpoints are those of the file, as with llm-d (--pool-name, --endpoint-selector)"
    return left, [*flags.warnings, text]


def _text(flags: PickerFlags) -> str | None:
    """Give llm-d's configuration; None where there is none."""
    if flags.config_file is None:
        return flags.config_text
    try:
        return flags.config_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise ConfigError([f"--config-file: {flags.config_file}: {reason}"]) from None


def _plain(value: Any) -> Any:
    """Write paths as text, wherever they stand."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

"""The flags of llm-d's endpoint picker, as settings of ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvatlas.cli.flag_table import METRICS, POOL_GROUPS, READERS, SETTINGS, WITHOUT, boolean, kebab
from kvatlas.common.llm_d.schema import FEATURE_GATES

_LEVELS: Final = {"debug": "debug", "info": "info", "error": "error"}
_DEBUG_FROM: Final = 4
"""From which verbosity on llm-d's lines are for those who look for a fault."""
_METRICS_CA: Final = "metrics-client-ca-file"
_DRAIN_MIN_S: Final = 0.001
"""What a drain of 0 is: open requests are torn at once."""


@dataclass(frozen=True, slots=True)
class PickerFlags:
    """What the flags say.

    Attributes:
        overrides: settings that count more than those of any file, by section.
        added: models and places of discovery, in the form of our file.
        warnings: what is done without, or otherwise, a line each.
        config_text: the EndpointPickerConfig that was given as text.
        config_file: or where it is.
        faults: what is wrong, a line each, beginning with the flag.
    """

    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    config_text: str | None = None
    config_file: Path | None = None
    faults: list[str] = field(default_factory=list)


def read_flags(arguments: Sequence[str], environment: Mapping[str, str]) -> PickerFlags:
    """Read the flags.

    Args:
        arguments: `--flag=value`, `--flag value`, with one dash or two; a flag that is true or
            false needs no value.
        environment: whose NAMESPACE is that of the pool where no flag tells it.
    """
    return _Reader(environment).read(arguments)


class _Reader:
    """Reads one command line."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._faults: list[str] = []
        self._values: dict[str, Any] = {}
        self._raw: dict[str, str] = {}
        self._sections: dict[str, dict[str, Any]] = {}
        self._warnings: list[str] = []

    def read(self, arguments: Sequence[str]) -> PickerFlags:
        for name, raw in self._split(arguments):
            self._take(name, raw)
        for name, value in self._values.items():
            if name in SETTINGS:
                _, section, setting = SETTINGS[name]
                self._set(section, setting, value)
        self._tls()
        self._log()
        self._small()
        self._without()
        return PickerFlags(
            overrides=self._sections,
            added=self._added(),
            warnings=self._warnings,
            config_text=self._values.get("config-text") or None,
            config_file=self._values.get("config-file"),
            faults=self._faults,
        )

    # --- reading --------------------------------------------------------------------------------

    def _split(self, arguments: Sequence[str]) -> list[tuple[str, str]]:
        """Split the line into flags and their values."""
        found, left = [], list(arguments)
        while left:
            word = left.pop(0)
            dashes = len(word) - len(word.lstrip("-"))
            if dashes not in (1, 2) or len(word) == dashes:
                self._faults.append(f"{word}: is no flag")
                continue
            given, equals, value = word[dashes:].partition("=")
            name = kebab(given)
            read = READERS.get(name)
            if read is None:
                self._faults.append(f"--{given}: unknown flag")
                # What stands behind it is its value, more likely than a flag without dashes.
                if not equals and left and not left[0].startswith("-"):
                    left.pop(0)
            elif equals:
                found.append((name, value))
            elif read is boolean:
                found.append((name, "true"))
            elif left:
                found.append((name, left.pop(0)))
            else:
                self._faults.append(f"--{name}: needs a value")
        return found

    def _take(self, name: str, raw: str) -> None:
        try:
            self._values[name] = READERS[name](raw)
            self._raw[name] = raw
        except ValueError as error:
            self._faults.append(f"--{name}: {error}")

    def _set(self, section: str, setting: str, value: Any) -> None:
        self._sections.setdefault(section, {})[setting] = value

    # --- meaning --------------------------------------------------------------------------------

    def _tls(self) -> None:
        if (folder := self._values.get("cert-path")) is not None:
            self._set("picker", "tls", _pair(folder))
        folder, ca = (self._values.get(each) for each in ("metrics-cert-dir", _METRICS_CA))
        if folder is not None:
            named = {} if ca is None else {"client_ca_file": ca}
            self._set("router", "admin_tls", {**_pair(folder), **named})
        elif ca is not None:
            self._faults.append(f"--{_METRICS_CA}: needs --metrics-cert-dir")
        match self._values.get("tls-min-version"):
            case None | "" | "VersionTLS12":
                pass
            case "VersionTLS10" | "VersionTLS11":
                self._warnings.append("TLS below 1.2 is spoken nowhere (--tls-min-version)")
            case "VersionTLS13":
                self._faults.append("--tls-min-version: TLS 1.2 cannot be refused, only older ones")
            case _:
                self._faults.append("--tls-min-version: is VersionTLS12 or VersionTLS13")

    def _log(self) -> None:
        verbose, level = self._values.get("v"), self._values.get("zap-log-level")
        if verbose is not None:
            self._set("log", "level", "debug" if verbose >= _DEBUG_FROM else "info")
        if self._values.get("zap-devel"):
            self._sections.setdefault("log", {}).update(level="debug", json_lines=False)
        if level in _LEVELS:
            self._set("log", "level", _LEVELS[level])
        elif level is not None and level.isdigit():
            self._set("log", "level", "debug" if int(level) >= _DEBUG_FROM else "info")
        elif level is not None:
            self._faults.append("--zap-log-level: is debug, info, error or a number")
        if (encoder := self._values.get("zap-encoder")) in ("json", "console"):
            self._set("log", "json_lines", encoder == "json")
        elif encoder is not None:
            self._faults.append("--zap-encoder: is json or console")

    def _small(self) -> None:
        if (drain_s := self._values.get("drain-timeout")) is not None:
            self._set("router", "drain_s", max(drain_s, _DRAIN_MIN_S))
        if (is_off := self._values.get("disable-endpoint-subset-filter")) is not None:
            self._set("picker", "subset_hint", not is_off)
        if self._values.get("tracing") is False:
            self._set("router", "trace_url", None)
        elif self._values.get("tracing"):
            self._warnings.append("traces go where router.trace_url says (--tracing)")
        for name, own in METRICS.items():
            if self._values.get(name, own) != own:
                self._faults.append(f"--{name}: only vLLM's own name is read, {own}")
        for gate in self._values.get("feature-gates", []):
            name, _, value = gate.partition("=")
            if name not in FEATURE_GATES:
                self._faults.append(f"--feature-gates: unknown feature gate {name!r}")
            elif value.lower() not in ("0", "f", "false"):
                self._warnings.append(f"a feature gate without a counterpart ({name})")

    def _without(self) -> None:
        names = [
            f"--{name}"
            for name, (read, same) in WITHOUT.items()
            if name in self._values and not (same and self._values[name] == read(same))
        ]
        if names:
            self._warnings.append(f"flags that change nothing here ({', '.join(names)})")

    def _added(self) -> dict[str, Any]:
        added: dict[str, Any] = {}
        if self._values.get("config-text") and self._values.get("config-file"):
            self._faults.append("--config-text: excludes --config-file")
        if places := self._places():
            added["discovery"] = places
        model, tokenizer = self._values.get("model"), self._values.get("tokenizer")
        if model:
            added["models"] = [{"name": model, "tokenizer": tokenizer or model}]
        elif tokenizer:
            self._faults.append("--tokenizer: needs --model")
        return added

    def _places(self) -> list[dict[str, Any]]:
        name, selector = self._values.get("pool-name"), self._values.get("endpoint-selector")
        ports, group = (self._values.get(each) for each in ("endpoint-target-ports", "pool-group"))
        namespace = self._values.get("pool-namespace") or self._environment.get("NAMESPACE")
        where = {"namespace": namespace} if namespace else {}
        if name and selector:
            self._faults.append("--pool-name: excludes --endpoint-selector")
        if group and group not in POOL_GROUPS:
            self._faults.append(f"--pool-group: is one of {', '.join(POOL_GROUPS)}")
        if selector and not ports:
            self._faults.append("--endpoint-target-ports: is needed with --endpoint-selector")
        if name:
            place = {"kind": "inference-pool", "name": name, **where}
            return [{**place, "group": group} if group else place]
        if selector:
            return [{"kind": "pods", "selector": selector, "ports": ports or [], **where}]
        return []


def _pair(folder: Path) -> dict[str, Path]:
    return {"cert_file": folder / "tls.crt", "key_file": folder / "tls.key"}

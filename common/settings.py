"""The configuration: one YAML file for every command, environment variables over it.

`KVATLAS_ROUTER__PORT=8081` overrides `router: {port: ...}`; lists are given as JSON
(`KVATLAS_ENDPOINTS='[{...}]'`). Every fault is reported at once, with its path. docs/CONFIG.md
explains each setting.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from kvatlas.common import limits
from kvatlas.common.discovery_settings import AnyDiscovery, KubernetesSettings
from kvatlas.common.errors import ConfigError
from kvatlas.common.picker_settings import PickerSettings
from kvatlas.common.setting_sections import (
    EjectionSettings,
    EndpointSettings,
    EngineSettings,
    IndexerSettings,
    LogSettings,
    ModelSettings,
    RedisSettings,
    RouterSettings,
    SessionSettings,
)
from kvatlas.common.tls_settings import EndpointTls, ListenTls

__all__ = [
    "EjectionSettings",
    "EndpointSettings",
    "EndpointTls",
    "EngineSettings",
    "IndexerSettings",
    "ListenTls",
    "LogSettings",
    "ModelSettings",
    "PickerSettings",
    "RedisSettings",
    "RouterSettings",
    "SessionSettings",
    "Settings",
    "load",
]

ENV_PREFIX = "KVATLAS_"

_Entries = list[tuple[int, dict[str, Any]]]


class Settings(BaseSettings):
    """Everything that the commands read."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    redis: RedisSettings = Field(default_factory=lambda: RedisSettings.model_validate({}))
    models: Annotated[list[ModelSettings], Field(max_length=limits.MODELS_MAX)] = []
    endpoints: Annotated[list[EndpointSettings], Field(max_length=limits.ENDPOINTS_MAX)] = []
    discovery: Annotated[list[AnyDiscovery], Field(max_length=limits.DISCOVERIES_MAX)] = []
    kubernetes: KubernetesSettings = KubernetesSettings()
    endpoint_tls: EndpointTls = EndpointTls()
    router: RouterSettings = RouterSettings()
    picker: PickerSettings = PickerSettings()
    indexer: IndexerSettings = IndexerSettings()
    engine: EngineSettings = EngineSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - fixed by pydantic
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - fixed by pydantic
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - fixed by pydantic
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, which arrives as keyword arguments."""
        assert isinstance(init_settings, InitSettingsSource)  # noqa: S101 - narrows the type
        assert isinstance(env_settings, EnvSettingsSource)  # noqa: S101 - narrows the type
        return (env_settings, init_settings)

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        faults = _cross_faults(data) if isinstance(data, dict) else []
        try:
            settings = handler(data)
        except ValidationError as error:
            raise ConfigError([*_fault_lines(error), *faults]) from None
        if faults:
            raise ConfigError(faults)
        return settings

    def model_named(self, name: str) -> ModelSettings:
        """Find a model by its name.

        Raises:
            KeyError: there is none.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)


def _cross_faults(data: dict[str, Any]) -> list[str]:
    """Find what no single setting shows: names that are there twice or not at all."""
    models, endpoints = _mappings(data.get("models")), _mappings(data.get("endpoints"))
    names = [str(model.get("name")) for _, model in models if "name" in model]
    lists = [model.get("lora_adapters") for _, model in models]
    adapters = [str(name) for each in lists if isinstance(each, list) for name in each]
    urls = [str(endpoint.get("url")).rstrip("/") for _, endpoint in endpoints if "url" in endpoint]
    return [
        *(f"models: {name!r} is there twice" for name in _repeated(names)),
        *(f"models: adapter {name!r} is there twice" for name in _repeated(adapters)),
        *(
            f"endpoints.{i}.model: {endpoint['model']!r} is not one of models"
            for i, endpoint in endpoints
            # What is no text is refused as such, and not repeated.
            if isinstance(endpoint.get("model"), str) and endpoint["model"] not in names
        ),
        *(f"endpoints: {url} is there twice" for url in _repeated(urls)),
        *_alias_faults(models, {*names, *adapters}),
        *_rewrite_faults(models, data.get("router"), {*names, *adapters}),
    ]


def _alias_faults(models: _Entries, served: set[str]) -> list[str]:
    """Find aliases that are there twice, or are what engines serve."""
    given = [(i, alias) for i, model in models for alias in _texts(model.get("aliases"))]
    return [
        *(
            f"models.{i}.aliases: {alias!r} is a model or an adapter itself"
            for i, alias in given
            if alias in served
        ),
        *(f"models: alias {alias!r} is there twice" for alias in _repeated([a for _, a in given])),
    ]


def _rewrite_faults(models: _Entries, router: Any, served: set[str]) -> list[str]:
    """Find rewrites of aliases, and to names that no engine serves."""
    section = router.model_dump() if isinstance(router, BaseModel) else router
    rewrites = section.get("rewrites") if isinstance(section, dict) else None
    if not isinstance(rewrites, dict):
        return []
    aliases = {alias for _, model in models for alias in _texts(model.get("aliases"))}
    return [
        *(f"router.rewrites.{name}: is an alias, too" for name in rewrites if name in aliases),
        *(
            f"router.rewrites.{name}: {target!r} is neither one of models nor of their"
            " lora_adapters"
            for name, targets in rewrites.items()
            for target in (targets if isinstance(targets, dict) else ())
            if target not in served
        ),
    ]


def _texts(items: Any) -> list[str]:
    return [str(item) for item in items] if isinstance(items, list) else []


def _mappings(items: Any) -> _Entries:
    """Give the entries of a list that are mappings or sections, with their positions."""
    if not isinstance(items, list):
        return []
    plain = [item.model_dump() if isinstance(item, BaseModel) else item for item in items]
    return [(i, item) for i, item in enumerate(plain) if isinstance(item, dict)]


def _repeated(values: list[str]) -> list[str]:
    return sorted({value for value in values if values.count(value) > 1})


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> Settings:
    """Read the configuration.

    Args:
        path: the YAML file, or None for defaults and environment alone.
        overrides: what the command line says, nested like the file; it wins over everything.

    Raises:
        ConfigError: with every fault found, each with its path.
    """
    content = _read(path) if path else {}
    faults = [f"{name}: unknown setting (environment)" for name in _unknown_variables()]
    try:
        settings = _overridden(Settings(**content), overrides or {})
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    except SettingsError as error:
        raise ConfigError([*faults, f"environment: {error}"]) from None
    if faults:
        raise ConfigError(faults)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError([f"{path}: is not YAML{where}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError([f"{path}: is not a mapping of settings"])
    return content


def _overridden(settings: Settings, overrides: dict[str, Any]) -> Settings:
    """Put the command line over everything else and check once more."""
    sections: dict[str, Any] = {}
    for name, values in overrides.items():
        section = getattr(settings, name)
        try:
            sections[name] = type(section).model_validate(
                {**section.model_dump(exclude_unset=True), **values}
            )
        except ValidationError as error:
            raise ConfigError([f"{name}.{line}" for line in _fault_lines(error)]) from None
    return settings.model_copy(update=sections)


def _unknown_variables() -> list[str]:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX) and name.split("__", 1)[0].upper() not in known
    )


def _fault_lines(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {text}" if where else text)
    return lines

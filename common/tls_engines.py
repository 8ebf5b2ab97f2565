"""TLS to engines and render services: which of them are spoken to with what."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import EndpointTls, Settings
from kvatlas.common.tls import Credentials, TlsGauges

_HTTPS: Final = "https:"


@dataclass(frozen=True, slots=True)
class EngineTls:
    """How an engine is spoken to.

    Attributes:
        credentials: None for one that speaks HTTP.
        server_name: that its certificate must be for, instead of the host in its URL.
    """

    credentials: Credentials | None = None
    server_name: str | None = None

    @property
    def context(self) -> ssl.SSLContext | None:
        """Give what connections are made with; another one after a change. None for HTTP."""
        return None if self.credentials is None else self.credentials.made.context

    @property
    def ssl(self) -> ssl.SSLContext | bool:
        """Give aiohttp's `ssl`."""
        return self.context or True


PLAIN: Final = EngineTls()
_Files = tuple[tuple[str, Path], ...]


class EngineIdentities:
    """Know with what each engine and each render service is spoken to.

    A render service at an engine's address is spoken to as that engine, others as `endpoint_tls`
    says, and so are engines that are found.

    Args:
        settings: the configuration.
        gauges: told how certificates are.

    Raises:
        ConfigError: files cannot be used; every fault at once.
    """

    def __init__(self, settings: Settings, gauges: TlsGauges) -> None:
        self._gauges = gauges
        self._default = settings.endpoint_tls
        self._made: dict[_Files, Credentials] = {}
        self._by_url: dict[str, EngineTls] = {}
        faults: list[str] = []
        for url, setting, tls in _uses(settings):
            try:
                self._by_url.setdefault(url, self._tls(setting, tls))
            except ConfigError as error:
                faults += [each for each in error.faults if each not in faults]
        self._found = PLAIN
        if any(entry.kind == "file" or entry.scheme == "https" for entry in settings.discovery):
            try:
                self._found = self.default()
            except ConfigError as error:
                faults += [each for each in error.faults if each not in faults]
        if faults:
            raise ConfigError(faults)
        for each in self._made.values():
            each.announce()

    def of(self, url: str) -> EngineTls:
        """Tell how the engine or the service at this URL is spoken to."""
        known = self._by_url.get(url)
        if known is not None:
            return known
        return self._found if url.startswith(_HTTPS) else PLAIN

    def default(self) -> EngineTls:
        """Tell how others of the fleet are spoken to over TLS: as `endpoint_tls` says.

        Raises:
            ConfigError: its files cannot be used.
        """
        return self._tls("endpoint_tls", self._default)

    def credentials(self) -> Sequence[Credentials]:
        """List what files are behind it all."""
        return list(self._made.values())

    def give_way(self, successor: EngineIdentities) -> None:
        """Say nothing more of settings that a successor does not have."""
        theirs = {each.setting for each in successor.credentials()}
        for each in self._made.values():
            each.silence()
            if each.setting not in theirs:
                self._gauges.forget(each.setting)

    def _tls(self, setting: str, tls: EndpointTls) -> EngineTls:
        files = tls.files()
        key = tuple(files.items())
        if key not in self._made:
            self._made[key] = Credentials(setting, "client", files, self._gauges)
        return EngineTls(self._made[key], tls.server_name)


def _uses(settings: Settings) -> Iterator[tuple[str, str, EndpointTls]]:
    """Go through what speaks TLS: its URL, the setting that says how, and that."""
    default = settings.endpoint_tls
    for number, endpoint in enumerate(settings.endpoints):
        if endpoint.url.startswith(_HTTPS):
            own = endpoint.tls
            setting = "endpoint_tls" if own is None else f"endpoints.{number}.tls"
            yield endpoint.url, setting, default if own is None else own
    for model in settings.models:
        if model.render_url is not None and model.render_url.startswith(_HTTPS):
            yield model.render_url, "endpoint_tls", default

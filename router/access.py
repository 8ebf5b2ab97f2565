"""Let in who shows a key that is known, and tell the handlers whose it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, Self

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, KeyRefused, KeyUnknown
from kvatlas.common.log import logger
from kvatlas.common.reload import WatchedFile
from kvatlas.router.keys import Client, KeyRing, read_keys, shown_key
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.request import Request

_LOG = logger("access")

OPEN_PATHS: Final = frozenset({"/readyz"})
"""What needs no key: what says nothing of anybody."""


class Access:
    """Know the keys of a file, and follow its changes.

    Args:
        path: of the file.
        metrics: of the router.

    Raises:
        ConfigError: the file cannot be read, or used.
    """

    def __init__(self, path: Path, metrics: RouterMetrics) -> None:
        self._file = WatchedFile(path)
        self._metrics = metrics
        self._ring = _first(path, self._file.content)
        metrics.api_keys.set(len(self._ring.clients))
        metrics.api_keys_good.set(1)

    @classmethod
    def of(cls, path: Path | None, metrics: RouterMetrics) -> Self | None:
        """Make one; None where no file is named, and nobody needs a key."""
        return None if path is None else cls(path, metrics)

    async def run(self) -> None:
        """Read the file again whenever it has changed, for ever."""
        while True:
            await asyncio.sleep(limits.API_KEYS_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look at the file once; one that cannot be used changes nothing, and is told of."""
        try:
            # Ten thousand entries take half a second.
            ring = await asyncio.to_thread(self._changed)
        except ConfigError as error:
            self._metrics.api_keys_good.set(0)
            _LOG.error("keys.refused", faults=error.faults)
            return
        if ring is not None:
            self._ring = ring
            self._metrics.api_keys.set(len(ring.clients))
            self._metrics.api_keys_good.set(1)
            _LOG.info("keys.read", keys=len(ring.clients))

    def _changed(self) -> KeyRing | None:
        text = self._file.changed()
        return None if text is None else read_keys(text)

    def client(self, request: Request) -> Client | None:
        """Find out who sent a request; None where it needs no key.

        Raises:
            KeyUnknown, KeyRefused: the client's.
        """
        if request.path in OPEN_PATHS:
            return None
        key = shown_key(request.headers)
        client = None if key is None else self._ring.find(key)
        if client is None:
            self._metrics.keys_refused.labels("missing" if key is None else "unknown").inc()
            raise KeyUnknown("a valid API key is needed")
        if not client.is_enabled:
            self._metrics.keys_refused.labels("disabled").inc()
            raise KeyRefused("this API key is disabled")
        return client


def check_keys(path: Path) -> None:
    """Say every fault of a file of keys.

    Raises:
        ConfigError: it cannot be read, or used.
    """
    _first(path, WatchedFile(path).content)


def _first(path: Path, text: bytes | None) -> KeyRing:
    setting = f"router.api_keys_file: {path}"
    if text is None:
        raise ConfigError([f"{setting}: cannot be read"])
    try:
        return read_keys(text)
    except ConfigError as error:
        raise ConfigError([f"{setting}: {fault}" for fault in error.faults]) from None


def demand_model(request: Request, model: str, metrics: RouterMetrics) -> None:
    """Refuse a model that the client's key is not good for.

    Raises:
        KeyRefused: the client's.
    """
    client = request.client
    if client is not None and not client.may_ask_for(model):
        metrics.keys_refused.labels("model").inc()
        raise KeyRefused("this API key may not ask for this model", "model")

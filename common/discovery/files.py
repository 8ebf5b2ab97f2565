"""Endpoints in a file, read again when its content is another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import yaml
from pydantic import ValidationError

from kvatlas.common import limits
from kvatlas.common.discovery.found import events_at
from kvatlas.common.discovery.source import SourceFailed, Tell
from kvatlas.common.discovery_settings import FileDiscovery
from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d.endpoints_file import entries_of, is_llm_d
from kvatlas.common.reload import WatchedFile
from kvatlas.common.setting_sections import EndpointSettings
from kvatlas.common.settings import fault_lines

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OWN_TLS: Final = "tls: endpoints in a file are spoken to as endpoint_tls says"


class FileSource:
    """Read a file; one that cannot be used changes nothing."""

    def __init__(self, entry: FileDiscovery) -> None:
        self._entry = entry
        self._file: WatchedFile | None = None
        self._was_there = True
        self._last: Sequence[EndpointSettings] | None = None

    async def run(self, tell: Tell) -> None:
        """Look for ever.

        Raises:
            SourceFailed: it is not there, or cannot be used; once for each content.
        """
        while True:
            content = await asyncio.to_thread(self._changed)
            is_back = self._is_back()
            if content is not None:
                self._last = await asyncio.to_thread(read_entries, content, self._entry)
                tell(self._last)
            elif is_back and self._last is not None:
                tell(self._last)
            await asyncio.sleep(limits.DISCOVERY_FILE_LOOK_S)

    def _changed(self) -> bytes | None:
        if self._file is None:
            self._file = WatchedFile(self._entry.path, limits.DISCOVERY_FILE_BYTES_MAX + 1)
            return self._file.content
        return self._file.changed()

    def _is_back(self) -> bool:
        """Tell whether it is there again.

        Raises:
            SourceFailed: it is not there any more.
        """
        is_there = self._file is not None and self._file.is_there
        was_there, self._was_there = self._was_there, is_there
        if was_there and not is_there:
            raise SourceFailed(f"{self._entry.path}: cannot be read")
        return is_there and not was_there


def read_entries(content: bytes, entry: FileDiscovery) -> list[EndpointSettings]:
    """Read a file of endpoints.

    Args:
        content: YAML or JSON.
        entry: of the configuration, for what the file leaves out.

    Raises:
        SourceFailed: it cannot be used, with every fault of it.
    """
    path = entry.path
    if len(content) > limits.DISCOVERY_FILE_BYTES_MAX:
        raise SourceFailed(f"{path}: has over {limits.DISCOVERY_FILE_BYTES_MAX} bytes")
    entries = _parsed(content, path)
    if is_llm_d(entries):
        try:
            entries = entries_of(entries)
        except ConfigError as error:
            raise SourceFailed(*(f"{path}: {fault}" for fault in error.faults)) from None
    if not isinstance(entries, list):
        raise SourceFailed(f"{path}: is not a list of endpoints")
    read: list[EndpointSettings] = []
    faults: list[str] = []
    for i, each in enumerate(entries):
        try:
            read.append(_endpoint(each, entry))
        except ValidationError as error:
            faults += [f"{path}: {i}.{line}" for line in fault_lines(error)]
        except ValueError as error:
            faults.append(f"{path}: {i}: {error}")
    if faults:
        more = len(faults) - limits.DISCOVERY_FAULTS_MAX
        told = faults[: limits.DISCOVERY_FAULTS_MAX]
        raise SourceFailed(*told, *([f"{more} more"] if more > 0 else []))
    return read


def _parsed(content: bytes, path: Path) -> Any:
    """Read JSON, which takes a twentieth of the time, or YAML."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    try:
        return yaml.load(content, Loader=_LOADER)  # noqa: S506 - a safe one
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise SourceFailed(f"{path}: is neither YAML nor JSON{where}") from None


def _endpoint(content: Any, entry: FileDiscovery) -> EndpointSettings:
    if not isinstance(content, dict):
        raise ValueError("is not a mapping of settings")  # noqa: TRY004 - the file's fault
    if content.get("tls") is not None:
        raise ValueError(_OWN_TLS)
    known = {name: value for name, value in content.items() if value is not None}
    known.setdefault("model", entry.model or "")
    if entry.api_key_file is not None:
        known.setdefault("api_key_file", entry.api_key_file)
    read = EndpointSettings.model_validate(known)
    changes: dict[str, Any] = {}
    if read.events is None:
        at = events_at(entry, read.host_port.rpartition(":")[0])
        changes |= {"events": at.events, "replay": at.replay}
    if entry.labels:
        changes["labels"] = {**entry.labels, **read.labels}
    return read.model_copy(update=changes) if changes else read

"""A configuration file that is read again when it has changed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from kvatlas.common.settings import Settings, load


class ConfigFile:
    """Watch a configuration file by its content: mounted files are replaced, not written to.

    Args:
        path: the file.
        overrides: what the command line says; see `load`.
    """

    def __init__(self, path: Path, overrides: dict[str, Any] | None = None) -> None:
        self._path = path
        self._overrides = overrides
        self._read = self._digest()

    def changed(self) -> Settings | None:
        """Read it again if its content is another than when it was last read, else give None.

        Raises:
            ConfigError: what it says cannot be used; it is read once more when it changes again.
        """
        digest = self._digest()
        if digest is None or digest == self._read:
            return None
        self._read = digest
        return load(self._path, self._overrides)

    def _digest(self) -> bytes | None:
        """Give a digest of the content; None while there is none, as between two files."""
        try:
            return sha256(self._path.read_bytes()).digest()
        except OSError:
            return None

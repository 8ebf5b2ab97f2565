"""Files that are read again when they have changed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from kvatlas.common.settings import Settings, load


class WatchedFile:
    """Watch a file by its content: mounted files are replaced, not written to.

    Args:
        path: of the file.
        bytes_max: that are read of it; None for all.

    Attributes:
        content: as it was at first; None if there was none.
        is_there: whether there was one at the last look.
    """

    def __init__(self, path: Path, bytes_max: int | None = None) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._digest: bytes | None = None
        self.is_there = False
        self.content = self.changed()

    def changed(self) -> bytes | None:
        """Give the content if it is another than when it was last read.

        None while there is none, as between two files.
        """
        try:
            with self._path.open("rb") as file:
                content = file.read(self._bytes_max)
        except OSError:
            self.is_there = False
            return None
        self.is_there = True
        digest = sha256(content).digest()
        if digest == self._digest:
            return None
        self._digest = digest
        return content


class ConfigFile:
    """Watch a configuration file.

    Args:
        path: the file.
        overrides: what the command line says; see `load`.
    """

    def __init__(self, path: Path, overrides: dict[str, Any] | None = None) -> None:
        self._path = path
        self._overrides = overrides
        self._file = WatchedFile(path)

    def changed(self) -> Settings | None:
        """Read it again if its content is another than when it was last read, else give None.

        Raises:
            ConfigError: what it says cannot be used; it is read once more when it changes again.
        """
        return self.read(is_asked=False)

    def read(self, is_asked: bool) -> Settings | None:  # noqa: FBT001 - all that is asked
        """Do the same, and read it in any case where somebody asks for it.

        Raises:
            ConfigError: as above.
        """
        is_other = self._file.changed() is not None
        return load(self._path, self._overrides) if is_other or is_asked else None

"""Keys are read from files, so that they stand neither in the configuration nor in its dumps."""

from __future__ import annotations

from pathlib import Path

from kvatlas.common.errors import ConfigError


def read_key(path: Path | None, setting: str) -> str | None:
    """Read the key in a file; None where no file is named.

    Args:
        path: of the file.
        setting: that names it, for the error.

    Raises:
        ConfigError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"{setting}: {path}: cannot be read"]) from None

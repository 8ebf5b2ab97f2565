"""`kvatlas hash-key`: what stands in the file of API keys for a key."""

from __future__ import annotations

import secrets
from typing import Final

from kvatlas.common.errors import ConfigError
from kvatlas.router.keys import hash_key, read_keys

NEW_KEY_BYTES: Final = 32
"""Of chance in a new key: nobody guesses it, so a fast hash of it is safe in a file."""
KEY_CHARS_MIN: Final = 20
"""Of a key that is brought along; whoever reads the file can try shorter ones."""


def new_key() -> str:
    """Make a key."""
    return "kva-" + secrets.token_urlsafe(NEW_KEY_BYTES)


def line_of(key: str, tenant: str) -> str:
    """Write the entry of a key, a line below `keys:`.

    Raises:
        ConfigError: the key is too short, or the tenant's name cannot be one.
    """
    if len(key) < KEY_CHARS_MIN:
        raise ConfigError([f"a key has at least {KEY_CHARS_MIN} characters"])
    line = f"- {{hash: {hash_key(key)!r}, tenant: {tenant!r}}}"
    read_keys(f"keys:\n{line}".encode())
    return "  " + line

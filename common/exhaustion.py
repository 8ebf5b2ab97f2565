"""Failures to connect that say nothing of the other side: the want was ours."""

from __future__ import annotations

import errno
from typing import Final

_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def is_ours(error: BaseException) -> bool:
    """Tell whether a connection was not even tried, for want of files or memory here."""
    return isinstance(error, OSError) and error.errno in _OURS

"""Giving memory back that loading took."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Return to the system what is free; 170 MB after Qwen3's tokenizer has been loaded.

    The C library keeps it for itself otherwise, for as long as the process lives.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)

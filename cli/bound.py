"""Run a program that ends when its parent does, even when the parent is killed.

Called as a plain file, so that it starts in milliseconds: `python -I -S bound.py PARENT PROGRAM
ARGS...`. The process keeps its id; the request to the kernel survives the exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def bound_command(command: Sequence[str]) -> list[str]:
    """Give the command line that runs `command` bound to this process.

    Elsewhere than on Linux it is the command itself.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    """Ask for a signal at the parent's death, then become the program."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # it died before it could be watched
    os.execv(command[0], command)  # noqa: S606 - becoming that program is the purpose


if __name__ == "__main__":
    main()

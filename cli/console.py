"""What all commands share: where they write, and how they end when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kvatlas.common.errors import ConfigError, IndexUnavailable, KvatlasError
from kvatlas.common.tasks import EX_CONFIG

PIPED_WIDTH = 120


def output() -> Console:
    """Give the console for results; plain and of a fixed width when piped."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def messages() -> Console:
    """Give the console for progress and faults, which are not results."""
    # Without emoji: `:x:` in what a user typed is no cross.
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def progress(console: Console) -> Progress:
    """Make a bar that counts; it is silent when nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def faults_told() -> Iterator[None]:
    """End the command with a line per fault, not with a traceback.

    Exit status 78 for a configuration that cannot be used, 1 for everything else of ours.
    """
    try:
        yield
    except ConfigError as error:
        told = messages()
        for fault in error.faults:
            told.print(f"error: {fault}", markup=False)
        raise typer.Exit(EX_CONFIG) from None
    except IndexUnavailable as error:
        messages().print(f"error: Redis: {error.reason}", markup=False)
        raise typer.Exit(1) from None
    except KvatlasError as error:
        messages().print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None


def read_text(path: Path) -> str:
    """Read a file, or standard input for `-`.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        if str(path) == "-":
            return sys.stdin.read()
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8"]) from None


def read_lines(path: Path) -> Iterator[bytes]:
    """Read a file line by line, or standard input for `-`; only line feeds end a line.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        if str(path) == "-":
            yield from sys.stdin.buffer
        else:
            with path.open("rb") as file:
                yield from file
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None

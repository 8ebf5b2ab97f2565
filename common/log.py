"""Structured logs: one JSON object per line, a closed set of words, never anything of a prompt."""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from time import gmtime, strftime
from time import time as wall
from typing import Any

import orjson
import structlog

from kvatlas.common import limits
from kvatlas.common.log_writer import LineWriter, QueuedLogger

Line = MutableMapping[str, Any]


def configure_logs(level: str, *, json: bool) -> LineWriter:
    """Set up logging for the process.

    Args:
        level: "debug", "info", "warning" or "error".
        json: one JSON object per line; else plain text for people.

    Returns:
        What writes the lines, which ends with the process. A line costs the caller 8 us as JSON.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    render = _json if json else _plain()
    stamp = _Stamp()
    writer = LineWriter(sys.stderr.fileno(), lambda count: render(None, "", stamp(_lost(count))))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            lambda _logger, _method, line: stamp(line),
            # Local variables would carry prompts and keys into the log.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
            ),
            _shorten,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_args: QueuedLogger(writer),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s %(message)s")
    atexit.register(writer.close)
    return writer


class _Stamp:
    """Write the time into lines, its second once for all lines of it."""

    def __init__(self) -> None:
        self._second = 0
        self._written = ""

    def __call__(self, line: Line) -> Line:
        now = wall()
        second = int(now)
        if second != self._second:
            self._second = second
            self._written = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        line["timestamp"] = f"{self._written}.{int((now - second) * 1e6):06d}Z"
        return line


def _lost(count: int) -> Line:
    return {"part": "log", "event": "log.dropped", "level": "error", "lines": count}


def _json(_logger: Any, _method: str, line: Line) -> bytes:
    return orjson.dumps(line, default=repr)


def _plain() -> Any:
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return lambda logger, method, line: str(console(logger, method, line)).encode()


def _shorten(_logger: Any, _method: str, line: Line) -> Line:
    """Bound every value of a log line."""
    for key, value in line.items():
        if isinstance(value, str) and len(value) > limits.LOG_LINE_CHARS_MAX:
            line[key] = value[: limits.LOG_LINE_CHARS_MAX] + "..."
    return line


@contextmanager
def no_logs() -> Iterator[None]:
    """Log nothing until the context ends: what a command finds out it prints itself."""
    before = structlog.get_config()
    mute = structlog.make_filtering_bound_logger(logging.CRITICAL + 1)
    structlog.configure(**before | {"wrapper_class": mute})
    try:
        yield
    finally:
        structlog.configure(**before)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Give the logger of a part; events are named `noun.verb_past`."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return bound

"""Structured logs: one JSON object per line, a closed set of words, never anything of a prompt."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from kvatlas.common import limits


def configure_logs(level: str, *, json: bool) -> None:
    """Set up logging for the process.

    Args:
        level: "debug", "info", "warning" or "error".
        json: one JSON object per line; else plain text for people.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    render: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Local variables would carry prompts and keys into the log.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
            ),
            _shorten,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s %(message)s")


def _shorten(
    _logger: Any, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Bound every value of a log line."""
    for key, value in line.items():
        if isinstance(value, str) and len(value) > limits.LOG_LINE_CHARS_MAX:
            line[key] = value[: limits.LOG_LINE_CHARS_MAX] + "..."
    return line


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Give the logger of a part; events are named `noun.verb_past`."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return bound

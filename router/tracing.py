"""Traces in W3C's format: a client's context in, ours to the engine, a span for each stage.

Spans are records of our own; an exporter takes them where they are wanted (`otel`). They hold ids,
counts and names from the configuration, never anything of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from time import time as wall
from typing import Final, Protocol

from kvatlas.common.clock import monotonic

TRACEPARENT: Final = "traceparent"
_FORMAT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Context:
    """Where a span stands, as it is told over HTTP."""

    trace_id: str
    span_id: str
    is_sampled: bool = True

    def header(self) -> str:
        """Write it as a traceparent."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"


@dataclass(frozen=True, slots=True)
class Span:
    """A span that has ended.

    Attributes:
        parent_id: of the span that it is part of; None for the first of a trace.
        is_server: whether it is the whole of a request; else a part of one.
    """

    name: str
    context: Context
    parent_id: str | None
    begun_ns: int
    ended_ns: int
    attributes: Mapping[str, Value]
    is_error: bool = False
    is_server: bool = False


class Exporter(Protocol):
    """What takes spans; it must not block."""

    def export(self, span: Span) -> None:
        """Take a span."""

    def close(self) -> None:
        """Send what was taken, and end."""


def read_context(received: Sequence[str]) -> Context | None:
    """Read a client's traceparent headers; None where there is not one that is valid."""
    found = _FORMAT.fullmatch(received[0]) if len(received) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    is_known = version != "ff" and not (version == "00" and rest)
    if not is_known or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Context(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


class Tracer:
    """Begin traces.

    Args:
        exporter: takes the spans.
        share: of requests without a context that are traced, 0 to 1.
        chance: draws ids, and who is traced.
    """

    def __init__(self, exporter: Exporter, share: float, chance: Random) -> None:
        self._exporter = exporter
        self._share = share
        self._chance = chance

    def begin(self, received: Sequence[str]) -> Trace | None:
        """Begin a request's trace; None where it is not to be traced.

        Args:
            received: its traceparent headers. A client decides for its own trace.
        """
        parent = read_context(received)
        if not (parent.is_sampled if parent else self._chance.random() < self._share):
            return None
        trace_id = parent.trace_id if parent else self._id(128)
        own = Context(trace_id, self._id(64))
        return Trace(self._exporter, own, parent.span_id if parent else None, self._chance)

    def close(self) -> None:
        """Send what was taken."""
        self._exporter.close()

    def _id(self, bits: int) -> str:
        return _draw(self._chance, bits)


class Trace:
    """One request's spans. Stages follow each other: each begins where the one before ended."""

    __slots__ = ("_begun_s", "_chance", "_exporter", "_next_id", "_own", "_parent", "_since_s",
                 "_wall_s")  # fmt: skip

    def __init__(
        self, exporter: Exporter, own: Context, parent: str | None, chance: Random
    ) -> None:
        self._exporter = exporter
        self._own = own
        self._parent = parent
        self._chance = chance
        self._begun_s = self._since_s = monotonic()
        self._wall_s = wall()
        self._next_id = _draw(chance, 64)

    @property
    def trace_id(self) -> str:
        """Give its id, for the log line."""
        return self._own.trace_id

    def header(self) -> str:
        """Write the traceparent of the stage that is under way."""
        return Context(self._own.trace_id, self._next_id).header()

    def end_stage(
        self,
        name: str,
        attributes: Mapping[str, Value | None],
        parts_ms: Mapping[str, float] | None = None,
    ) -> None:
        """End the stage that is under way.

        Args:
            name: of it.
            attributes: those that are None are left out.
            parts_ms: what it was made of, in order; they are drawn end to end from its beginning.
        """
        context, now_s = Context(self._own.trace_id, self._next_id), monotonic()
        at_s = self._since_s
        for part, spent_ms in (parts_ms or {}).items():
            inner = Context(self._own.trace_id, _draw(self._chance, 64))
            self._export(part, inner, context.span_id, (at_s, at_s + spent_ms / 1e3), {})
            at_s += spent_ms / 1e3
        self._export(name, context, self._own.span_id, (self._since_s, now_s), attributes)
        self._since_s, self._next_id = now_s, _draw(self._chance, 64)

    def end(self, attributes: Mapping[str, Value | None], *, is_error: bool) -> None:
        """End the request's own span."""
        at = (self._ns(self._begun_s), self._ns(monotonic()))
        told = _told(attributes)
        self._exporter.export(
            Span("request", self._own, self._parent, *at, told, is_error, is_server=True)
        )

    def _export(
        self,
        name: str,
        context: Context,
        parent: str,
        at_s: tuple[float, float],
        attributes: Mapping[str, Value | None],
    ) -> None:
        at = (self._ns(at_s[0]), self._ns(at_s[1]))
        self._exporter.export(Span(name, context, parent, *at, _told(attributes)))

    def _ns(self, at_s: float) -> int:
        return int((self._wall_s + at_s - self._begun_s) * 1e9)


def _told(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}


def _draw(chance: Random, bits: int) -> str:
    """Draw an id, which must not be 0."""
    return f"{chance.getrandbits(bits) or 1:0{bits // 4}x}"

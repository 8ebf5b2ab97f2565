"""Spans to an OpenTelemetry collector, over OTLP and HTTP. Needs `kvatlas[otel]`."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from kvatlas.router.tracing import Span


class OtelExporter:
    """Hand spans to OpenTelemetry, which sends them in batches from a thread of its own.

    Args:
        exporter: sends them.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._processor = BatchSpanProcessor(exporter)
        self._resource = Resource.create({"service.name": "kvatlas-router"})

    def export(self, span: Span) -> None:
        """Queue a span; a full queue drops it."""
        parent = span.parent_id and _context(span.context.trace_id, span.parent_id)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_context(span.context.trace_id, span.context.span_id),
                parent=parent or None,
                resource=self._resource,
                attributes=dict(span.attributes),
                kind=SpanKind.SERVER if span.is_server else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR if span.is_error else StatusCode.UNSET),
                start_time=span.begun_ns,
                end_time=span.ended_ns,
            )
        )

    def close(self) -> None:
        """Send what is queued."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations


def otlp(url: str) -> OtelExporter:
    """Make an exporter that sends to a collector."""
    return OtelExporter(OTLPSpanExporter(endpoint=url))


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )

"""Spans over OTLP to a collector of our own: what arrives, and what happens where none takes them.

The packages are those of `kvatlas[otel]`, which the tests' environment has.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kvatlas.common import limits
from kvatlas.common.admin import serving
from kvatlas.common.prompt import CHAT_PATH, MESSAGES_PATH
from kvatlas.router.app import router
from kvatlas.router.otel import OtelExporter
from kvatlas.router.tracing import Context, Span, Tracer
from tests.fakes.place import CHAT, MESSAGES, STREAM, Place, faked, settings_for, simulated
from tests.fakes.upstream import Exchange, plain

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
ANSWER = b'{"choices": [], "usage": {"prompt_tokens": 9}}'
PARTS = {"render", "tokenize", "hash", "lookup", "score"}


@dataclass
class Collector:
    """What takes traces over OTLP and HTTP.

    Attributes:
        wait_s: before it answers.
        status: of its answers.
        spans: that it was sent and took.
        services: that they came from.
    """

    wait_s: float = 0.0
    status: int = 200
    spans: list[Any] = field(default_factory=list)
    services: set[str] = field(default_factory=set)
    asked: int = 0
    url: str = ""

    async def take(self, request: web.Request) -> web.Response:
        """Take a batch."""
        assert request.content_type == "application/x-protobuf"
        self.asked += 1
        batch = ExportTraceServiceRequest.FromString(await request.read())
        await asyncio.sleep(self.wait_s)
        if self.status == 200:
            for resource in batch.resource_spans:
                told = {each.key: each.value.string_value for each in resource.resource.attributes}
                self.services.add(told["service.name"])
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return web.Response(status=self.status)

    def named(self, name: str) -> Any:
        """Find the only span of a name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    async def has(self, count: int) -> None:
        """Wait until that many spans have come."""
        for _ in range(500):
            if len(self.spans) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(self.spans)} of {count} spans have come")


@asynccontextmanager
async def collecting(**behaviour: Any) -> AsyncIterator[Collector]:
    """Run a collector."""
    collector = Collector(**behaviour)
    app = web.Application(client_max_size=limits.BODY_BYTES_MAX)
    app.router.add_post("/v1/traces", collector.take)
    async with serving(app, "127.0.0.1", 0) as port:
        collector.url = f"http://127.0.0.1:{port}/v1/traces"
        yield collector


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send at once, and give up soon."""
    monkeypatch.setattr(limits, "SPANS_EVERY_S", 0.05)
    monkeypatch.setattr(limits, "SPANS_SEND_S", 0.5)
    monkeypatch.setattr(limits, "SPANS_CLOSE_S", 0.5)


async def send(
    place: Place, body: Any = CHAT, path: str = CHAT_PATH, **headers: str
) -> tuple[int, bytes]:
    """Send a request; give status and answer."""
    async with place.session.post(place.url + path, json=body, headers=headers) as reply:
        return reply.status, await reply.read()


def attributes(span: Any) -> dict[str, Any]:
    """Read a span's attributes."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


@pytest.mark.usefixtures("patient")
async def test_spans_arrive_with_parents_and_without_prompts(redis_url: str) -> None:
    """One for each stage within the request's own, below the client's; ids, counts and names."""
    async with (
        collecting() as collector,
        simulated(redis_url, trace_url=collector.url, trace_share=0.0) as place,
    ):
        status, answer = await send(place, STREAM, traceparent=SAMPLED, tracestate="a=b")
        assert status == 200
        await collector.has(4 + len(PARTS))
        name = place.endpoint.name
    request, decide, engine = map(collector.named, ("request", "decide", "engine"))
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    for stage in ("receive", "decide", "engine"):
        assert collector.named(stage).parent_span_id == request.span_id
    inner = {span.name for span in collector.spans if span.parent_span_id == decide.span_id}
    assert inner == PARTS
    assert {span.name for span in collector.spans} == PARTS | {
        "request",
        "receive",
        "decide",
        "engine",
    }
    assert len({span.span_id for span in collector.spans}) == len(collector.spans)
    now_ns = time.time_ns()
    for span in collector.spans:
        assert span.trace_id.hex() == TRACE
        begun, ended = span.start_time_unix_nano, span.end_time_unix_nano
        assert now_ns - 60e9 < request.start_time_unix_nano <= begun <= ended <= now_ns
    assert attributes(engine)["kvatlas.endpoint"] == name
    told = attributes(request)
    assert told["http.response.status_code"] == 200
    assert told["gen_ai.request.model"] == "m"
    assert told["url.path"] == CHAT_PATH
    assert collector.services == {"kvatlas-router"}
    written = repr(collector.spans).encode()
    assert MESSAGES[1]["content"].encode() not in written
    words = [part for part in answer.split(b'"content":"')[2].split(b'"')[:1] if len(part) > 4]
    assert all(word not in written for word in words)


async def test_the_context_goes_on_to_the_engine(redis_url: str) -> None:
    """Ours as the parent, the client's tracestate as it is; a trace that is not sampled is not."""
    async with (
        collecting() as collector,
        faked(plain(ANSWER), redis_url, trace_url=collector.url, trace_share=0.0) as (
            engine,
            place,
        ),
    ):
        await send(place, traceparent=SAMPLED, tracestate="vendor=x")
        await collector.has(4 + len(PARTS))
        head = engine.requests[-1].head.decode().lower()
        span = collector.named("engine").span_id.hex()
        assert f"traceparent: 00-{TRACE}-{span}-01\r\n" in head
        assert "tracestate: vendor=x\r\n" in head
        taken = len(collector.spans)
        await send(place, traceparent=SAMPLED[:-1] + "0")
        assert f"traceparent: 00-{TRACE}-{PARENT}-00\r\n" in engine.requests[-1].head.decode()
        await send(place)
        assert "traceparent" not in engine.requests[-1].head.decode().lower()
        await asyncio.sleep(0.2)
        assert len(collector.spans) == taken


async def test_a_share_of_the_others_is_traced(redis_url: str) -> None:
    """About that many, and all of those whose client wants it; errors are marked."""
    async with (
        collecting() as collector,
        faked(plain(b"{}", "500 Oops"), redis_url, trace_url=collector.url) as (_, place),
    ):
        tracer = place.running.desk.tracer
        assert tracer is not None
        place.running.desk.tracer = Tracer(tracer._exporter, 0.5, Random(7))
        for _ in range(40):
            await send(place)
        await collector.has(10)
        await asyncio.sleep(0.3)
        requests = [span for span in collector.spans if span.name == "request"]
        assert 10 <= len(requests) <= 30
        assert {span.status.code for span in requests} == {2}
        assert len({span.trace_id for span in requests}) == len(requests)


async def test_a_client_that_leaves_ends_its_trace(redis_url: str) -> None:
    """With what became of it, and with the stage that it left in."""

    async def silent(_: Exchange) -> None:
        await asyncio.sleep(1.0)

    async with (
        collecting() as collector,
        faked(silent, redis_url, trace_url=collector.url) as (_, place),
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send(place, {**CHAT, "max_tokens": 4}), 0.3)
        await collector.has(4 + len(PARTS))
        assert attributes(collector.named("request"))["kvatlas.outcome"] == "client_closed"
        assert attributes(collector.named("request"))["http.response.status_code"] == 499
        assert collector.named("engine")


@pytest.mark.parametrize("behaviour", [{"wait_s": 30.0}, {"status": 503}, {"status": 400}])
async def test_a_collector_that_fails_costs_spans_and_nothing_else(
    redis_url: str, behaviour: dict[str, Any]
) -> None:
    """Requests are as fast as without it; what is lost is counted; the router stops in time."""
    async with collecting(**behaviour) as collector:
        async with faked(plain(ANSWER), redis_url, trace_url=collector.url) as (_, place):
            lost = place.running.metrics.spans_lost
            before = await _median_s(place)
            for _ in range(500):
                if place.count(lost, "not_sent"):
                    break
                await asyncio.sleep(0.01)
            assert place.count(lost, "not_sent") >= 4
            assert await _median_s(place) < 4 * before + 0.02
            stopping_s = time.monotonic()
        assert time.monotonic() - stopping_s < 5
        assert collector.asked
        assert collector.spans == []


async def test_a_collector_that_is_away_fills_no_memory(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue has a bound; beyond it spans are dropped and counted."""
    monkeypatch.setattr(limits, "SPANS_QUEUED_MAX", 8)
    monkeypatch.setattr(limits, "SPANS_EVERY_S", 30.0)
    async with faked(plain(ANSWER), redis_url, trace_url="http://127.0.0.1:1/") as (_, place):
        lost = place.running.metrics.spans_lost
        # Half of a queue wakes the thread, which then holds these for as long as it tries.
        for _ in range(30):
            assert (await send(place))[0] == 200
        assert place.count(lost, "queue_full") > 0
        tracer = place.running.desk.tracer
        assert tracer is not None
        assert isinstance(tracer._exporter, OtelExporter)
        assert len(tracer._exporter._queue) <= 8


async def test_a_collector_that_comes_back_is_sent_to(
    redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line when it goes, one when it is back, and none of the library's."""
    async with (
        collecting(status=400) as collector,
        faked(plain(ANSWER), redis_url, trace_url=collector.url) as (_, place),
    ):
        for _ in range(3):
            await send(place)
            await asyncio.sleep(0.15)
        collector.status = 200
        await send(place)
        await collector.has(4 + len(PARTS))
    said = "".join(capfd.readouterr())
    assert said.count("traces.not_sent") == said.count("traces.sent") == 1
    assert "opentelemetry" not in said


async def test_other_paths_are_traced_alike(redis_url: str) -> None:
    """With the path, and without what is known of a prompt where there is none."""
    body = {"model": "m", "max_tokens": 3, "messages": [MESSAGES[1]]}
    async with (
        collecting() as collector,
        faked(plain(b"{}"), redis_url, trace_url=collector.url) as (_, place),
    ):
        for path in (MESSAGES_PATH, f"{MESSAGES_PATH}/count_tokens"):
            await send(place, body, path)
        await collector.has(8)
        await asyncio.sleep(0.2)
    requests = [attributes(span) for span in collector.spans if span.name == "request"]
    assert [told["url.path"] for told in requests] == [
        MESSAGES_PATH,
        f"{MESSAGES_PATH}/count_tokens",
    ]
    assert ["gen_ai.usage.input_tokens" in told for told in requests] == [True, False]


def test_all_that_is_queued_is_sent_in_the_end() -> None:
    """In order and in batches; ids, times, attributes and status as they were told."""

    class Batches(InMemorySpanExporter):
        """Keep how large batches were."""

        sizes: ClassVar[list[int]] = []

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            """Keep a batch."""
            self.sizes.append(len(spans))
            return super().export(spans)

    store, lost = Batches(), []
    exporter = OtelExporter(store, lambda how, count: lost.append((how, count)))
    own = Context(TRACE, "00f067aa0ba902b7")
    for number in range(600):
        told = {"n": number}
        exporter.export(Span("request", own, PARENT, 5, 9, told, is_error=True, is_server=True))
    exporter.close()
    spans = store.get_finished_spans()
    assert [(span.attributes or {})["n"] for span in spans] == list(range(600))
    assert max(store.sizes) <= limits.SPANS_PER_BATCH_MAX
    assert lost == []
    first = spans[0]
    assert first.context is not None
    assert first.parent is not None
    assert (first.name, first.start_time, first.end_time) == ("request", 5, 9)
    assert (first.context.trace_id, first.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert not first.status.is_ok


async def test_without_a_collector_there_is_no_thread_and_no_tracer(redis_url: str) -> None:
    """Off is off."""
    async with router(settings_for("http://127.0.0.1:1", redis_url)) as running:
        assert running.desk.tracer is None


async def _median_s(place: Place) -> float:
    spent = []
    for _ in range(15):
        begun = time.monotonic()
        assert (await send(place))[0] == 200
        spent.append(time.monotonic() - begun)
    return statistics.median(spent)

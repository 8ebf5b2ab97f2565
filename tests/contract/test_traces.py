"""Traces: a client's context in, ours to the engine, a span per stage, and nothing when off."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt import CHAT_PATH
from kvatlas.router.app import router
from kvatlas.router.tracing import Context, Span, Tracer, read_context
from tests.fakes.place import CHAT, MESSAGES, Place, faked, settings_for
from tests.fakes.upstream import Upstream, plain

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
ANSWER = b'{"choices": [], "usage": {"prompt_tokens": 9}}'


@dataclass
class Kept:
    """An exporter that keeps what it takes."""

    spans: list[Span] = field(default_factory=list)

    def export(self, span: Span) -> None:
        """Keep a span."""
        self.spans.append(span)

    def close(self) -> None:
        """Do nothing."""

    def named(self, name: str) -> Span:
        """Find the only span of a name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found


async def send(place: Place, body: Any = CHAT, **headers: str) -> int:
    """Send a chat with headers; give the status."""
    url = place.url + CHAT_PATH
    async with place.session.post(url, json=body, headers=headers) as reply:
        await reply.read()
        return reply.status


def told(engine: Upstream) -> str | None:
    """Give the traceparent that the engine got last."""
    lines = engine.requests[-1].head.decode().split("\r\n")
    found = [line.split(": ")[1] for line in lines if line.lower().startswith("traceparent:")]
    return found[0] if found else None


@pytest.mark.usefixtures("patient")
async def test_a_request_is_traced_from_the_client_to_the_engine(
    redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The client's span is our parent, ours the engine's; stages lie within; no text is told."""
    kept = Kept()
    async with faked(plain(ANSWER), redis_url) as (engine, place):
        place.running.desk.tracer = Tracer(kept, 0.0, Random(1))
        assert await send(place, traceparent=SAMPLED) == 200
        sent = read_context([told(engine) or ""])
        request, attempt, decide = map(kept.named, ("request", "engine", "decide"))
        name = place.endpoint.name
    assert (request.context.trace_id, request.parent_id) == (TRACE, PARENT)
    assert sent == attempt.context
    assert attempt.parent_id == decide.parent_id == request.context.span_id
    assert request.attributes["http.response.status_code"] == 200
    assert attempt.attributes["kvatlas.endpoint"] == name
    inner = {span.name for span in kept.spans if span.parent_id == decide.context.span_id}
    assert inner == {"render", "tokenize", "hash", "lookup", "score"}
    assert {span.name for span in kept.spans} == inner | {"request", "receive", "decide", "engine"}
    for span in kept.spans:
        assert request.begun_ns <= span.begun_ns <= span.ended_ns
    assert len({span.context.span_id for span in kept.spans}) == len(kept.spans)
    assert str(MESSAGES[1]["content"]) not in repr(kept.spans)
    assert TRACE in "".join(capfd.readouterr())


async def test_who_is_traced(redis_url: str) -> None:
    """A client's flag decides for its trace; the share for all others; else headers pass as is."""
    kept = Kept()
    async with faked(plain(ANSWER), redis_url) as (engine, place):
        unsampled = SAMPLED[:-1] + "0"
        await send(place, traceparent=SAMPLED)
        assert told(engine) == SAMPLED
        place.running.desk.tracer = Tracer(kept, 1.0, Random(1))
        await send(place, traceparent=unsampled)
        assert told(engine) == unsampled
        assert kept.spans == []
        await send(place)
        assert kept.named("request").parent_id is None
        place.running.desk.tracer = Tracer(kept, 0.0, Random(1))
        await send(place)
        assert told(engine) is None


async def test_errors_are_marked(redis_url: str) -> None:
    """What the client is told and what the engine did; a client's own fault is no error."""
    kept = Kept()
    async with faked(plain(b"{}", "500 Oops"), redis_url) as (_, place):
        place.running.desk.tracer = Tracer(kept, 1.0, Random(1))
        assert await send(place) == 500
        assert kept.named("request").is_error
        kept.spans.clear()
        assert await send(place, {**CHAT, "model": "no such one"}) == 404
        assert not kept.named("request").is_error
        assert kept.named("request").attributes["kvatlas.outcome"] == "model_not_found"
        assert "no such one" not in json.dumps([str(span) for span in kept.spans])


@pytest.mark.parametrize(
    "received",
    [
        [],
        [SAMPLED, SAMPLED],
        ["x"],
        [SAMPLED.replace("00-", "ff-", 1)],
        [SAMPLED + "-more"],
        [SAMPLED.upper()],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
    ],
)
def test_what_is_no_context_is_none(received: list[str]) -> None:
    """By the rules of W3C Trace Context 3.2."""
    assert read_context(received) is None


def test_later_versions_are_read_as_far_as_they_are_known() -> None:
    """They may have more fields, and more flags."""
    found = read_context([f"cc-{TRACE}-{PARENT}-03-what-follows"])
    assert found == Context(TRACE, PARENT)
    assert found.header() == SAMPLED


async def test_missing_packages_are_named_at_the_start(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing is on and cannot be done: the router does not start."""
    monkeypatch.delitem(sys.modules, "kvatlas.router.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    settings = settings_for("http://127.0.0.1:1", redis_url, trace_url="http://127.0.0.1:2")
    with pytest.raises(ConfigError, match=r"router\.trace_url.*kvatlas\[otel\]"):
        async with router(settings):
            pass

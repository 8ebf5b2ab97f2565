"""Whatever an engine sends and however it is cut: the client gets the stream it would have got."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvatlas.router.usage import Usage
from kvatlas.router.usage_stream import UsageStream

TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        '"usage"',
        "[DONE]",
        "\n\n",
        "\r\n",
        '"finish_reason":"stop"',
        'data: {"choices":[],"usage":1}',
    ]
)
ENDS = st.sampled_from(["stop", "length", "tool_calls"])
NEWLINES = st.sampled_from([b"\n", b"\r\n", b"\r"])


unhurried = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Engine:
    """How an engine writes."""

    fingerprint: str | None
    newline: bytes
    is_chat: bool
    has_details: bool

    def event(self, chunk: dict[str, Any]) -> bytes:
        """Write a chunk."""
        text = json.dumps(chunk, separators=(",", ":"), ensure_ascii=False)
        return b"data: " + text.encode() + 2 * self.newline

    def stream(self, texts: list[str], end: str | None, *, asked: bool) -> bytes:
        """Write a stream, with the usage or without it."""
        head = {"id": "1", "model": "m"}
        events = []
        for text in texts:
            part = {"delta": {"content": text}} if self.is_chat else {"text": text}
            choice = {"index": 0, **part, "finish_reason": None}
            events.append(self.event({**head, "choices": [choice]}))
        if end is None:
            events.append(self.event({"error": {"message": "no"}}))
        else:
            last: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": end}]}
            if not asked and self.fingerprint is not None:
                last["system_fingerprint"] = self.fingerprint
            events.append(self.event({**head, **last}))
        if asked and end is not None:
            usage: dict[str, Any] = {"prompt_tokens": 7}
            if self.has_details:
                usage["prompt_tokens_details"] = {"cached_tokens": 3}
            chunk: dict[str, Any] = {**head, "choices": [], "usage": usage}
            if self.fingerprint is not None:
                chunk["system_fingerprint"] = self.fingerprint
            events.append(self.event(chunk))
        return b"".join((*events, b"data: [DONE]", 2 * self.newline))


ENGINES = st.builds(
    Engine,
    fingerprint=st.none() | st.sampled_from(["vllm-0.32.0-abc", 'ü"\\']),
    newline=NEWLINES,
    is_chat=st.booleans(),
    has_details=st.booleans(),
)


def pieces_of(data: st.DataObject, raw: bytes) -> list[bytes]:
    """Cut bytes anywhere."""
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=20))
    edges = [0, *sorted(cuts), len(raw)]
    return [raw[a:b] for a, b in itertools.pairwise(edges)]


@unhurried
@given(st.data(), ENGINES, st.lists(TEXTS, max_size=5), st.none() | ENDS)
def test_asking_for_usage_changes_nothing_for_the_client(
    data: st.DataObject, engine: Engine, texts: list[str], end: str | None
) -> None:
    """All that is written together equals the stream of an engine that was not asked."""
    asked = engine.stream(texts, end, asked=True)
    stream = UsageStream(takes_out=True, stamps=engine.fingerprint is not None)
    passed = b"".join(map(stream.feed, pieces_of(data, asked))) + stream.end()
    assert passed == engine.stream(texts, end, asked=False)
    cached = 3 if engine.has_details else None
    assert stream.usage == (None if end is None else Usage(7, cached))
    assert stream.is_done


@unhurried
@given(
    data=st.data(),
    engine=ENGINES,
    texts=st.lists(TEXTS, max_size=5),
    end=st.none() | ENDS,
    asked=st.booleans(),
)
def test_a_watched_stream_passes_piece_by_piece(
    data: st.DataObject, engine: Engine, texts: list[str], end: str | None, *, asked: bool
) -> None:
    """Each piece is given back as it came, and the usage is read if there is one."""
    stream = UsageStream(takes_out=False, stamps=False)
    for piece in pieces_of(data, engine.stream(texts, end, asked=asked)):
        assert stream.feed(piece) == piece
    assert stream.end() == b""
    assert (stream.usage is not None) == (asked and end is not None)


@unhurried
@given(st.data(), st.binary(max_size=200))
def test_any_bytes_pass(data: st.DataObject, raw: bytes) -> None:
    """What is no stream of events at all is passed on whole."""
    stream = UsageStream(takes_out=True, stamps=True)
    assert b"".join(map(stream.feed, pieces_of(data, raw))) + stream.end() == raw

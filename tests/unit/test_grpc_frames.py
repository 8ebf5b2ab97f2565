"""Frames, heads, messages and budgets of our gRPC server: bytes in any pieces, and any bytes."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.router.grpc import frames, heads
from kvatlas.router.grpc.budget import Budget
from kvatlas.router.grpc.frames import Code, Fault, Frame, FrameReader
from kvatlas.router.grpc.heads import MALFORMED, Head, HeadReader, Status
from kvatlas.router.grpc.messages import BadMessage, MessageReader

MESSAGE_MAX = 300
GREETING = frames.PREFACE + frames.settings({})
CALL = [
    (":method", "POST"), (":scheme", "http"), (":path", "/a/B"),
    ("content-type", "application/grpc"),
]  # fmt: skip

some_frames = st.builds(
    frames.frame,
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 8, 0x2C]) | st.integers(0, 255),
    st.sampled_from([0, 1, 3, 2**31 + 1]),
    st.binary(max_size=40) | st.binary(min_size=4, max_size=4) | st.binary(min_size=8, max_size=8),
)
streams_of_bytes = (
    st.builds(lambda each: GREETING + b"".join(each), st.lists(some_frames, max_size=12))
    | st.builds(lambda rest: GREETING + rest, st.binary(max_size=200))
    | st.binary(max_size=60)
)
some_messages = st.builds(
    lambda flag, body, off: bytes([flag]) + (len(body) + off).to_bytes(4, "big") + body,
    st.sampled_from([0, 0, 0, 0, 1, 2]),
    st.binary(max_size=MESSAGE_MAX + 5),
    st.sampled_from([0, 0, 0, 1]),
)


def decoded(block: bytes) -> list[tuple[str, str]]:
    """Read what we wrote, as a client does."""
    return [(str(name), str(value)) for name, value in hpack.Decoder().decode(block)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut at places, wherever they are."""
    at = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def read_frames(pieces: list[bytes]) -> tuple[list[Frame], Code | None]:
    """Read all that can be read, and say what ended it."""
    reader, found = FrameReader(), []
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                found.append(frame)  # noqa: PERF402 - those before a fault count
    except Fault as fault:
        return found, fault.code
    return found, None


def read_messages(pieces: list[bytes]) -> tuple[list[bytes], Status | None, bytes]:
    """Read messages alike; those of the piece that ends it do not count."""
    reader, found = MessageReader(MESSAGE_MAX), []
    try:
        for piece in pieces:
            found += reader.feed(piece)
    except BadMessage as bad:
        return found, bad.status, b""
    return found, None, bytes(reader.partial)


@given(streams_of_bytes, st.lists(st.integers(0, 2_000), max_size=8))
def test_frames_are_the_same_in_any_pieces(data: bytes, places: list[int]) -> None:
    """Frames are the same in any pieces."""
    whole = read_frames([data])
    assert read_frames(cut(data, places)) == whole
    assert read_frames([data[at : at + 1] for at in range(len(data))]) == whole


@given(st.lists(some_messages, max_size=6), st.lists(st.integers(0, 2_000), max_size=8))
def test_messages_are_the_same_in_any_pieces(each: list[bytes], places: list[int]) -> None:
    """Messages are the same in any pieces."""
    data = b"".join(each)
    whole, status, partial = read_messages([data])
    found, told, rest = read_messages(cut(data, places))
    assert (told, rest) == (status, partial)
    # Where one is bad, those before it may be out already.
    assert found == whole if status is None else found[: len(whole)] == whole


@given(st.binary(max_size=400))
def test_any_bytes_are_messages_or_bad(data: bytes) -> None:
    """Any bytes are messages or bad."""
    found, status, partial = read_messages([data])
    if status is None:
        assert sum(5 + len(one) for one in found) + len(partial) == len(data)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_block_is_a_head_or_a_fault(blocks: list[bytes]) -> None:
    """Any block is a head or a fault."""
    reader, second = HeadReader(), hpack.Decoder()
    second.max_header_list_size = limits.HEADERS_BYTES_MAX
    for block in blocks:
        try:
            found = reader.read(block)
        except Fault:
            return
        assert found.http_status in (200, 405, 415)
        fields = dict(second.decode(block, raw=True))
        if found.path:
            assert fields[b":path"].decode("latin-1") == found.path


def test_blocks_that_are_known_follow_the_table() -> None:
    """Blocks that are known follow the table."""
    reader, encoder = HeadReader(), hpack.Encoder()
    first = encoder.encode(CALL)
    again = encoder.encode(CALL)
    assert [reader.read(block) for block in (first, again, again)] == [Head("/a/B")] * 3
    encoder.encode([(":path", "/other")])
    # The same bytes mean another path behind a new entry of the table.
    reader.read(b"\x44\x06/other")
    assert reader.read(again) != Head("/a/B")


@pytest.mark.parametrize(
    ("changed", "head"),
    [
        ([], Head("/a/B")),
        ([("te", "trailers")], Head("/a/B")),
        ([("te", "gzip")], MALFORMED),
        ([("Upper", "x")], MALFORMED),
        ([("connection", "close")], MALFORMED),
        ([(":path", "/late")], MALFORMED),
        ([("content-type", "application/grpc+proto")], Head("/a/B")),
        ([("content-type", "application/grpc-web")], Head("", 415)),
    ],
)
def test_heads(changed: list[tuple[str, str]], head: Head) -> None:
    """Heads."""
    assert HeadReader().read(hpack.Encoder().encode([*CALL, *changed])) == head


def test_what_is_answered_can_be_read() -> None:
    """What is answered can be read."""
    assert decoded(heads.ANSWER) == [(":status", "200"), ("content-type", "application/grpc")]
    assert decoded(heads.not_grpc(415)) == [(":status", "415")]
    assert decoded(heads.trailers(Status.OK)) == [("grpc-status", "0")]
    long = "ä%\n" + "x" * 600
    told = dict(decoded(heads.trailers(Status.INTERNAL, long)))
    assert told["grpc-status"] == "13"
    assert told["grpc-message"].startswith("%C3%A4%25%0Axxx")
    assert len(told["grpc-message"]) < 3 * limits.GRPC_TEXT_BYTES_MAX


def test_a_block_in_many_frames_is_one() -> None:
    """A block in many frames is one."""
    data = GREETING + frames.frame(frames.HEADERS, frames.END_STREAM, 1, b"ab")
    data += frames.frame(frames.CONTINUATION, 0, 1, b"cd")
    data += frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, b"ef")
    found, fault = read_frames([data])
    assert fault is None
    assert [each[:4] for each in found[1:]] == [(frames.HEADERS, frames.END_STREAM, 1, b"abcdef")]


def test_padding_and_weights_are_taken_off() -> None:
    """Padding and weights are taken off."""
    flags = frames.PADDED | frames.WEIGHTED | frames.END_HEADERS
    data = GREETING + frames.frame(frames.HEADERS, flags, 1, b"\x02" + bytes(5) + b"ab\0\0")
    data += frames.frame(frames.DATA, frames.PADDED, 1, b"\x01x\0")
    found, _ = read_frames([data])
    assert [(each[3], each[4]) for each in found[1:]] == [(b"ab", 10), (b"x", 3)]


def test_a_budget_is_spent_and_comes_back() -> None:
    """A budget is spent and comes back."""
    budget = Budget(2, 10.0)
    assert [budget.spend(1.0) for _ in range(3)] == [True, True, False]
    assert [budget.spend(1.1), budget.spend(1.1)] == [True, False]
    budget.earn(100)
    assert [budget.spend(1.1) for _ in range(3)] == [True, True, False]
    # What is not spent is no more than the bucket holds.
    assert [budget.spend(99.0) for _ in range(3)] == [True, True, False]

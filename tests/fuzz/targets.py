"""What is fuzzed: each takes bytes, and raises an error of ours or nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from kvatlas.common import limits
from kvatlas.common.errors import HttpError, MalformedBatch, PromptUnavailable
from kvatlas.common.prompt import PROMPT_PATHS, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings
from kvatlas.indexer.decode import decode
from kvatlas.indexer.events import BlockRemoved, BlockStored
from kvatlas.router.answers import parse_object
from kvatlas.router.arrival import Answer
from kvatlas.router.body import client_body
from kvatlas.router.grpc.frames import HEADERS, Fault, Frame, FrameReader
from kvatlas.router.grpc.heads import HeadReader
from kvatlas.router.grpc.messages import BadMessage, MessageReader
from kvatlas.router.headers import HOP_BY_HOP, nominated, request_id, to_client, to_engine
from kvatlas.router.outbound import EngineConnection, Target
from kvatlas.router.reading import RequestReader
from kvatlas.router.request import Request
from tests.fuzz.strict import NotStrict, bodies_of

DECLARED: Final = (HttpError, MalformedBatch, PromptUnavailable, Fault, BadMessage)
GRPC_MESSAGE_BYTES_MAX: Final = 200
PIECES_MAX: Final = 6
NEXT: Final = b"HTTP/1.1 201 Next\r\nContent-Length: 1\r\n\r\nn"


def bodies(data: bytes) -> None:
    """Read a body; what is cut out of it leaves JSON that says the rest."""
    taken = client_body(data, parse_object(data))
    assert parse_object(taken.raw) == taken.fields
    assert taken.cut or taken.raw == data


def prompts(data: bytes) -> None:
    """Make a prompt of a body for each path: a refusal on one says nothing of the others."""
    body = parse_object(data)
    builder = _builder()
    for path in PROMPT_PATHS:
        try:
            builder.tokenize(builder.prepare(path, body))
        except DECLARED:
            continue


def heads(data: bytes) -> None:
    """Read HTTP: in any pieces the same requests, and those that a strict reader sees."""
    whole = _requests([data])
    assert _requests(pieces_of(data)) == whole
    assert _requests([data[at : at + 1] for at in range(len(data))]) == whole
    try:
        strict = bodies_of(data)
    except NotStrict:
        return
    requests, is_refused = whole
    ended = [body for _, _, _, body, is_over in requests if is_over]
    assert ended == strict[: len(ended)]
    assert is_refused or len(ended) == len(strict)


def headers(data: bytes) -> None:
    """Pass headers on: nothing of one connection's own, and nothing that claims to be ours."""
    lines = [line.partition(b":")[::2] for line in data.split(b"\n")]
    received = [(name.decode("latin-1"), value.decode("latin-1").strip()) for name, value in lines]
    ours = [("X-Request-Id", "ours")]
    to_engines = to_engine(received, ours)
    for name, value in to_engines[:-1] + to_client(received, ours)[:-1]:
        assert (name, value) in received
        assert name.lower() not in HOP_BY_HOP | nominated(received)
        assert not name.lower().startswith("x-kvatlas-")
    assert [each for each in to_engines if each[0].lower() == "x-request-id"] == ours
    assert all(request_id(value) in (None, value) for _, value in received)


def answers(data: bytes) -> None:
    """Read an engine's answer: in any pieces the same, and never more than one."""
    whole = _answer([data])
    assert _answer(pieces_of(data)) == whole
    assert _answer([data[at : at + 1] for at in range(len(data))]) == whole


def events(data: bytes) -> None:
    """Read an engine's message; what comes out is bounded."""
    batch = decode(data)
    assert len(batch.events) <= limits.EVENTS_PER_BATCH_MAX
    changes = [each for each in batch.events if isinstance(each, BlockStored | BlockRemoved)]
    assert sum(len(each.hashes) for each in changes) <= limits.HASHES_PER_BATCH_MAX
    assert all(0 <= one < 2**64 for each in changes for one in each.hashes)
    stored = [each for each in changes if isinstance(each, BlockStored)]
    assert sum(len(each.token_ids) for each in stored) <= limits.TOKENS_PER_BATCH_MAX


def grpc_frames(data: bytes) -> None:
    """Read frames of HTTP/2: in any pieces the same, and heads that are heads or refused."""
    whole, is_cut = _frames([data])
    assert _frames(pieces_of(data)) == (whole, is_cut)
    assert _frames([data[at : at + 1] for at in range(len(data))]) == (whole, is_cut)
    reader = HeadReader()
    for kind, _, _, payload, _ in whole:
        if kind == HEADERS:
            assert reader.read(payload).http_status in (200, 405, 415)


def grpc_messages(data: bytes) -> None:
    """Read messages of a call: in any pieces the same, and nothing is lost."""
    whole = MessageReader(GRPC_MESSAGE_BYTES_MAX)
    found = whole.feed(data)
    assert sum(5 + len(each) for each in found) + len(whole.partial) == len(data)
    again = MessageReader(GRPC_MESSAGE_BYTES_MAX)
    assert [each for piece in pieces_of(data) for each in again.feed(piece)] == found
    assert again.partial == whole.partial


TARGETS: Final[tuple[Callable[[bytes], None], ...]] = (
    bodies, prompts, heads, headers, answers, events, grpc_frames, grpc_messages,
)  # fmt: skip


def pieces_of(data: bytes) -> list[bytes]:
    """Cut into a few pieces; the same bytes always into the same."""
    chance = random.Random(data)
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(1, PIECES_MAX)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _frames(pieces: list[bytes]) -> tuple[list[Frame], bool]:
    """Give the frames that were read, and whether what follows was refused."""
    reader, found = FrameReader(), []
    try:
        for piece in pieces:
            for each in reader.feed(piece):
                found.append(each)  # noqa: PERF402 - those before a fault count
    except Fault:
        return found, True
    return found, False


Read = tuple[str, str, tuple[tuple[str, str], ...], bytes, bool]


def _requests(pieces: list[bytes]) -> tuple[list[Read], bool]:
    """Give the requests that were read, and whether what follows was refused."""
    reader = RequestReader(lambda _request: None)
    is_refused = False
    try:
        for piece in pieces:
            reader.feed(piece)
    except HttpError:
        is_refused = True
    return [_read(request, reader) for request in reader.requests], is_refused


def _read(request: Request, reader: RequestReader) -> Read:
    body = b"".join(request._pieces)
    received = tuple(request.headers.received)
    return (
        request.method,
        request.path + request.query,
        received,
        body,
        request is not reader.receiving,
    )


@lru_cache(1)
def _builder() -> PromptBuilder:
    return PromptBuilder.load(ModelSettings(name="m", tokenizer=str(demo_model_path())))


class _Transport(asyncio.Transport):
    """Takes what is written, and notes an end."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop it."""

    def get_write_buffer_size(self) -> int:
        """Say that all is written."""
        return 0

    def abort(self) -> None:
        """Do nothing: the connection notes it."""


class _Pool:
    """Notes how often a connection became free."""

    released = 0

    def release(self, _connection: EngineConnection) -> None:
        """Count."""
        self.released += 1

    def forget(self, _connection: EngineConnection) -> None:
        """Do nothing."""


def _answer(pieces: list[bytes]) -> tuple[object, ...]:
    return asyncio.run(_answered(pieces))


async def _answered(pieces: list[bytes]) -> tuple[object, ...]:
    pool = _Pool()
    connection = EngineConnection(pool, Target.of("http://127.0.0.1:1"))
    connection.connection_made(_Transport())
    answer = connection.send(b"", b"", 60.0)
    for piece in pieces:
        if piece and not connection.is_closed:
            connection.data_received(piece)
    assert pool.released <= 1
    assert not (answer.is_whole and answer.failure)
    if pool.released and not connection.is_closed:
        _is_clean(connection)
    else:
        connection.connection_lost(None)
    first = answer._first
    failed = first.exception() if first.done() else None
    return (*_said(answer), type(failed))


def _is_clean(connection: EngineConnection) -> None:
    """See that nothing of an answer is left for the next request on its connection."""
    answer = connection.send(b"", b"", 60.0)
    connection.data_received(NEXT)
    assert _said(answer) == (201, "Next", (("Content-Length", "1"),), b"n", True)
    connection.close()


def _said(answer: Answer) -> tuple[object, ...]:
    return (
        answer.status,
        answer.reason,
        tuple(answer.headers.received),
        answer.take(),
        answer.is_whole,
    )

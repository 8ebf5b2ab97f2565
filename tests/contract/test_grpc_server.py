"""Our gRPC server before clients that keep HTTP/2's rules, and before those that do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest

from kvatlas.common import limits
from kvatlas.router.exchange import Gone
from kvatlas.router.grpc.call import Call
from kvatlas.router.grpc.server import GrpcServer
from tests.fakes.http2_peers import (
    PREFACE,
    RawPeer,
    frame,
    message,
    raw_peer,
    settings,
    strict_peer,
)

MESSAGE_MAX = 1_000_000
LARGE = bytes(range(256)) * 1_000
(DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION) = range(10)
(NO_ERROR, PROTOCOL, INTERNAL, FLOW, _, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION, _, CALM) = (
    range(12)
)
ECHO, LONG, DEAF, PARTING = "/test/Echo", "/test/Long", "/test/Deaf", "/test/Parting"


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the server comes to by itself."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - it is the state of what runs beside
            await asyncio.sleep(0.01)


class Place:
    """A server, and what its handlers met."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        methods = {ECHO: self._echo, LONG: self._long, DEAF: self._deaf, PARTING: self._parting}
        self.server = GrpcServer(methods, MESSAGE_MAX)
        self.port = 0

    @contextmanager
    def _noting(self, well: str) -> Iterator[None]:
        """Note how a handler ends."""
        try:
            yield
        except (Gone, asyncio.CancelledError) as error:
            self.ends.append("gone" if isinstance(error, Gone) else "cancelled")
            raise
        self.ends.append(well)

    async def _echo(self, call: Call) -> None:
        with self._noting("read"):
            while (asked := await call.read()) is not None:
                await call.write(asked)

    async def _long(self, call: Call) -> None:
        await call.read()
        with self._noting("written"):
            await call.write(LARGE)

    async def _deaf(self, call: Call) -> None:
        del call
        try:
            await asyncio.Event().wait()
        finally:
            self.ends.append("cancelled")

    async def _parting(self, call: Call) -> None:
        self.ends.append("begun")
        while await call.read() is not None:
            pass
        try:
            await call.write(b"farewell")
        except Gone:
            self.ends.append("gone")
            raise

    async def until(self, *ends: str) -> None:
        """Wait for handlers to end so."""
        await until(lambda: self.ends == list(ends))

    async def serves(self) -> None:
        """See that another client is served."""
        async with strict_peer(self.port) as peer:
            stream = peer.call(ECHO, b"still there?")
            await peer.until(lambda: stream in peer.ended)
            assert peer.data[stream] == message(b"still there?")

    def connection_count(self) -> int:
        """Count connections that the server holds."""
        return len(self.server._connections)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """Serve in the test's own loop."""
    made = Place()
    async with made.server.listening("127.0.0.1", 0) as port:
        made.port = port
        yield made


# --- clients that keep the rules ------------------------------------------------------------------


async def test_many_calls_at_once_are_answered_each_with_its_own(place: Place) -> None:
    """Many calls at once are answered each with its own."""
    async with strict_peer(place.port) as peer:
        await peer.until(lambda: peer.h2.remote_settings.max_concurrent_streams < 2**31)
        asked = {peer.call(ECHO, b"%d" % each, b"more"): b"%d" % each for each in range(200)}
        await peer.until(lambda: len(peer.ended) == len(asked))
        for stream, body in asked.items():
            assert peer.data[stream] == message(body) + message(b"more")
            assert peer.fields[stream][":status"] == "200"
            assert peer.fields[stream]["grpc-status"] == "0"
        assert not peer.resets


async def test_half_close_ends_the_answer_and_not_before(place: Place) -> None:
    """Half close ends the answer and not before."""
    async with strict_peer(place.port) as peer:
        stream = peer.call(ECHO, b"one", ends=False)
        await peer.until(lambda: len(peer.data[stream]) == 8)
        assert not peer.ended
        peer.h2.send_data(stream, message(b"two"))
        await peer.until(lambda: len(peer.data[stream]) == 16)
        assert not peer.ended
        peer.h2.end_stream(stream)
        await peer.until(lambda: stream in peer.ended)


async def test_a_reset_ends_a_handler_that_reads_and_cancels_one_that_does_not(
    place: Place,
) -> None:
    """A reset ends a handler that reads and cancels one that does not."""
    async with strict_peer(place.port) as peer:
        stream = peer.call(ECHO, b"one", ends=False)
        await peer.until(lambda: len(peer.data[stream]) == 8)
        peer.h2.reset_stream(stream)
        peer.flush()
        await place.until("read")
        stream = peer.call(DEAF, b"one", ends=False)
        other = peer.call(ECHO, b"one")
        await peer.until(lambda: other in peer.ended)
        peer.h2.reset_stream(stream)
        peer.flush()
        await place.until("read", "read", "cancelled")
    await place.serves()


async def test_a_handler_that_writes_to_nobody_is_no_failure(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that writes to nobody is no failure."""
    async with strict_peer(place.port) as peer:
        stream = peer.call(PARTING, ends=False)
        peer.flush()
        await place.until("begun")
        peer.h2.reset_stream(stream)
        peer.flush()
        await place.until("begun", "gone")
    await place.serves()
    assert "call.failed" not in capsys.readouterr().out


async def test_a_client_that_drops_the_connection_ends_its_calls(place: Place) -> None:
    """A client that drops the connection ends its calls."""
    async with strict_peer(place.port) as peer:
        peer.call(DEAF, b"one", ends=False)
        stream = peer.call(ECHO, b"one")
        await peer.until(lambda: stream in peer.ended)
    await place.until("read", "cancelled")
    assert not place.connection_count()


async def test_draining_lets_calls_finish_and_refuses_new_ones(place: Place) -> None:
    """Draining lets calls finish and refuses new ones."""
    async with raw_peer(place.port) as peer:
        peer.send(peer.head(1, ECHO), frame(DATA, 0, 1, message(b"a")))
        await peer.until(lambda: peer.data(1) == message(b"a"))
        stopping = asyncio.create_task(place.server.stop(30))
        await peer.until(lambda: bool(peer.of(PING)))
        assert peer.goaways() == [(2**31 - 1, NO_ERROR)]
        # It crossed the news, and is served.
        peer.send(peer.head(3, ECHO), frame(DATA, 1, 3, message(b"b")))
        await peer.until(lambda: peer.has_ended(3))
        peer.send(frame(PING, 1, 0, peer.of(PING)[0].payload))
        await peer.until(lambda: len(peer.goaways()) == 2)
        assert peer.goaways()[1] == (3, NO_ERROR)
        peer.send(peer.head(5, ECHO))
        await peer.until(lambda: 5 in peer.reset_codes())
        assert peer.reset_codes()[5] == REFUSED
        assert not stopping.done()
        peer.send(frame(DATA, 1, 1, message(b"c")))
        await peer.closed()
        assert peer.has_ended(1)
        assert peer.fields[1]["grpc-status"] == "0"
        await asyncio.wait_for(stopping, 10)


async def test_what_does_not_finish_is_told_so(place: Place) -> None:
    """What does not finish is told so."""
    async with raw_peer(place.port) as peer:
        peer.send(peer.head(1, DEAF))
        await asyncio.wait_for(place.serves(), 10)
        await asyncio.wait_for(place.server.stop(0.05), 10)
        await peer.closed()
        assert peer.fields[1]["grpc-status"] == "14"
        await place.until("read", "cancelled")


@pytest.mark.parametrize("window", [1, 100])
async def test_a_long_answer_comes_whole_through_a_small_window(place: Place, window: int) -> None:
    """A long answer comes whole through a small window."""
    async with strict_peer(place.port, _4=window) as peer:
        stream = peer.call(LONG, b"")
        # A hundred small steps, then a wide one.
        await peer.until(lambda: len(peer.data[stream]) >= 100 * window)
        peer.h2.update_settings({4: 1_000_000})
        await peer.until(lambda: stream in peer.ended)
        assert peer.data[stream] == message(LARGE)
        assert peer.fields[stream]["grpc-status"] == "0"


async def test_a_window_that_shrinks_below_nothing_is_waited_for(place: Place) -> None:
    """A window that shrinks below nothing is waited for."""
    async with strict_peer(place.port) as peer:
        peer.acknowledges = False
        stream = peer.call(LONG, b"")
        await peer.until(lambda: len(peer.data[stream]) == 65_535)
        peer.h2.update_settings({4: 10})
        peer.h2.increment_flow_control_window(1_000_000)
        peer.h2.ping(b"12345678")
        other = peer.call(ECHO, b"small")
        await peer.until(lambda: other in peer.ended)
        assert len(peer.data[stream]) == 65_535
        peer.h2.increment_flow_control_window(500_000, stream)
        await peer.until(lambda: stream in peer.ended)
        assert peer.data[stream] == message(LARGE)


async def test_streams_share_what_the_connection_lets_through(place: Place) -> None:
    """Streams share what the connection lets through."""
    async with strict_peer(place.port, _4=1_000_000) as peer:
        peer.acknowledges = False
        streams = [peer.call(LONG, b""), peer.call(LONG, b"")]
        await peer.until(lambda: sum(map(len, peer.data.values())) == 65_535)
        while len(peer.ended) < 2:
            before = sum(map(len, peer.data.values()))
            peer.h2.increment_flow_control_window(10_000)
            wanted = min(before + 10_000, 2 * len(message(LARGE)))
            await peer.until(
                lambda wanted=wanted: (
                    sum(map(len, peer.data.values())) >= wanted  # type: ignore[misc]
                    and (wanted < 2 * len(message(LARGE)) or len(peer.ended) == 2)
                )
            )
        for stream in streams:
            assert peer.data[stream] == message(LARGE)
        # Behind the first window they take turns, until one of them is done.
        middle = peer.order[8:28]
        assert 5 <= middle.count(streams[0]) <= 15


async def test_a_call_that_is_reset_passes_its_turn_on(place: Place) -> None:
    """A call that is reset passes its turn on."""
    async with strict_peer(place.port, _4=1_000_000) as peer:
        peer.acknowledges = False
        first, second, third = (peer.call(LONG, b"") for _ in range(3))
        await peer.until(lambda: sum(map(len, peer.data.values())) == 65_535)
        peer.h2.increment_flow_control_window(1_000_000)
        peer.h2.reset_stream(first)
        peer.h2.reset_stream(second)
        await peer.until(lambda: third in peer.ended)
        assert peer.data[third] == message(LARGE)


async def test_calls_that_are_reset_while_they_wait_leave_nothing(place: Place) -> None:
    """Calls that are reset while they wait leave nothing."""
    async with raw_peer(place.port, PREFACE + settings(_4=1_000_000)) as peer:
        peer.send(peer.head(1, LONG), frame(DATA, 1, 1, message(b"")))
        await peer.until(lambda: len(peer.data(1)) == 65_535)
        for at in range(300):
            stream = 3 + 2 * at
            peer.send(peer.head(stream, LONG), frame(DATA, 1, stream, message(b"")))
            await peer.until(lambda stream=stream: stream in peer.fields)  # type: ignore[misc]
            peer.send(frame(RESET, 0, stream, CANCEL.to_bytes(4, "big")))
        peer.send(frame(PING, 0, 0, b"12345678"))
        await peer.until(lambda: bool(peer.of(PING)))
        (connection,) = place.server._connections
        await until(lambda: len(connection.calls) == len(connection.blocked) == 1)


async def test_a_peer_that_reads_nothing_ends_its_writes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that reads nothing ends its writes."""
    monkeypatch.setattr(limits, "WRITE_IDLE_S", 0.1)
    monkeypatch.setattr(limits, "LINGER_S", 0.2)
    async with raw_peer(place.port, PREFACE + settings(_4=2**31 - 1)) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(frame(WINDOW, 0, 0, (2**31 - 1 - 65_535).to_bytes(4, "big")))
        for at in range(60):
            stream = 1 + 2 * at
            peer.send(peer.head(stream, LONG), frame(DATA, 1, stream, message(b"")))
        await until(lambda: "gone" in place.ends)
        (connection,) = place.server._connections
        held = connection._transport.get_write_buffer_size()
        assert held < limits.GRPC_UNSENT_BYTES_MAX + 200_000
        await place.serves()
        began = time.monotonic()
        await place.server.stop(0.05)
        await until(lambda: not place.connection_count())
        assert time.monotonic() - began < 5


# --- floods ---------------------------------------------------------------------------------------


def _resets(peer: RawPeer, count: int) -> bytes:
    return b"".join(
        peer.head(1 + 2 * at, ECHO) + frame(RESET, 0, 1 + 2 * at, b"\0\0\0\x08")
        for at in range(count)
    )


COUNT = limits.GRPC_IDLE_FRAMES_MAX + 4_000
FLOODS = {
    "ping": frame(PING, 0, 0, b"12345678") * COUNT,
    "ping_ack": frame(PING, 1, 0, b"12345678") * COUNT,
    "settings": settings(_4=65_535) * COUNT,
    "settings_ack": frame(SETTINGS, 1, 0) * COUNT,
    "empty_data": frame(DATA, 0, 1) * COUNT,
    "padded_data": frame(DATA, 8, 1, b"\x03\0\0\0") * COUNT,
    "priority": frame(PRIORITY, 0, 1, b"\0\0\0\0\0") * COUNT,
    "window_update": frame(WINDOW, 0, 1, b"\0\0\0\x01") * COUNT,
    "unknown": frame(77, 0, 0, b"?") * COUNT,
    "goaway": frame(GOAWAY, 0, 0, bytes(8)) * COUNT,
    "continuation": frame(HEADERS, 0, 3, b"") + frame(CONTINUATION, 0, 3, b"") * COUNT,
    "large_headers": frame(HEADERS, 0, 3, bytes(16_000))
    + frame(CONTINUATION, 0, 3, bytes(16_000)) * 2,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_cut_and_others_are_served(place: Place, flood: bytes) -> None:
    """A flood is cut and others are served."""
    async with raw_peer(place.port) as peer:
        peer.send(peer.head(1, ECHO), flood)
        await asyncio.gather(peer.closed(), place.serves())
        # The reset of a socket with unread bytes may overtake what was said.
        assert {code for _, code in peer.goaways()} <= {CALM}
    await until(lambda: not place.connection_count())


async def test_rapid_resets_are_cut(place: Place) -> None:
    """Rapid resets are cut."""
    async with raw_peer(place.port) as peer:
        peer.send(_resets(peer, limits.GRPC_RESETS_MAX + 4_000))
        await asyncio.gather(peer.closed(), place.serves())
        assert {code for _, code in peer.goaways()} <= {CALM}


async def test_as_many_resets_as_clients_that_leave_are_taken(place: Place) -> None:
    """As many resets as clients that leave are taken."""
    async with raw_peer(place.port) as peer:
        peer.send(_resets(peer, 500), frame(PING, 0, 0, b"12345678"))
        await peer.until(lambda: bool(peer.of(PING)))
        assert not peer.goaways()


async def test_streams_over_the_bound_are_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams over the bound are refused."""
    monkeypatch.setattr(limits, "GRPC_STREAMS_MAX", 3)
    async with raw_peer(place.port) as peer:
        peer.send(*(peer.head(stream, ECHO) for stream in (1, 3, 5, 7)))
        await peer.until(lambda: bool(peer.reset_codes()))
        assert peer.reset_codes() == {7: REFUSED}
        peer.send(frame(DATA, 1, 1), peer.head(9, ECHO))
        await peer.until(lambda: peer.has_ended(1))
        peer.send(peer.head(11, ECHO), frame(DATA, 1, 11, message(b"room")))
        await peer.until(lambda: 11 in peer.fields and peer.has_ended(11))


async def test_headers_that_are_small_only_in_the_table_are_cut(place: Place) -> None:
    """Headers that are small only in the table are cut."""
    async with raw_peer(place.port) as peer:
        large = peer.head(1, ECHO, x="v" * 3_000)
        index = b"\xbe" * 10_000
        peer.send(large, frame(HEADERS, 4, 3, b"\x83\x86\x84" + index))
        await peer.closed()
        assert {code for _, code in peer.goaways()} == {CALM}
    await place.serves()


WRONG = {
    "too_large_frame": (b"\x01\0\0" + b"\0\0\0\0\0\x01", SIZE),
    "even_stream": (frame(HEADERS, 4, 2, b"\x83"), PROTOCOL),
    "data_of_no_stream": (frame(DATA, 0, 9, b"x"), PROTOCOL),
    "data_of_an_even_stream": (frame(DATA, 0, 2, b"x"), PROTOCOL),
    "reset_of_no_stream": (frame(RESET, 0, 9, bytes(4)), PROTOCOL),
    "update_of_no_stream": (frame(WINDOW, 0, 9, b"\0\0\0\1"), PROTOCOL),
    "update_by_nothing": (frame(WINDOW, 0, 0, bytes(4)), PROTOCOL),
    "window_too_wide": (frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"), FLOW),
    "settings_too_wide": (settings(_4=2**31), FLOW),
    "settings_widen_a_stream_too_far": (
        frame(WINDOW, 0, 5, b"\x7f\0\0\0") + settings(_4=2**31 - 1), FLOW,
    ),
    "frame_setting_too_small": (settings(_5=1), PROTOCOL),
    "push": (frame(PUSH, 4, 1, bytes(4)), PROTOCOL),
    "odd_settings": (frame(SETTINGS, 0, 0, b"abc"), SIZE),
    "settings_ack_with_payload": (frame(SETTINGS, 1, 0, bytes(6)), SIZE),
    "ping_of_7": (frame(PING, 0, 0, bytes(7)), SIZE),
    "ping_of_a_stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL),
    "headers_of_0": (frame(HEADERS, 4, 0, b"\x83"), PROTOCOL),
    "data_of_0": (frame(DATA, 0, 0, b"x"), PROTOCOL),
    "continuation_of_nothing": (frame(CONTINUATION, 4, 1, b""), PROTOCOL),
    "ping_in_a_block": (frame(HEADERS, 0, 7, b"") + frame(PING, 0, 0, bytes(8)), PROTOCOL),
    "data_in_a_block": (frame(HEADERS, 0, 7, b"") + frame(DATA, 0, 5, b"x"), PROTOCOL),
    "too_much_padding": (frame(DATA, 8, 5, b"\x04\0\0\0"), PROTOCOL),
    "no_hpack": (frame(HEADERS, 4, 7, b"\xff\xff\xff\xff\xff\xff\xff"), COMPRESSION),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "code"), WRONG.values(), ids=WRONG)
async def test_what_must_not_be_ends_the_connection(place: Place, wrong: bytes, code: int) -> None:
    """What must not be ends the connection."""
    async with raw_peer(place.port) as peer:
        # Behind it is a call that must not be begun.
        peer.send(peer.head(5, ECHO), wrong, peer.head(31, ECHO))
        await peer.closed()
        assert [told for _, told in peer.goaways()] == [code]
        assert peer.goaways()[0][0] <= 7
        assert 31 not in peer.fields
    await place.serves()


async def test_a_stream_is_not_begun_twice(place: Place) -> None:
    """A stream is not begun twice."""
    async with raw_peer(place.port) as peer:
        peer.send(peer.head(1, ECHO), frame(DATA, 1, 1, message(b"a")))
        await peer.until(lambda: 1 in peer.fields and peer.has_ended(1))
        peer.send(peer.head(1, ECHO))
        await peer.closed()
        assert peer.goaways() == [(1, CLOSED)]


async def test_late_trailers_are_passed_over(place: Place) -> None:
    """Late trailers are passed over."""
    async with raw_peer(place.port) as peer:
        peer.send(peer.head(1, "/no/such"), frame(DATA, 0, 1, b"xyz"))
        await peer.until(lambda: 1 in peer.fields)
        peer.send(frame(HEADERS, 5, 1, b"\x00\x01a\x01b"), frame(PING, 0, 0, bytes(8)))
        await peer.until(lambda: bool(peer.of(PING)))
        assert not peer.goaways()


async def test_nothing_is_acted_on_behind_a_close_in_the_same_read(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is acted on behind a close in the same read."""
    async with raw_peer(place.port) as peer:
        await peer.until(lambda: bool(peer.of(SETTINGS)))
        stopping = asyncio.create_task(place.server.stop(30))
        await peer.until(lambda: bool(peer.of(PING)))
        peer.send(
            frame(PING, 1, 0, peer.of(PING)[0].payload),
            peer.head(1, DEAF),
            frame(PUSH, 4, 1, bytes(4)),
        )
        await peer.closed()
        await asyncio.wait_for(stopping, 10)
        assert not place.ends
        assert not peer.fields
        assert "peer.cut" not in capsys.readouterr().out


async def test_data_beyond_the_window_of_a_stream_ends_it(place: Place) -> None:
    """Data beyond the window of a stream ends it."""
    async with raw_peer(place.port) as peer:
        piece = bytes(16_384)
        count = limits.GRPC_STREAM_WINDOW_BYTES // len(piece) + 2
        peer.send(peer.head(1, DEAF), *(frame(DATA, 0, 1, piece) for _ in range(count)))
        await peer.until(lambda: 1 in peer.reset_codes() or peer.has_ended(1))
        # Messages of no bytes fill the window: they are held, not read.
        assert peer.reset_codes() == {1: FLOW}
        await place.until("cancelled")
    await place.serves()


async def test_data_beyond_the_window_of_the_connection_ends_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data beyond the window of the connection ends it."""
    monkeypatch.setattr(limits, "GRPC_CONNECTION_WINDOW_BYTES", 100_000)
    async with raw_peer(place.port) as peer:
        piece = bytes(16_384)
        for stream in range(1, 17, 2):
            peer.send(peer.head(stream, DEAF), frame(DATA, 0, stream, piece))
        await peer.closed()
        assert {code for _, code in peer.goaways()} <= {FLOW}
        assert not place.connection_count()


# --- greetings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(100),
        PREFACE + frame(PING, 0, 0, bytes(8)),
        PREFACE + frame(SETTINGS, 1, 0),
    ],
    ids=["http1", "tls", "ping_first", "ack_first"],
)
async def test_who_does_not_speak_http2_is_told_and_cut(place: Place, greeting: bytes) -> None:
    """Who does not speak http2 is told and cut."""
    async with raw_peer(place.port, greeting) as peer:
        await peer.closed()
        assert {code for _, code in peer.goaways()} == {PROTOCOL}


@pytest.mark.parametrize("greeting", [b"", b"PRI * HT", PREFACE], ids=["none", "part", "mute"])
async def test_who_does_not_greet_in_time_is_cut(
    place: Place, greeting: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not greet in time is cut."""
    monkeypatch.setattr(limits, "HEAD_READ_S", 0.1)
    async with raw_peer(place.port, greeting) as peer:
        await peer.closed()
    await place.serves()


async def test_a_greeting_in_pieces_is_taken(place: Place) -> None:
    """A greeting in pieces is taken."""
    async with raw_peer(place.port, b"") as peer:
        for byte in PREFACE + settings() + peer.head(1, ECHO) + frame(DATA, 1, 1, message(b"a")):
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        await peer.until(lambda: 1 in peer.fields and peer.has_ended(1))
        assert peer.data(1) == message(b"a")


async def test_a_silent_peer_is_asked_and_cut(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent peer is asked and cut."""
    monkeypatch.setattr(limits, "HEAD_READ_S", 0.2)
    monkeypatch.setattr(limits, "PICKER_PING_S", 0.2)
    async with raw_peer(place.port) as peer:
        await peer.closed()
        assert len([each for each in peer.of(PING) if not each.flags]) == 1
    await until(lambda: not place.connection_count())


async def test_a_peer_that_answers_is_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that answers is kept."""
    monkeypatch.setattr(limits, "HEAD_READ_S", 0.2)
    monkeypatch.setattr(limits, "PICKER_PING_S", 1.0)
    async with raw_peer(place.port) as peer:
        for count in (1, 2):
            await peer.until(lambda count=count: len(peer.of(PING)) == count)  # type: ignore[misc]
            peer.send(frame(PING, 1, 0, peer.of(PING)[-1].payload))
        assert not peer.is_closed


# --- calls that are none --------------------------------------------------------------------------


async def _answer(place: Place, body: bytes, path: str = ECHO, **changed: str) -> dict[str, str]:
    async with raw_peer(place.port) as peer:
        peer.send(peer.head(1, path, **changed), frame(DATA, 1, 1, body))
        await peer.until(lambda: 1 in peer.fields and peer.has_ended(1))
        assert not peer.goaways()
        return peer.fields[1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\1\0\0\0\1a", "12"),
        (b"\2\0\0\0\1a", "13"),
        (b"\0" + (MESSAGE_MAX + 1).to_bytes(4, "big"), "8"),
        (b"\0\0\0\0\5abc", "13"),
    ],
    ids=["compressed", "no_message", "too_long", "not_whole"],
)
async def test_a_bad_message_ends_its_call(place: Place, body: bytes, status: str) -> None:
    """A bad message ends its call."""
    assert (await _answer(place, body))["grpc-status"] == status


async def test_what_is_no_call_is_told_so(place: Place) -> None:
    """What is no call is told so."""
    assert (await _answer(place, b"", "/no/such"))["grpc-status"] == "12"
    fields = await _answer(place, b"", content_type="text/plain")
    assert fields == {":status": "415"}
    assert await _answer(place, b"", __method="GET") == {":status": "405"}


async def test_a_malformed_head_ends_its_stream(place: Place) -> None:
    """A malformed head ends its stream."""
    async with raw_peer(place.port) as peer:
        peer.send(peer.head(1, ECHO, connection="close"), peer.head(3, ECHO, te="gzip"))
        peer.send(frame(PING, 0, 0, bytes(8)))
        await peer.until(lambda: bool(peer.of(PING)))
        assert peer.reset_codes() == {1: PROTOCOL, 3: PROTOCOL}
    await place.serves()


async def test_a_message_longer_than_the_window_arrives(place: Place) -> None:
    """A message longer than the window arrives."""
    body = bytes(900_000)
    async with strict_peer(place.port, _4=2**31 - 1) as peer:
        stream = peer.call(ECHO, ends=False)
        rest = message(body)
        await peer.until(lambda: peer.h2.remote_settings.initial_window_size > 65_535)
        while rest:
            room = min(peer.h2.local_flow_control_window(stream), 16_384)
            peer.h2.send_data(stream, rest[:room])
            rest = rest[room:]
            if rest:
                await peer.until(lambda: peer.h2.local_flow_control_window(stream) > 0)
        peer.h2.end_stream(stream)
        await peer.until(lambda: stream in peer.ended)
        assert peer.data[stream] == message(body)

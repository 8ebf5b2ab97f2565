"""One peer that calls us over HTTP/2 (RFC 9113).

Bounds on what it can make us hold or do are all here: streams, windows, answers that it does not
read, and frames that cost it nothing. All that is written in one turn of the loop leaves together.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.log import logger
from kvatlas.router.exchange import Gone
from kvatlas.router.grpc import frames, heads
from kvatlas.router.grpc.budget import Budget
from kvatlas.router.grpc.call import Call
from kvatlas.router.grpc.frames import Code, Fault, FrameReader
from kvatlas.router.grpc.heads import HeadReader, Status

if TYPE_CHECKING:
    from kvatlas.router.grpc.server import GrpcServer

_LOG = logger("grpc")

Handler = Callable[[Call], Coroutine[Any, Any, None]]
"""Answers a call; it is cancelled when the peer gives the call up while it does not read."""

_GREETING: Final = frames.settings(
    {
        frames.STREAMS_MAX: limits.GRPC_STREAMS_MAX,
        frames.INITIAL_WINDOW: limits.GRPC_STREAM_WINDOW_BYTES,
        frames.HEADER_LIST_MAX: limits.HEADERS_BYTES_MAX,
    }
) + frames.window_update(0, limits.GRPC_CONNECTION_WINDOW_BYTES - frames.WINDOW_BYTES)
_PING: Final = b"kvatlas?"
_DRAIN_PING: Final = b"kvatlas!"


class Failed(Exception):
    """A handler ends its call with another status than 0.

    Args:
        status: that the peer is told.
        text: alike.
    """

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        loop: that it runs in.
        calls: that are under way, by stream.
        blocked: calls that wait for the connection to take more, by stream, the first one first.
        peer_window: that each stream of ours begins with.
    """

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._frames, self._heads = FrameReader(), HeadReader()
        self.calls: dict[int, Call] = {}
        self.blocked: OrderedDict[int, Call] = OrderedDict()
        self.peer_window = self._window = frames.WINDOW_BYTES
        self._frame_max = frames.FRAME_BYTES_LEAST
        self._own_window, self._owed = limits.GRPC_CONNECTION_WINDOW_BYTES, 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_flush_due = self._is_paused = self._is_closed = False
        self._has_heard = self._has_asked = False
        self._is_draining = self._is_last_told = False
        self._last = 0
        self._idle = Budget(limits.GRPC_IDLE_FRAMES_MAX, limits.GRPC_IDLE_FRAMES_PER_S)
        self._resets = Budget(limits.GRPC_RESETS_MAX, limits.GRPC_RESETS_PER_S)
        self._settings = Budget(limits.GRPC_SETTINGS_MAX, limits.GRPC_SETTINGS_PER_S)
        self._timer: asyncio.TimerHandle | None = None
        self._takes: Mapping[int, Callable[[int, int, bytes], None]] = {
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PING: self._on_ping,
            frames.WINDOW_UPDATE: self._on_window_update,
        }

    # --- what the transport calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet a peer, if there is room for it."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.takes(self):
            self._is_closed = True
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=limits.GRPC_UNSENT_BYTES_MAX)
        self.put(_GREETING)
        self._timer = self.loop.call_later(limits.HEAD_READ_S, self._ring)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._is_closed:
            return
        self._has_heard, self._has_asked = True, False
        try:
            for kind, flags, stream, payload, length in self._frames.feed(data):
                if kind == frames.DATA:
                    self._on_data(flags, stream, payload, length)
                elif kind == frames.HEADERS:
                    self._on_headers(flags, stream, payload)
                else:
                    self._on_other(kind, flags, stream, payload)
                if self._transport.is_closing():
                    # What follows in the same read is not acted on.
                    return
        except Fault as fault:
            self._refuse(fault)

    def eof_received(self) -> None:
        """Take a peer that sends no more for one that is gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way for it."""
        del exc
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for call in list(self.calls.values()):
            call.leave()
            call.cancel()
        self._server.left(self)

    def pause_writing(self) -> None:
        """Read nothing more of a peer that does not read: it would be answered."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._is_paused = False
        if not self._is_closed and not self._transport.is_closing():
            self._transport.resume_reading()
            self.wake_next()

    # --- frames -------------------------------------------------------------------------------

    def _on_data(self, flags: int, stream: int, payload: bytes, length: int) -> None:
        self._own_window -= length
        if self._own_window < 0:
            raise Fault(Code.FLOW_CONTROL_ERROR, "more than the window lets through")
        call = self.calls.get(stream)
        if call is None or call.has_ended:
            self._on_late_data(stream, length)
            return
        if not payload and not flags & frames.END_STREAM:
            self._charge("empty frames")
        if length:
            call.feed(payload, length)
        if flags & frames.END_STREAM and not call.is_over:
            call.half_close()

    def _on_late_data(self, stream: int, length: int) -> None:
        """Pass over what a peer sent before it heard that nobody reads it."""
        self._check_begun(stream)
        self.give_back(length)
        if not length:
            self._charge("empty frames")

    def _check_begun(self, stream: int) -> None:
        if stream > self._last or not stream & 1:
            raise Fault(Code.PROTOCOL_ERROR, "a frame of a stream that was not begun")

    def _on_headers(self, flags: int, stream: int, block: bytes) -> None:
        head = self._heads.read(block)
        if not stream & 1:
            raise Fault(Code.PROTOCOL_ERROR, "a stream with an even number")
        if stream <= self._last:
            if head != heads.MALFORMED:
                # Trailers have no path; they may come late.
                raise Fault(Code.STREAM_CLOSED, "a stream that is begun again")
            self._on_trailers(flags, stream)
            return
        self._last = stream
        if self._is_last_told or len(self.calls) >= limits.GRPC_STREAMS_MAX:
            self._charge("streams that are refused")
            self.put(frames.reset(stream, Code.REFUSED_STREAM))
            return
        call = Call(self, stream, head.path, self._server.message_bytes_max)
        call.has_ended = bool(flags & frames.END_STREAM)
        handler = self._server.methods.get(head.path)
        if handler is not None:
            self.calls[stream] = call
            call.task = self.loop.create_task(self._serve(call, handler))
        elif head.path:
            call.end(Status.UNIMPLEMENTED, "unknown method")
        else:
            self._on_no_call(call, head.http_status)

    def _on_no_call(self, call: Call, http_status: int) -> None:
        """Answer what is HTTP, but none of gRPC's, or neither."""
        self._charge("heads that are none of gRPC")
        if http_status == heads.MALFORMED.http_status:
            call.reset(Code.PROTOCOL_ERROR)
            return
        block = heads.not_grpc(http_status)
        last = frames.END_HEADERS | frames.END_STREAM
        self.put(frames.frame(frames.HEADERS, last, call.number, block))
        if not call.has_ended:
            call.reset(Code.NO_ERROR)

    def _on_trailers(self, flags: int, stream: int) -> None:
        self._charge("trailers")
        call = self.calls.get(stream)
        if call is None or call.has_ended:
            return
        if flags & frames.END_STREAM:
            call.half_close()
        else:
            call.reset(Code.PROTOCOL_ERROR)
            call.cancel()

    def _on_other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        take = self._takes.get(kind)
        if take is None:
            # PRIORITY, GOAWAY and what we do not know.
            self._charge("frames that say nothing")
        else:
            take(flags, stream, payload)

    def _on_reset(self, _flags: int, stream: int, _payload: bytes) -> None:
        self._check_begun(stream)
        call = self.calls.get(stream)
        if call is None:
            self._charge("resets")
            return
        if not call.has_begun and not self._resets.spend(monotonic()):
            raise Fault(Code.ENHANCE_YOUR_CALM, "calls that are given up at once")
        call.give_up()

    def _on_settings(self, flags: int, _stream: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise Fault(Code.FRAME_SIZE_ERROR, "a frame has another length")
            self._charge("settings that are heard")
            return
        if not self._settings.spend(monotonic()):
            raise Fault(Code.ENHANCE_YOUR_CALM, "too many settings")
        told = frames.read_settings(payload)
        self._frame_max = min(
            told.get(frames.FRAME_MAX, self._frame_max), limits.GRPC_SENT_FRAME_BYTES_MAX
        )
        before, self.peer_window = self.peer_window, told.get(
            frames.INITIAL_WINDOW, self.peer_window
        )  # fmt: skip
        self.put(frames.SETTINGS_ACK)
        if self.peer_window > before:
            calls = list(self.calls.values())
            if any(self.peer_window + call.granted > frames.NUMBER_MAX for call in calls):
                raise Fault(Code.FLOW_CONTROL_ERROR, "a window is out of range")
            for call in calls:
                call.widened()

    def _on_ping(self, flags: int, _stream: int, payload: bytes) -> None:
        self._charge("pings")
        if not flags & frames.ACK:
            self.put(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _DRAIN_PING:
            self._tell_last()

    def _on_window_update(self, _flags: int, stream: int, payload: bytes) -> None:
        self._charge("window updates")
        size = frames.read_number(payload) & frames.NUMBER_MAX
        if not stream:
            self._window += size
            if not size:
                raise Fault(Code.PROTOCOL_ERROR, "a window that is widened by nothing")
            if self._window > frames.NUMBER_MAX:
                raise Fault(Code.FLOW_CONTROL_ERROR, "a window is out of range")
            self.wake_next()
            return
        self._check_begun(stream)
        call = self.calls.get(stream)
        if call is None:
            return
        call.granted += size
        if not size or self.peer_window + call.granted > frames.NUMBER_MAX:
            call.reset(Code.FLOW_CONTROL_ERROR if size else Code.PROTOCOL_ERROR)
            call.cancel()
        else:
            call.widened()

    def _charge(self, what: str) -> None:
        """Count a frame that costs the peer nothing.

        Raises:
            Fault: there were too many.
        """
        if not self._idle.spend(monotonic()):
            raise Fault(Code.ENHANCE_YOUR_CALM, f"too many {what}")

    def _refuse(self, fault: Fault) -> None:
        """Say what ends the connection, and end it."""
        _LOG.warning("peer.cut", fault=str(fault), code=fault.code.name)
        self.put(frames.goaway(self._last, fault.code, str(fault)))
        self.close()

    # --- calls --------------------------------------------------------------------------------

    async def _serve(self, call: Call, handler: Handler) -> None:
        try:
            await handler(call)
        except asyncio.CancelledError:
            call.end(Status.CANCELLED)
            raise
        except Failed as failed:
            call.end(failed.status, str(failed))
        except Gone:
            # A peer that left, or that takes nothing: no failure of ours.
            call.reset(Code.CANCEL)
        except Exception as error:  # noqa: BLE001 - the last frame of a call: told, and a status
            _LOG.error("call.failed", error=type(error).__name__)
            call.end(Status.INTERNAL, "the picker failed")
        else:
            call.end(Status.OK)

    def left(self, call: Call) -> None:
        """Forget a call."""
        self.calls.pop(call.number, None)
        call.wake()
        if self._is_last_told and not self.calls:
            self.close()

    # --- writing ------------------------------------------------------------------------------

    def room(self) -> int:
        """Tell how much one frame of data may bring."""
        return 0 if self._is_paused else min(self._window, self._frame_max)

    def put(self, written: bytes) -> None:
        """Send frames, with what else is sent before the loop turns."""
        self._out.append(written)
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush)

    def put_data(self, written: bytes, size: int) -> None:
        """Send a frame of data, of which so much counts against the window."""
        self._window -= size
        self._out_bytes += size
        self.put(written)
        if self._out_bytes > limits.GRPC_WRITE_BYTES:
            self._write()

    def earn(self) -> None:
        """Note that a message was sent: it may be answered by frames that say little."""
        self._idle.earn(limits.GRPC_IDLE_FRAMES_PER_SENT)

    def _flush(self) -> None:
        self._is_flush_due = False
        self._write()

    def _write(self) -> None:
        out = self._out
        if out and not self._transport.is_closing():
            self._transport.write(b"".join(out) if len(out) > 1 else out[0])
        self._out_bytes = 0
        out.clear()

    def give_back(self, size: int) -> None:
        """Note that so much of what the peer sent is read, and let it send more."""
        self._owed += size
        if self._owed >= limits.GRPC_CONNECTION_WINDOW_BYTES // 2:
            self._own_window += self._owed
            self.put(frames.window_update(0, self._owed))
            self._owed = 0

    def wake_next(self) -> None:
        """Let one call that waits for the connection write on; it wakes the next one."""
        while self.blocked and self.room() > 0:
            if self.blocked.popitem(last=False)[1].wake():
                return

    # --- time and ends ------------------------------------------------------------------------

    def _ring(self) -> None:
        """Ask a peer of which nothing is heard; give up those that do not answer, or greet."""
        if not self._frames.is_greeted:
            _LOG.info("peer.cut", fault="no greeting in time")
            self._transport.abort()
            return
        if self._has_asked:
            _LOG.info("peer.cut", fault="no answer to a ping")
            self._transport.abort()
            return
        if not self._has_heard:
            self._has_asked = True
            self.put(frames.frame(frames.PING, 0, 0, _PING))
        self._has_heard = False
        for call in list(self.calls.values()):
            call.grow_old()
        if self._is_closed:
            return
        self._timer = self.loop.call_later(limits.PICKER_PING_S, self._ring)

    def drain(self) -> None:
        """Take what is on its way, then no new call, and close behind the last one."""
        if self._is_closed or self._is_draining:
            return
        self._is_draining = True
        # It hears first that the end is near, so that no call crosses the news.
        self.put(frames.goaway(frames.NUMBER_MAX, Code.NO_ERROR))
        self.put(frames.frame(frames.PING, 0, 0, _DRAIN_PING))
        self.loop.call_later(limits.GRPC_DRAIN_PING_S, self._tell_last)

    def _tell_last(self) -> None:
        if self._is_last_told or not self._is_draining or self._is_closed:
            return
        self._is_last_told = True
        self.put(frames.goaway(self._last, Code.NO_ERROR))
        if not self.calls:
            self.close()

    def tear(self) -> None:
        """End all calls that are left, and the connection."""
        for call in list(self.calls.values()):
            call.end(Status.UNAVAILABLE, "the picker is shutting down")
            call.cancel()
        self.close()

    def close(self) -> None:
        """Close behind what is written."""
        if self._is_closed:
            return
        self._is_closed = True
        for call in list(self.calls.values()):
            call.leave()
            call.cancel()
        self._write()
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(limits.LINGER_S, self._transport.abort)

"""One call of a peer: what its handler reads and writes, within the peer's windows and ours."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from kvatlas.common import limits
from kvatlas.router.exchange import Gone
from kvatlas.router.grpc import frames, heads
from kvatlas.router.grpc.frames import Code
from kvatlas.router.grpc.heads import Status
from kvatlas.router.grpc.messages import PREFIX, BadMessage, MessageReader

if TYPE_CHECKING:
    from kvatlas.router.grpc.connection import Connection

_CREDIT_BYTES = limits.GRPC_STREAM_WINDOW_BYTES // 2


class Call:
    """A call that is answered by one handler.

    Args:
        wire: the connection.
        number: of the stream.
        message_bytes_max: of one message of the peer.

    Attributes:
        path: of the method.
        task: in which the handler runs.
        has_ended: whether the peer sends nothing more.
        has_begun: whether the head of the answer is written.
        is_over: whether nothing more is sent, nor taken.
        granted: how much more may be sent than the connection's initial window, less what was.
    """

    __slots__ = (
        "_is_old", "_is_queued", "_is_silent", "_messages", "_owed", "_reader", "_turn", "_unread",
        "_waiter", "_window", "_wire", "granted", "has_begun", "has_ended", "is_over", "number",
        "path", "task",
    )  # fmt: skip

    def __init__(self, wire: Connection, number: int, path: str, message_bytes_max: int) -> None:
        self._wire = wire
        self.number = number
        self.path = path
        self.task: asyncio.Task[None] | None = None
        self.has_ended = self.has_begun = self.is_over = False
        self._is_silent, self._is_old = True, False
        self.granted = 0
        self._messages: deque[bytes] = deque()
        self._reader = MessageReader(message_bytes_max)
        self._waiter: asyncio.Future[None] | None = None
        self._turn: asyncio.Future[None] | None = None
        self._is_queued = False
        self._window = limits.GRPC_STREAM_WINDOW_BYTES
        self._unread = self._owed = 0

    # --- what the handler calls ---------------------------------------------------------------

    async def read(self) -> bytes | None:
        """Give the next message; None when the peer sends no more.

        A peer that gives the call up while it is being read from ends it so: gateways do that with
        each exchange that they are done with.
        """
        messages = self._messages
        while not messages:
            self._credit()
            if self.has_ended:
                return None
            self._waiter = self._wire.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return messages.popleft()

    async def write(self, message: bytes) -> None:
        """Send a message; it leaves with what else is written before the loop turns.

        Raises:
            Gone: there is nobody to send it to, or he takes nothing for too long.
        """
        if self.is_over:
            raise Gone
        wire, size = self._wire, len(message)
        if not self.has_begun:
            self.has_begun = True
            wire.put(frames.frame(frames.HEADERS, frames.END_HEADERS, self.number, heads.ANSWER))
        whole = PREFIX.size + size
        wire.earn()
        if whole <= wire.room() and whole <= wire.peer_window + self.granted:
            self.granted -= whole
            head = frames.head(frames.DATA, 0, self.number, whole)
            wire.put_data(head + PREFIX.pack(0, size) + message, whole)
        else:
            await self._write_in_pieces(memoryview(PREFIX.pack(0, size) + message))

    async def _write_in_pieces(self, rest: memoryview) -> None:
        wire = self._wire
        try:
            while rest:
                size = min(len(rest), wire.room(), wire.peer_window + self.granted)
                if size <= 0:
                    await self._await_room()
                    continue
                self.granted -= size
                head = frames.head(frames.DATA, 0, self.number, size)
                wire.put_data(head + rest[:size], size)
                rest = rest[size:]
        finally:
            # Whoever waits for the same room takes what is left of it.
            wire.wake_next()

    async def _await_room(self) -> None:
        self._turn = self._wire.loop.create_future()
        self._is_queued = self.has_room
        if self._is_queued:
            self._wire.blocked[self.number] = self
        else:
            self._wire.wake_next()
        try:
            async with asyncio.timeout(limits.WRITE_IDLE_S):
                await self._turn
        except TimeoutError:
            self.reset(Code.CANCEL)
            raise Gone from None
        finally:
            self._turn, self._is_queued = None, False
            # A peer that opens and resets calls while it takes nothing leaves none behind.
            self._wire.blocked.pop(self.number, None)
        if self.is_over:
            raise Gone

    # --- what the connection calls ------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Tell whether the window of this stream lets something through."""
        return self._wire.peer_window + self.granted > 0

    def wake(self) -> bool:
        """Let the handler write on; False where it does not wait for that."""
        if self._turn is None or self._turn.done():
            return False
        self._turn.set_result(None)
        return True

    def widened(self) -> None:
        """Let the handler write on if it waited for the peer to widen the window."""
        if self.has_room and not self._is_queued:
            self.wake()

    def grow_old(self) -> None:
        """Give it up if it was old already, and has brought nothing."""
        if self._is_silent and self._is_old:
            self.end(Status.DEADLINE_EXCEEDED, "no message in time")
            self.cancel()
        self._is_old = True

    def feed(self, payload: bytes, length: int) -> None:
        """Take in a piece of what the peer sends.

        Args:
            payload: without padding.
            length: with it.
        """
        self._window -= length
        self._unread += length
        if self._window < 0:
            self.reset(Code.FLOW_CONTROL_ERROR)
            self.cancel()
            return
        try:
            found = self._reader.feed(payload)
        except BadMessage as bad:
            self.end(bad.status, str(bad))
            self.cancel()
            return
        if found:
            self._is_silent = False
            self._messages.extend(found)
            self._notify()
        elif self._waiter is not None:
            # It waits for the rest of a message that may be larger than the window.
            self._credit()

    def give_up(self) -> None:
        """Note that the peer is gone for this call; who reads hears it, else he is stopped."""
        self.leave()
        if self._waiter is None:
            self.cancel()
        else:
            self._notify()

    def half_close(self) -> None:
        """Note that the peer sends no more."""
        self.has_ended = True
        if self._reader.partial:
            self.end(Status.INTERNAL, "the last message is not whole")
            self.cancel()
        else:
            self._notify()

    def _notify(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _credit(self) -> None:
        """Let the peer send as much again as was taken."""
        unread = self._unread
        if not unread:
            return
        self._unread = 0
        self._wire.give_back(unread)
        self._owed += unread
        if self._owed >= _CREDIT_BYTES and not self.has_ended and not self.is_over:
            self._window += self._owed
            self._wire.put(frames.window_update(self.number, self._owed))
            self._owed = 0

    # --- ends ---------------------------------------------------------------------------------

    def end(self, status: Status, text: str = "") -> None:
        """End the answer, behind what was written of it."""
        if self.is_over:
            return
        wire, number = self._wire, self.number
        block = heads.trailers(status, text)
        if not self.has_begun:
            block = heads.ANSWER + block
        wire.put(
            frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number, block)
        )
        if not self.has_ended:
            # What still comes is not read.
            wire.put(frames.reset(number, Code.NO_ERROR))
        self.leave()

    def reset(self, code: Code) -> None:
        """Break it off."""
        if not self.is_over:
            self._wire.put(frames.reset(self.number, code))
            self.leave()

    def leave(self) -> None:
        """Take it out of the connection; what was not read of it makes room for others."""
        self.is_over = self.has_ended = True
        self._wire.give_back(self._unread)
        self._unread = 0
        self._wire.left(self)

    def cancel(self) -> None:
        """Stop the handler."""
        if self.task is not None:
            self.task.cancel()

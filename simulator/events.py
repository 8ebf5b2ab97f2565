"""The publisher of KV events: a PUB socket, and a ROUTER socket that replays what was sent.

A message is `[topic, sequence (8 bytes, big-endian), payload]`; sequences count from 0 in each
life of the engine. A replay is asked for with a first sequence, and answered by every batch kept
from there on and an END. Source: vllm/distributed/kv_events.py.

The engine always binds its sockets, on the address as given: `tcp://*:5557` is every interface,
`tcp://127.0.0.1:5557` loopback, port 0 a port that the system chooses. (vLLM binds only addresses
with `*` or `::` and connects to any other; what follows the events here always connects.)
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.log import logger
from kvatlas.common.settings import EngineSettings
from kvatlas.simulator.cache_events import CacheEvent, EventFormat, encode_batch

_LOG = logger("engine")
_SEQUENCE = struct.Struct(">Q")
_END = b"\xff" * 8


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the events are to be had, with real ports; None is nowhere."""

    events: str | None
    replay: str | None


class Publisher:
    """Send batches and keep the last ones for replays."""

    def __init__(self, settings: EngineSettings, context: zmq.asyncio.Context) -> None:
        self._topic = settings.topic.encode()
        self._format: EventFormat = settings.event_format
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=settings.replay_batches)
        self._next = 0
        self._pub = self._router = None
        if settings.events is None:
            self.sources = Sources(None, None)
            return
        # Sending on a PUB socket never blocks, so it needs no place on the event loop.
        self._pub = zmq.Context(context).socket(zmq.PUB)
        self._pub.set(zmq.SNDHWM, limits.ENGINE_EVENTS_QUEUED_MAX)
        events = _bound(self._pub, settings.events, "engine.events")
        replay = None
        if settings.replay is not None:
            self._router = context.socket(zmq.ROUTER)
            # A replay is sent at once and must fit, or messages in its middle are dropped.
            self._router.set(zmq.SNDHWM, 2 * (settings.replay_batches + 1))
            replay = _bound(self._router, settings.replay, "engine.replay")
        self.sources = Sources(events, replay)

    def publish(self, events: list[CacheEvent]) -> None:
        """Send the events of a step as one batch; no events are no batch."""
        if self._pub is None or not events:
            return
        # The wire carries a wall-clock time; nothing here is decided by it.
        payload = encode_batch(time.time(), events, self._format)
        sequence = _SEQUENCE.pack(self._next)
        self._next += 1
        self._kept.append((sequence, payload))
        self._pub.send_multipart([self._topic, sequence, payload])

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled."""
        if self._router is None:
            return
        while True:
            request = await self._router.recv_multipart()
            if len(request) != 3 or request[1] or len(request[2]) != _SEQUENCE.size:
                _LOG.warning("replay.refused", frames=len(request))
                continue
            await self._replay(self._router, request[0], request[2])

    async def _replay(self, router: zmq.asyncio.Socket, peer: bytes, start: bytes) -> None:
        # The list holds still while the loop publishes between two sends.
        kept = [batch for batch in self._kept if batch[0] >= start]
        # Up to vLLM 0.24 replies had no topic; the old form of events means an old engine.
        head = [peer, b""] if self._format == "array" else [peer, b"", self._topic]
        for sequence, payload in kept:
            await router.send_multipart([*head, sequence, payload])
        end = [peer, b""] if self._format == "array" else [peer, b"", b""]
        await router.send_multipart([*end, _END, b""])

    def close(self) -> None:
        """Close the sockets without waiting for slow readers."""
        for socket in (self._pub, self._router):
            if socket is not None:
                socket.close(linger=0)


@contextmanager
def publishing(settings: EngineSettings) -> Iterator[Publisher]:
    """Publish events until the context ends.

    Raises:
        ConfigError: an address cannot be bound.
    """
    context = zmq.asyncio.Context(io_threads=1)
    publisher = None
    try:
        publisher = Publisher(settings, context)
        yield publisher
    finally:
        if publisher is not None:
            publisher.close()
        context.destroy(linger=0)


def _bound(socket: zmq.Socket[Any], address: str, setting: str) -> str:
    """Bind a socket and tell where it is."""
    socket.set(zmq.LINGER, 0)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ConfigError([f"{setting}: {address}: {error.strerror}"]) from None
    bound = socket.get(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)  # noqa: S101 - narrows the type
    return bound.rstrip(b"\0").decode()

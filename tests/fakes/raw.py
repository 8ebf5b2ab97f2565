"""A client that writes bytes, not requests."""

from __future__ import annotations

import asyncio
import json

from tests.fakes.door import chat

BODY = json.dumps(chat("hi")).encode()
LENGTH = b"Content-Length: %d" % len(BODY)


def post(*lines: bytes, target: bytes = b"/v1/chat/completions", body: bytes = BODY) -> bytes:
    """Write a POST with these header lines."""
    return b"\r\n".join((b"POST %b HTTP/1.1" % target, *lines, b"", body))


async def exchange(port: int, sent: bytes, limit_s: float = 5.0) -> bytes:
    """Send bytes on a connection of their own; give all that comes until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), limit_s)
    finally:
        writer.close()

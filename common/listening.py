"""Listening ports, all with the same bounds."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError

BACKLOG: Final = 1_024
"""Connections that wait to be taken; the kernel's own bound may be lower."""


async def listen(
    protocol: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None,
) -> asyncio.Server:
    """Listen on an address; handshakes have a deadline.

    Args:
        protocol: makes what a connection is handled by.
        host: to listen on.
        port: alike; 0 lets the system choose.
        ssl_context: to speak TLS with, and nothing else; None for plain text.

    Raises:
        ConfigError: the address cannot be bound.
    """
    has_tls = ssl_context is not None
    try:
        return await asyncio.get_running_loop().create_server(
            protocol,
            host,
            port,
            backlog=BACKLOG,
            ssl=ssl_context,
            ssl_handshake_timeout=limits.TLS_HANDSHAKE_S if has_tls else None,
            ssl_shutdown_timeout=limits.TLS_SHUTDOWN_S if has_tls else None,
        )
    except OSError as error:
        raise ConfigError([f"{host}:{port}: {error.strerror}"]) from None

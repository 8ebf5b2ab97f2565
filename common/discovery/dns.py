"""Endpoints behind a name: all of its addresses, asked for again and again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

from kvatlas.common import limits
from kvatlas.common.discovery.found import endpoint_at
from kvatlas.common.discovery.source import SourceFailed, Tell
from kvatlas.common.discovery_settings import DnsDiscovery

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Gives all addresses of a name, none for a name that has none; OSError where it has no answer."""


async def addresses_of(host: str) -> Sequence[str]:
    """Ask the system's resolver for all addresses of a name, of IPv4 and of IPv6.

    Raises:
        OSError: there is no such name, or no answer. How long that takes is the resolver's to say.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NODATA:
            return []
        raise
    return [str(address[0]) for *_, address in found]


class DnsSource:
    """Ask for a name's addresses.

    A name that is not there is an answer as little as none at all. One that has no address is
    believed when it has said so several times.

    Args:
        entry: of the configuration.
        resolve: asks.
    """

    def __init__(self, entry: DnsDiscovery, resolve: Resolve = addresses_of) -> None:
        self._entry = entry
        self._resolve = resolve
        self._empty_answers = 0

    async def run(self, tell: Tell) -> None:
        """Ask for ever.

        Raises:
            SourceFailed: there was no answer.
        """
        while True:
            try:
                found = await self._resolve(self._entry.host)
            except OSError as error:
                raise SourceFailed(f"{self._entry.host}: {error.strerror or error}") from None
            hosts = sorted({each for each in found if _is_reachable(each)})
            self._empty_answers = 0 if hosts else self._empty_answers + 1
            if hosts or self._empty_answers >= limits.DISCOVERY_EMPTY_ANSWERS:
                tell([
                    endpoint_at(self._entry, host, port, place)
                    for host in hosts
                    for place, port in enumerate(self._entry.ports)
                ])  # fmt: skip
            await asyncio.sleep(self._entry.interval_s)


def _is_reachable(address: str) -> bool:
    """Tell whether an address means the same to everybody: one with a zone does not."""
    try:
        return "%" not in address and not ip_address(address).is_unspecified
    except ValueError:
        return False

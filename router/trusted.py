"""Peers that are believed when they say for whom they ask. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from kvatlas.common import limits

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """Know them by their networks.

    Args:
        networks: of their addresses; with none nobody is believed.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)
        # Proxies are few and keep their addresses; strangers' push each other out.
        self._known = lru_cache(limits.PEERS_REMEMBERED_MAX)(self._look)

    def holds(self, peer: str | None) -> bool:
        """Tell whether a peer is one of them.

        Args:
            peer: its address; None where there is none, as on a unix socket.

        Cost: 0.1 us; 2 us for an address that is new.
        """
        return bool(self._networks) and peer is not None and self._known(peer)

    def _look(self, peer: str) -> bool:
        address = ipaddress.ip_address(peer)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

"""Endpoints that a request itself names, for tests of conformance. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvatlas.router.scheduling.interfaces import Candidate, Work
from kvatlas.router.scheduling.parameters import takes_parameters


@takes_parameters
@dataclass(frozen=True, slots=True)
class NamedByRequestFilter:
    """Keep the endpoints whose address the request names; nobody, where it names none.

    With it a client chooses its endpoint among the candidates: it belongs into tests only.
    """

    is_hard: ClassVar[bool] = True

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Give the positions of those named by host, or by host and port."""
        return [
            i
            for i, each in enumerate(candidates)
            if not work.named.isdisjoint(_addresses(each.endpoint))
        ]


def named_in(value: str | None) -> frozenset[str]:
    """Read the header: addresses with commas between, each `host` or `host:port`."""
    if not value:
        return frozenset()
    return frozenset(filter(None, (_bare(each.strip()) for each in value.split(","))))


def _addresses(endpoint: str) -> tuple[str, str]:
    host_port = endpoint.partition("#")[0]
    return host_port, _bare(host_port.rpartition(":")[0])


def _bare(host: str) -> str:
    """Take the brackets off an IPv6 address that stands alone."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host

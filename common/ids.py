"""The identities that everything else is made of.

NewTypes, so that a block hash is not taken for an engine hash and a number of blocks not for a
number of tokens: both are integers, and mixing them up is wrong without being an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType
from urllib.parse import quote

ModelName = NewType("ModelName", str)
"""The name under which engines serve a model and clients ask for it."""

EndpointName = NewType("EndpointName", str)
"""One routable engine: `host:port` as configured, `#rank` behind it for ranks above 0."""

BlockHash = NewType("BlockHash", int)
"""Our own chained identity of a full block of tokens, 64 bits unsigned."""

EngineHash = NewType("EngineHash", int)
"""What an engine calls the same block on the wire, folded to 64 bits unsigned."""

Epoch = NewType("Epoch", int)
"""One life of an endpoint's cache; grows by one at every start, reset or doubt."""

HolderId = NewType("HolderId", int)
"""A small number that stands in block entries for one pool of one endpoint in one epoch."""


IndexerId = NewType("IndexerId", str)
"""One indexer process; drawn anew at every start."""

Fence = NewType("Fence", int)
"""Names one ownership of an endpoint; grows with every owner."""


class Pool(NamedTuple):
    """One pool of blocks of an engine: a medium and a KV-cache group.

    A tuple, because the indexer hashes it once per block: a dataclass takes 0.3 us for that.

    Attributes:
        medium: where the blocks live, lower case as vLLM names it ("gpu", "cpu", ...).
        group: index of the KV-cache group; 0 where the engine names none.
        is_remote: the engine calls the place REMOTE; it may have a local one of the same medium.
    """

    medium: str
    group: int
    is_remote: bool = False

    def __str__(self) -> str:
        return f"{quote(self.medium)}{'@remote' if self.is_remote else ''}/{self.group}"


@dataclass(frozen=True, slots=True)
class EndpointId:
    """An endpoint together with the model whose index it belongs to."""

    model: ModelName
    name: EndpointName


def endpoint_name(host_port: str, rank: int = 0) -> EndpointName:
    """Write an endpoint the way that keys, logs, metrics and answers show it."""
    return EndpointName(host_port if rank == 0 else f"{host_port}#{rank}")

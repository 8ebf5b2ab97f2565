"""Which endpoints there are, and where their events come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kvatlas.common.ids import EndpointId
from kvatlas.common.keyspace import Shard, shard_of
from kvatlas.common.settings import EndpointSettings, Settings


@dataclass(frozen=True, slots=True)
class Source:
    """One endpoint's stream of events.

    Attributes:
        events: ZMQ address to subscribe to.
        replay: ZMQ address that replays are asked from, if there is one.
        block_size: tokens per block that the configuration names, if it does.
    """

    endpoint: EndpointId
    shard: Shard
    events: str
    replay: str | None
    block_size: int | None = None


def configured_sources(settings: Settings) -> list[Source]:
    """List the sources that the configuration names; endpoints without events are none."""
    return [
        source
        for endpoint in settings.endpoints
        if endpoint.events
        for source in _ranks(settings, endpoint, endpoint.events)
    ]


def _ranks(settings: Settings, endpoint: EndpointSettings, events: str) -> Iterator[Source]:
    """Give one source per data-parallel rank; each is one port higher, as vLLM has it."""
    model = settings.model_named(endpoint.model)
    for rank, name in enumerate(endpoint.names()):
        yield Source(
            EndpointId(model.model, name),
            shard_of(model.model, name, model.index_shards),
            _port_higher(events, rank),
            _port_higher(endpoint.replay, rank) if endpoint.replay else None,
            model.block_size,
        )


def _port_higher(address: str, by: int) -> str:
    return re.sub(r"\d+$", lambda port: str(int(port[0]) + by), address)

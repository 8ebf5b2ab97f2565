"""Where the events of endpoints come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def sources_of(settings: Settings, endpoints: Iterable[EndpointSettings]) -> list[Source]:
    """List the sources of endpoints, one per data-parallel rank; those without events are none."""
    return [source for endpoint in endpoints for source in _ranks(settings, endpoint)]


def _ranks(settings: Settings, endpoint: EndpointSettings) -> Iterator[Source]:
    model = settings.model_named(endpoint.model)
    for name, (events, replay) in zip(endpoint.names(), endpoint.streams(), strict=False):
        yield Source(
            EndpointId(model.model, name),
            shard_of(model.model, name, model.index_shards),
            events,
            replay,
            model.block_size,
        )

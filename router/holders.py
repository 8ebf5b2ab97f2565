"""What holder lists mean: endpoints, the tiers of their blocks, and what windows hold. Pure.

A holder is one pool (medium and KV-cache group) of an endpoint in an epoch. An endpoint holds a
block when each of its groups that cache every block has it in some pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName, Epoch, HolderId
from kvatlas.common.keyspace import Holder, parse_holder_ids
from kvatlas.common.kv_groups import FULL_KINDS, WINDOWED_KINDS, Tier, tier_of
from kvatlas.router.windows import Need, Span, need_of

WINDOW_BLOCKS_LEAST: Final = 32
"""A read costs its round trip first, so fewer blocks are no cheaper."""


@dataclass(frozen=True, slots=True)
class Match:
    """How much of a chain an endpoint holds; those that hold as much of it share one.

    Attributes:
        blocks: leading blocks that a request would hit there, wherever they live; at least 1.
        weighted_blocks: the same, each block counted by the weight of its best tier, in
            [0, blocks]; what scheduling goes by.
        epochs: the epochs that the matches of a lookup are from, by endpoint.
    """

    blocks: int
    weighted_blocks: float
    epochs: Mapping[EndpointName, Epoch]


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds the blocks of a run.

    Attributes:
        endpoints: those whose match goes on.
        losses: for those whose best tier is worth less than 1: what is missing to it, per block.
    """

    endpoints: frozenset[EndpointName]
    losses: Mapping[EndpointName, float]


Runs = Sequence[tuple[int, Held]]
"""(number of the last block, counted from 1, who holds the run's blocks), in order."""


@dataclass(frozen=True, slots=True)
class Hybrid:
    """An endpoint with groups that keep a window or a state.

    Attributes:
        has_full: it has groups that cache every block, too.
        needs: by group, what a hit needs of it.
    """

    has_full: bool
    needs: Mapping[int, Need]


class ShardView:
    """What is known of a shard's holders between two lookups; it never changes.

    Args:
        weights: what a block in each tier is worth.
        version: as Redis gave it; empty before the first lookup.
        fields: the reply of HGETALL on the holders map; what is foreign in it is left out.

    Attributes:
        epochs: current epoch of each endpoint that holds anything.
        hybrids: the endpoints whose matches windows may cut.
    """

    def __init__(
        self, weights: Mapping[Tier, float], version: bytes = b"", fields: Sequence[Any] = ()
    ) -> None:
        self.version = version
        live = _live_holders(fields)
        # What a kind means that is not known here is not known either: it can serve nothing.
        strange = {h.endpoint for h in live.values() if h.kind not in FULL_KINDS | WINDOWED_KINDS}
        live = {i: h for i, h in live.items() if h.endpoint not in strange}
        self.epochs: dict[EndpointName, Epoch] = {h.endpoint: h.epoch for h in live.values()}
        full = {i: h for i, h in live.items() if h.kind in FULL_KINDS}
        windowed = {i: h for i, h in live.items() if h.is_windowed}
        groups: dict[EndpointName, set[int]] = {}
        for holder in full.values():
            groups.setdefault(holder.endpoint, set()).add(holder.pool.group)
        self.hybrids = _hybrids(windowed, set(groups))
        self._full = {
            i: (h.endpoint, h.pool.group, weights[tier_of(h.pool)]) for i, h in full.items()
        }
        self._windowed = {i: (h.endpoint, h.pool.group) for i, h in windowed.items()}
        self._groups = {name: len(numbers) for name, numbers in groups.items()}
        self._parsed: dict[bytes, Held] = {}

    def window_blocks(self, name: EndpointName) -> int:
        """Say how many blocks are worth reading first for a hybrid endpoint."""
        needs = self.hybrids[name].needs.values()
        return max([WINDOW_BLOCKS_LEAST, *(n.blocks or limits.WINDOW_BLOCKS_FIRST for n in needs)])

    def full(self, value: bytes) -> Held:
        """Read a list of holder ids of the buckets `b:`.

        Raises:
            ValueError: it is something else.
        """
        known = self._parsed.get(value)
        if known is None:
            if len(self._parsed) >= limits.HOLDER_VALUES_CACHED_MAX:
                self._parsed.clear()
            known = self._parsed[value] = self._read_full(value)
        return known

    def windowed(self, value: bytes) -> set[tuple[EndpointName, int]]:
        """Read a list of holder ids of the buckets `w:` as endpoints and groups.

        Raises:
            ValueError: it is something else.
        """
        holders = self._windowed
        return {holders[i] for i in parse_holder_ids(value) if i in holders}

    def _read_full(self, value: bytes) -> Held:
        best: dict[EndpointName, dict[int, float]] = {}
        for number in parse_holder_ids(value):
            if number in self._full:
                name, group, weight = self._full[number]
                by_group = best.setdefault(name, {})
                by_group[group] = max(weight, by_group.get(group, 0.0))
        held = {
            name: min(by_group.values())
            for name, by_group in best.items()
            if len(by_group) == self._groups[name]
        }
        return Held(frozenset(held), {name: 1.0 - w for name, w in held.items() if w < 1.0})


@dataclass(slots=True)
class Spans:
    """The blocks that windowed groups hold in the part of a chain that was read so far."""

    view: ShardView
    _spans: dict[tuple[EndpointName, int], list[Span]] = field(default_factory=dict)

    def prepend(self, first: int, flat: Sequence[Any]) -> None:
        """Take the runs of a stretch that ends where the former one begins.

        Args:
            first: number of its first block, counted from 0.
            flat: (number of the run's last block, counted from 1 in the stretch, value) by turns.

        Raises:
            ValueError: a value is no list of ids.
        """
        found: dict[tuple[EndpointName, int], list[Span]] = {}
        start = first
        for last, value in zip(flat[::2], flat[1::2], strict=True):
            for key in self.view.windowed(value):
                _append(found.setdefault(key, []), (start, first + last))
            start = first + last
        for key, spans in found.items():
            for span in self._spans.get(key, ()):
                _append(spans, span)
            self._spans[key] = spans

    def of(self, name: EndpointName) -> list[tuple[Need, Sequence[Span]]]:
        """Give what a hit needs of each windowed group of an endpoint, and what there is."""
        needs = self.view.hybrids[name].needs
        return [(need, self._spans.get((name, group), ())) for group, need in needs.items()]


def intersect(runs: Runs, epochs: Mapping[EndpointName, Epoch]) -> dict[EndpointName, Match]:
    """Turn runs of holders into leading blocks per endpoint, plain and weighted by tier.

    An endpoint's match ends with the first run that it is not in.
    """
    matches: dict[EndpointName, Match] = {}
    losses: dict[EndpointName, float] = {}
    active: frozenset[EndpointName] | None = None
    first = 0
    for last, held in runs:
        active = held.endpoints if active is None else active & held.endpoints
        if not active:
            break
        # Hundreds of endpoints may share a system prompt: one object for all, and no loop here.
        matches.update(dict.fromkeys(active, Match(last, float(last), epochs)))
        for name, loss in held.losses.items():
            if name in active:
                losses[name] = losses.get(name, 0.0) + loss * (last - first)
        first = last
    for name, loss in losses.items():
        blocks = matches[name].blocks
        matches[name] = Match(blocks, blocks - loss, epochs)
    return matches


def weigh(runs: Runs, name: EndpointName, blocks: int) -> float:
    """Weigh the first blocks of an endpoint's match by tier."""
    weighted, first = float(blocks), 0
    for last, held in runs:
        if first >= blocks:
            break
        weighted -= held.losses.get(name, 0.0) * (min(last, blocks) - first)
        first = last
    return weighted


def _hybrids(
    windowed: Mapping[HolderId, Holder], with_full: set[EndpointName]
) -> dict[EndpointName, Hybrid]:
    needs: dict[EndpointName, dict[int, Need]] = {}
    for holder in windowed.values():
        need = need_of(holder.kind, holder.window, holder.block_size)
        needs.setdefault(holder.endpoint, {})[holder.pool.group] = need
    return {name: Hybrid(name in with_full, by_group) for name, by_group in needs.items()}


def _append(spans: list[Span], span: Span) -> None:
    """Add a span behind the others, joined to the last one where they touch."""
    if spans and spans[-1][1] == span[0]:
        spans[-1] = (spans[-1][0], span[1])
    else:
        spans.append(span)


def _live_holders(fields: Sequence[Any]) -> dict[HolderId, Holder]:
    live: dict[HolderId, Holder] = {}
    for key, text in zip(fields[::2], fields[1::2], strict=True):
        if not key.isdigit():
            continue
        try:
            live[HolderId(int(key))] = Holder.from_text(text.decode())
        except ValueError:
            continue
    return live

"""The KV-cache groups of one endpoint, learned from its stores. Pure.

Which groups there are decides what a hit is, so they are kept over epochs: a group that has said
nothing in this epoch serves nothing, but must not be left out. Where the engine's word cannot be
followed (a kind that is not known, groups whose blocks differ in size), nothing of the endpoint
is indexed, rather than something too long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from kvatlas.common import limits
from kvatlas.common.ids import Pool
from kvatlas.common.kv_groups import FULL_ATTENTION, FULL_KINDS, UNKNOWN_KIND, WINDOWED_KINDS
from kvatlas.indexer.events import BlockStored

GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Group:
    """What is known of one group.

    Attributes:
        kind: vLLM's name for it.
        window: tokens of its sliding window, None where there is none or it is not told.
        block_size: tokens per block on the GPU in this epoch; 0 where not told yet.
        is_named: the engine has named the kind in this epoch.
        is_at_odds: it has told two kinds, windows or sizes in one epoch.
    """

    kind: str
    window: int | None
    block_size: int
    is_named: bool
    is_at_odds: bool = False


class Groups:
    """All groups of an endpoint."""

    def __init__(self) -> None:
        self._groups: dict[int, Group] = {}
        self._fault: str | None = None
        self.version = 0
        """Grows with every change."""

    @property
    def fault(self) -> str | None:
        """Say why the endpoint is not indexed: "kind", "block_sizes", "contradiction", or None."""
        return self._fault

    @property
    def are_matchable(self) -> bool:
        """Tell whether a hit can be computed from these groups."""
        return self._fault is None

    @property
    def are_full(self) -> bool:
        """Tell whether every group caches every block."""
        return all(group.kind in FULL_KINDS for group in self._groups.values())

    @property
    def device_pools(self) -> list[Pool]:
        """List the GPU pool of each group, where there are several."""
        if len(self._groups) < 2:
            return []
        return [Pool(GPU, number) for number in sorted(self._groups)]

    def of(self, pool: Pool) -> Group:
        """Describe the group of a pool."""
        return self._groups.get(pool.group) or _assumed(pool.group)

    def to_text(self) -> str:
        """Write all groups for people, such as `0=sliding_window/64 1=full_attention`."""
        return " ".join(
            f"{number}={group.kind}" + (f"/{group.window}" if group.window is not None else "")
            for number, group in sorted(self._groups.items())
        )

    def to_rows(self) -> list[list[Any]]:
        """Write all that is known of each group, for `from_rows`."""
        return [[number, *astuple(group)] for number, group in sorted(self._groups.items())]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[Any]]) -> Groups:
        """Read what `to_rows` wrote.

        Raises:
            ValueError: it is something else.
        """
        groups = cls()
        try:
            groups._groups = {int(number): Group(*fields) for number, *fields in rows}
        except TypeError as error:
            raise ValueError("not groups") from error
        groups._fault = groups._find_fault()
        return groups

    def learn(self, event: BlockStored) -> bool:
        """Take over what a store says of its group.

        Returns:
            Whether something was believed that is not so: what has been written of the endpoint
            stands in the wrong place, or must not stand there.
        """
        number = event.pool.group
        known = self._groups.get(number)
        size = event.block_size if event.pool.medium == GPU else 0
        if known is None:
            if len(self._groups) >= limits.POOLS_PER_ENDPOINT_MAX:
                return False
            known = _assumed(number)
        elif _agrees(event, known, size):
            return False
        believed = self._groups.get(number)
        self._groups[number] = group = _merged(known, event, size)
        self.version += 1
        fault, self._fault = self._fault, self._find_fault()
        if believed is None:
            return fault != self._fault
        moved = (believed.kind, believed.window) != (group.kind, group.window)
        return moved or fault != self._fault

    def loosen(self) -> None:
        """Begin a new epoch: kinds stay until they are named anew, sizes are asked for again."""
        self._groups = {
            number: replace(group, block_size=0, is_named=False, is_at_odds=False)
            for number, group in self._groups.items()
        }
        self._fault = self._find_fault()
        self.version += 1

    def has_common_size(self, event: BlockStored) -> bool:
        """Tell whether an event's blocks are of the size that the first full group has."""
        if len(self._groups) < 2:
            return True
        sizes = [
            group.block_size
            for _, group in sorted(self._groups.items())
            if group.kind in FULL_KINDS and group.block_size
        ]
        return not sizes or sizes[0] == event.block_size

    def _find_fault(self) -> str | None:
        groups = self._groups.values()
        if any(group.kind not in FULL_KINDS | WINDOWED_KINDS for group in groups):
            return "kind"
        if len(groups) < 2:
            return None
        sizes = {group.block_size for group in groups if group.block_size}
        if len(sizes) > 1:
            return "block_sizes"
        return "contradiction" if any(group.is_at_odds for group in groups) else None


def _assumed(number: int) -> Group:
    """Describe a group that the engine does not: engines without hybrid models have group 0."""
    return Group(UNKNOWN_KIND if number else FULL_ATTENTION, None, 0, is_named=False)


def _agrees(event: BlockStored, known: Group, size: int) -> bool:
    if size and size != known.block_size:
        return False
    if event.kind is None:
        return True
    return known.is_named and (event.kind, event.window) == (known.kind, known.window)


def _merged(known: Group, event: BlockStored, size: int) -> Group:
    at_odds = known.is_at_odds or bool(size and known.block_size and size != known.block_size)
    merged = replace(known, block_size=known.block_size or size, is_at_odds=at_odds)
    if event.kind is None:
        return merged
    if not known.is_named:
        return replace(merged, kind=event.kind, window=event.window, is_named=True)
    same = (event.kind, event.window) == (known.kind, known.window)
    return merged if same else replace(merged, is_at_odds=True)

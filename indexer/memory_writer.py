"""Which parts of an endpoint's memory are to be written next. Pure.

Pages are written in turn, each with a write of the index, as of the sequence that the index has
reached by it. So a page is as old as it takes to write all others, and no page is ever ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvatlas.common import limits
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.memory import OUTLINE_FIELD, PAGES, Outline
from kvatlas.indexer.targets import Value


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one write takes along.

    Attributes:
        fields: of the memory.
        pages: numbers of those among them that are pages.
        seq: that they stand for.
        made_of: what the outline among them was made of; empty where there is none.
    """

    fields: dict[str, Value] = field(default_factory=dict)
    pages: tuple[int, ...] = ()
    seq: int = 0
    made_of: tuple[object, ...] = ()


class MemoryWriter:
    """Keep what Redis remembers of a cache close behind it.

    Args:
        cache: what is to be remembered.
        root: names the moment from which on presence is known; see `Outline`.
    """

    def __init__(self, cache: EndpointCache, root: str) -> None:
        self._cache = cache
        self._root = root
        self._first: int | None = None
        self._counted_from: int | None = 0
        self._stamps: list[int | None] = [None] * PAGES
        self._next = 0
        self._paced_at = 0
        self._outlined: tuple[object, ...] = ()
        """What the confirmed outline was made of, so that it is seldom made in vain."""

    def resume(self, outline: Outline, stamps: list[int]) -> None:
        """Go on behind a former owner."""
        self._root, self._first = outline.root, outline.first
        self._counted_from = outline.counted_from
        self._stamps[:] = stamps
        self._paced_at = max(stamps)

    def forget(self, root: str) -> None:
        """Begin anew: what pages say is present is not."""
        self._root, self._first = root, None
        self.lost()

    def lost(self) -> None:
        """Note that Redis may have lost what was written."""
        self._stamps = [None] * PAGES
        self._outlined = ()

    def batch(self, seq: int, counted_from: int | None) -> None:
        """Note a batch, and from which one on copies are counted."""
        if self._first is None:
            self._first = self._paced_at = seq
        self._counted_from = counted_from

    def is_behind(self, seq: int, by: int = 0) -> bool:
        """Tell whether some page is more than so many batches older than a sequence."""
        return self._first is not None and bool(self._behind(seq, by))

    def parcel(self, seq: int, behind_by: int | None = None) -> Parcel:
        """Choose what to write.

        Args:
            seq: newest batch in the cache.
            behind_by: pages that are more than so many batches older than it; None for those whose
                turn it is.
        """
        if self._first is None:
            return Parcel()
        fields: dict[str, Value] = {}
        made_of = self._made_of()
        if made_of != self._outlined:
            fields[OUTLINE_FIELD] = self._outline_text(self._first)
        pages = self._due(seq) if behind_by is None else self._behind(seq, behind_by)
        for number in pages:
            fields[str(number)] = self._cache.page(number).pack(self._root, seq)
        return Parcel(fields, tuple(pages), seq, made_of if OUTLINE_FIELD in fields else ())

    def written(self, parcel: Parcel) -> None:
        """Note that a parcel is in Redis."""
        for number in parcel.pages:
            self._stamps[number] = parcel.seq
        if parcel.made_of:
            self._outlined = parcel.made_of

    def _due(self, seq: int) -> list[int]:
        count = min((seq - self._paced_at) // limits.PAGE_BATCHES, limits.PAGES_PER_WRITE_MAX)
        if count <= 0:
            return []
        # What could not be made up for at once is not made up for later: batches that come in
        # such numbers are replayed as fast.
        self._paced_at = seq
        pages = [(self._next + step) % PAGES for step in range(count)]
        self._next = (self._next + count) % PAGES
        return pages

    def _behind(self, seq: int, by: int) -> list[int]:
        behind = [
            number for number, stamp in enumerate(self._stamps) if stamp is None or seq - stamp > by
        ]
        return behind[: limits.PAGES_PER_WRITE_MAX]

    def _made_of(self) -> tuple[object, ...]:
        cache = self._cache
        return (
            self._root,
            self._first,
            self._counted_from,
            cache.block_size,
            cache.groups.version,
        )

    def _outline_text(self, first: int) -> str:
        cache = self._cache
        rows = cache.groups.to_rows()
        return Outline(self._root, first, self._counted_from, cache.block_size, rows).to_text()

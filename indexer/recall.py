"""Go on where an endpoint's former owner has stopped. Pure.

Its pages are of different ages, the oldest as old as it takes to write them all in turn. The
engine is asked for the batches since then; each counts for the pages that are older than it, and
at the batch up to which the index stands memory and index are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvatlas.common.ids import ModelName
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.events import Batch
from kvatlas.indexer.groups import Groups
from kvatlas.indexer.memory import PAGES, Outline, Written
from kvatlas.indexer.sequence import Resumption
from kvatlas.indexer.targets import Position, Progress, Remembered


@dataclass(slots=True)
class Recall:
    """What was recalled of an endpoint, while it is brought to where the index stands.

    Attributes:
        cache: whole once every batch up to `proven` has been taken.
        stamps: the sequence that each page stands for.
        outline: as the former owner left it.
        position: where the index stands.
        proven: newest batch that the former owner has applied.
        relearn_s: seconds for which hits were still to be announced.
    """

    cache: EndpointCache
    stamps: list[int]
    outline: Outline
    position: Position
    proven: Progress
    relearn_s: float

    @property
    def resumption(self) -> Resumption:
        """Say which batches are still needed."""
        first = min(*self.stamps, self.proven.seq) + 1
        return Resumption(first, self.proven.seq, self.proven.digest)

    def take(self, batch: Batch, seq: int, *, counts_copies: bool) -> None:
        """Take a batch over, up to the proven one."""
        self.cache.reapply(batch, seq, self.stamps, counts_copies=counts_copies)


def recalled(model: ModelName, left: Remembered | None) -> Recall | None:
    """Read what a former owner has left.

    Returns:
        None where it has left nothing that can be gone on from.
    """
    if left is None:
        return None
    try:
        return _recalled(model, left)
    except (ValueError, TypeError):
        return None


def _recalled(model: ModelName, left: Remembered) -> Recall:
    outline = Outline.from_text(left.outline)
    seq, digest = left.proof.decode().split(" ")
    proven = Progress(int(seq), left.time_s, bytes.fromhex(digest))
    cache = EndpointCache(model)
    cache.groups = Groups.from_rows(outline.groups)
    cache.block_size = outline.block_size
    # Before its first batch nothing was there: that is what a page says that was never written.
    stamps = [outline.first - 1] * PAGES
    for number, packed in enumerate(left.pages):
        if packed is None:
            continue
        written = Written.unpack(packed)
        is_present = written.root == outline.root
        cache.restore(written.page, is_present=is_present)
        if is_present:
            stamps[number] = written.seq
    if max(stamps) > proven.seq:
        raise ValueError("a page is ahead of the index")
    return Recall(cache, stamps, outline, left.position, proven, left.relearn_s)

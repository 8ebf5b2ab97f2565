"""What an endpoint's owner must remember, as it is written down beside the index. Pure.

A page holds a share of the engine hashes, as of the sequence in its header; the `Outline` holds
what belongs to all of them. Pages of different ages fit together: what an engine hash means does
not depend on time, and a batch counts for a page only if it is newer (`EndpointCache.reapply`).
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgpack

from kvatlas.common.ids import BlockHash, EngineHash, Pool

PAGES: Final = 64
PAGE_MASK: Final = PAGES - 1
"""The lowest bits of an engine hash are the number of its page."""
OUTLINE_FIELD: Final = "outline"


@dataclass(frozen=True, slots=True)
class Page:
    """What is remembered of some engine hashes.

    Attributes:
        hashes: those that are known to be a block first, then those that are present unplaced.
        blocks: what the former ones are, in the same order.
        copies: per pool, how many copies of each hash it holds.
    """

    hashes: Sequence[EngineHash]
    blocks: Sequence[BlockHash]
    copies: Mapping[Pool, Sequence[int]]

    def pack(self, root: str, seq: int) -> bytes:
        """Write the page as of a sequence: 16 or 17 bytes per hash where there is one pool.

        Args:
            root: names what the presence in the page goes back to: see `Outline`.
            seq: newest batch that it has in it.
        """
        pools = []
        for pool, copies in self.copies.items():
            if any(copies):
                pools.append([list(pool), _pack_copies(copies)])
        packed: bytes = msgpack.packb(
            [root, seq, _pack_words(self.hashes), _pack_words(self.blocks), pools]
        )
        return packed


@dataclass(frozen=True, slots=True)
class Written:
    """A page as it was read back: of which root, as of which sequence."""

    root: str
    seq: int
    page: Page

    @classmethod
    def unpack(cls, packed: bytes) -> Written:
        """Read what `Page.pack` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            root, seq, hashes, blocks, pools = msgpack.unpackb(
                packed, raw=False, strict_map_key=True
            )
            words, known = _unpack_words(hashes), _unpack_words(blocks)
            copies = {_pool(pool): _unpack_copies(each, len(words)) for pool, each in pools}
        except (TypeError, msgpack.UnpackException) as error:
            raise ValueError("not a page") from error
        sizes = {len(each) for each in copies.values()} | {len(words)}
        if len(known) > len(words) or len(sizes) != 1 or not isinstance(seq, int):
            raise ValueError("not a page")
        return cls(str(root), seq, Page(words, known, copies))  # type: ignore[arg-type]  # NewTypes


@dataclass(frozen=True, slots=True)
class Outline:
    """What belongs to all pages of an endpoint.

    Attributes:
        root: names the moment from which on presence is known without a break: a start, a restart,
            a doubt. What pages of another root say is present is not.
        first: sequence of the first batch after that moment.
        counted_from: sequence from which on copies are counted; None while they are not.
        block_size: as in `EndpointCache`.
        groups: the KV-cache groups: number, kind, window, block size, is named, is at odds.
    """

    root: str
    first: int
    counted_from: int | None
    block_size: int
    groups: Sequence[Sequence[Any]]

    def to_text(self) -> str:
        """Write it for Redis, and for people."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: bytes) -> Outline:
        """Read what `to_text` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError("not an outline") from error


def _pack_copies(copies: Sequence[int]) -> int | bytes | list[int]:
    """Write one number where all are the same, which is usual, and a byte each else."""
    if copies.count(copies[0]) == len(copies):
        return copies[0]
    try:
        return bytes(copies)
    except ValueError:  # some do not fit a byte
        return list(copies)


def _unpack_copies(packed: int | bytes | list[int], count: int) -> list[int]:
    return [packed] * count if isinstance(packed, int) else list(packed)


def _pool(fields: Sequence[Any]) -> Pool:
    medium, group, is_remote = fields
    return Pool(str(medium), int(group), is_remote=bool(is_remote))


def _pack_words(words: Iterable[int]) -> bytes:
    packed = array("Q", words)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack_words(packed: bytes) -> list[int]:
    words = array("Q", packed)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tolist()

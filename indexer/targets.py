"""What the store is told and tells: endpoints, positions, changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from kvatlas.common.ids import BlockHash, EndpointName, Epoch, Fence, HolderId
from kvatlas.common.keyspace import Holder, Shard

BEFORE_FIRST: Final = -1
"""The sequence of an epoch in which nothing has been applied."""

NO_FENCE: Final = Fence(0)
"""Of an endpoint that is not claimed: every write is refused."""

Value = str | bytes | int | float
"""Of a field of an endpoint's state or memory."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which endpoint is written, where to, and under which ownership."""

    name: EndpointName
    shard: Shard
    fence: Fence = NO_FENCE

    @property
    def key(self) -> str:
        """Name the HASH with the endpoint's state."""
        return self.shard.endpoint(self.name)


class Change(Struct, frozen=True):
    """Blocks that one holder has come to hold, or holds no longer.

    Attributes:
        windowed: the holder's group keeps a window or a state, its blocks stand in `w:`.
    """

    holder: HolderId
    blocks: Sequence[BlockHash]
    present: bool
    windowed: bool = False


class Progress(Struct, frozen=True):
    """How far a write gets.

    Attributes:
        seq: sequence of the newest batch that is in the index then.
        time_s: the engine's time stamp on that batch, Unix seconds.
        digest: of that batch.
    """

    seq: int
    time_s: float
    digest: bytes = b""

    @property
    def proof(self) -> str:
        """Write what a successor knows the engine's life by; "" where there is nothing."""
        return f"{self.seq} {self.digest.hex()}" if self.digest else ""


class Position(Struct, frozen=True):
    """Where the index stands for an endpoint: all batches up to `seq` of `epoch` are in it.

    Attributes:
        part: writes since then that were parts of what follows. Counted so that a part that a
            failover lost is missed, though the sequence stays the same.
    """

    epoch: Epoch
    seq: int
    part: int = 0

    def after(self, to: Progress) -> Position:
        """Give where the index stands after a write."""
        part = self.part + 1 if to.seq == self.seq else 0
        return Position(self.epoch, to.seq, part)


@dataclass(frozen=True, slots=True)
class Opening:
    """Why and how an epoch begins.

    Attributes:
        reason: one word, for people.
        now_s: Unix seconds, for people.
        forgets: the owner's memory of what was present begins anew, too.
        fields: what else the endpoint's state should say.
    """

    reason: str
    now_s: float
    forgets: bool = True
    fields: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an endpoint's former owner has left.

    Attributes:
        position: where the index stands.
        time_s: time stamp of the newest batch in it.
        proof: as `Progress.proof` wrote it.
        relearn_s: seconds for which hits were still to be announced.
        outline: of the pages, as `Outline.to_text` wrote it.
        pages: those that were written, as `Page.pack` wrote them.
    """

    position: Position
    time_s: float
    proof: bytes
    relearn_s: float
    outline: bytes
    pages: Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class Dead:
    """Holders of past epochs whose ids may still stand in entries.

    Attributes:
        texts: what each id stood for, and when it died.
    """

    texts: Mapping[str, bytes]

    @property
    def has_windowed(self) -> bool:
        """Tell whether some of them may stand in the buckets `w:`."""
        return any(map(_may_be_windowed, self.texts.values()))


def _may_be_windowed(text: bytes) -> bool:
    """Tell whether a dead holder's entries may stand in `w:`; so may those of a foreign text."""
    try:
        return Holder.from_text(text.decode()).is_windowed
    except ValueError:
        return True

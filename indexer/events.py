"""KV-cache events as the indexer understands them, whatever form they had on the wire.

msgspec's classes, because a frozen dataclass takes ten times as long to make: 1.2 us per event.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from kvatlas.common.block_hash import ExtraKey
from kvatlas.common.ids import EngineHash, Pool


class BlockStored(Struct, frozen=True):
    """Some blocks of one chain have become full in one pool.

    Attributes:
        hashes: engine hashes, in chain order.
        parent: engine hash of the block before `token_ids`, None at the start of a prompt.
        token_ids: tokens of the range; empty where the engine tells none (offload tiers).
        block_size: tokens per block; 0 where the engine tells none.
        lora: name of the LoRA adapter.
        extras: extra keys per block without the LoRA name; empty when no block has any.
        kind: vLLM's name for the kind of the KV-cache group, None where the engine names none.
        window: tokens of the group's sliding window, None where the engine tells none.
    """

    pool: Pool
    hashes: Sequence[EngineHash]
    parent: EngineHash | None
    token_ids: Sequence[int]
    block_size: int
    lora: str | None
    extras: Sequence[Sequence[ExtraKey]]
    kind: str | None
    window: int | None = None

    @property
    def is_dense(self) -> bool:
        """Tell whether tokens and hashes go together one block to one hash."""
        return bool(self.token_ids) and len(self.hashes) * self.block_size == len(self.token_ids)


class BlockRemoved(Struct, frozen=True):
    """One copy of each of these blocks has left a pool.

    Attributes:
        pool: the medium may be named without a group, which is then 0.
    """

    pool: Pool
    hashes: Sequence[EngineHash]


class AllBlocksCleared(Struct, frozen=True):
    """The engine has forgotten every block, in all pools."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(Struct, frozen=True):
    """What one message says.

    Attributes:
        time_s: the engine's wall clock, Unix seconds.
        events: in the order in which they happened.
        unknown: events with a tag that is not known here; newer engines may have more.
    """

    time_s: float
    events: Sequence[Event]
    unknown: int

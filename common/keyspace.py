"""The names of all keys in Redis and how their values are written. docs/REDIS.md explains them.

The keys of one index shard share the hash tag `{model/shard}`, so that scripts touch one slot.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from xxhash import xxh3_64_intdigest

from kvatlas.common.ids import BlockHash, EndpointName, Epoch, HolderId, ModelName, Pool
from kvatlas.common.kv_groups import WINDOWED_KINDS

PREFIX: Final = "kvatlas:"
SCHEMA_KEY: Final = PREFIX + "schema"
SCHEMA_VERSION: Final = "3"
"""Raised with leases: an indexer that knows none would write what is another's."""
MODELS_KEY: Final = PREFIX + "models"
INDEXERS_KEY: Final = PREFIX + "indexers"
BUCKET_DIGITS: Final = 4
"""Hex digits of a block hash that name its bucket; the other 12 are the field in it."""
BUCKETS: Final = 16**BUCKET_DIGITS
HASH_DIGITS: Final = 16
FLOOR_FIELD: Final = "floor"
"""Of the holders HASH: ids that are given out are not below it."""
EPOCH_DIGITS_MAX: Final = 18


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a model's index: its own hash slot, holding some of the model's endpoints.

    Attributes:
        base: what every key of the shard begins with.
    """

    model: ModelName
    number: int
    base: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        base = f"{PREFIX}{{{_quoted(self.model)}/{self.number}}}:"
        object.__setattr__(self, "base", base)

    @property
    def holders(self) -> str:
        """Name the HASH of holder id -> holder text, with what else open_pool.lua keeps there."""
        return self.base + "holders"

    @property
    def dead(self) -> str:
        """Name the HASH of holder ids whose epoch is over and whose entries await the sweep."""
        return self.base + "dead"

    @property
    def endpoints(self) -> str:
        """Name the SET of the endpoints that the shard has a state for."""
        return self.base + "endpoints"

    @property
    def owners(self) -> str:
        """Name the HASH of leases: endpoint -> indexer, fence, end."""
        return self.base + "owners"

    @property
    def bucket_prefix(self) -> str:
        """Give what the key of every bucket begins with; 4 hex digits follow."""
        return self.base + "b:"

    @property
    def window_prefix(self) -> str:
        """Give the same for the buckets of groups that keep a window or a state."""
        return self.base + "w:"

    @property
    def doubts(self) -> str:
        """Name the HASH of notes that routers leave: endpoint -> `epoch words`."""
        return self.base + "doubts"

    @property
    def relearning(self) -> str:
        """Name the HASH of endpoints whose hits routers have announced: endpoint -> epoch."""
        return self.base + "relearning"

    def endpoint(self, name: EndpointName) -> str:
        """Name the HASH with the state of an endpoint: epoch, sequence, blocks, ..."""
        return f"{self.base}endpoint:{name}"

    def memory(self, name: EndpointName) -> str:
        """Name the HASH with what an endpoint's owner must remember: pages and their outline."""
        return f"{self.base}memory:{name}"

    def bucket(self, number: int, *, windowed: bool = False) -> str:
        """Name a bucket by its number in [0, BUCKETS), in `b:` or in `w:`."""
        prefix = self.window_prefix if windowed else self.bucket_prefix
        return f"{prefix}{number:0{BUCKET_DIGITS}x}"

    def entry(self, block: BlockHash, *, windowed: bool = False) -> tuple[str, str]:
        """Name the bucket and the field that hold a block, in `b:` or in `w:`."""
        digits = hex_digits([block])
        (bucket,) = self.buckets_of(digits, windowed=windowed)
        return bucket, digits[BUCKET_DIGITS:]

    def buckets_of(self, digits: str, *, windowed: bool = False) -> list[str]:
        """Name the bucket of each block that `hex_digits` wrote, in `b:` or in `w:`."""
        prefix = self.window_prefix if windowed else self.bucket_prefix
        return [
            prefix + digits[at : at + BUCKET_DIGITS] for at in range(0, len(digits), HASH_DIGITS)
        ]


@dataclass(frozen=True, slots=True)
class LoadKeys:
    """The keys of what is shared of the load of a model's endpoints: a hash slot of their own."""

    model: ModelName
    base: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", f"{PREFIX}{{{_quoted(self.model)}/load}}:")

    @property
    def gauges(self) -> str:
        """Name the HASH of what indexers read off engines' metrics: endpoint -> gauges."""
        return self.base + "gauges"

    @property
    def flights(self) -> str:
        """Name the STREAM of what routers have under way."""
        return self.base + "flights"


def used_key(tenant: str) -> str:
    """Name the HASH of what a tenant has used of its limits.

    Args:
        tenant: letters, digits and `._-`.
    """
    return f"{PREFIX}router:used:{tenant}"


def _quoted(model: ModelName) -> str:
    return quote(model, safe="/-._~")


def hex_digits(blocks: Iterable[BlockHash]) -> str:
    """Write blocks as 16 hex digits each, one behind the other.

    Cost: 30 ns per block.
    """
    packed = array("Q", blocks)
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes().hex()


def shard_of(model: ModelName, endpoint: EndpointName, shards: int) -> Shard:
    """Choose the shard that an endpoint's blocks live in; the same everywhere and always."""
    if shards == 1:
        return Shard(model, 0)
    return Shard(model, xxh3_64_intdigest(endpoint.encode()) % shards)


def shards_of(model: ModelName, shards: int) -> tuple[Shard, ...]:
    """List all shards of a model."""
    return tuple(Shard(model, number) for number in range(shards))


@dataclass(frozen=True, slots=True)
class Holder:
    """What a holder id stands for: one pool of one endpoint in one epoch.

    Attributes:
        kind: vLLM's `kv_cache_spec_kind` of the group, "full_attention" where none is named.
        window: tokens of the group's window, None where there is none or it is not told.
        block_size: tokens per block, written for groups with a window or a state; else 0.
    """

    endpoint: EndpointName
    epoch: Epoch
    pool: Pool
    kind: str
    window: int | None = None
    block_size: int = 0

    @property
    def is_windowed(self) -> bool:
        """Tell whether the blocks stand in the buckets `w:`."""
        return self.kind in WINDOWED_KINDS

    def to_text(self) -> str:
        """Write the value of the holders HASH.

        For example `endpoint=10.0.0.1:8000 epoch=3 medium=gpu group=0 kind=full_attention`, and
        where it applies `locality=remote`, `window=64`, `block_size=32` behind it.
        """
        return (
            f"endpoint={self.endpoint} epoch={self.epoch} medium={quote(self.pool.medium)} "
            f"group={self.pool.group} kind={quote(self.kind)}"
            + (" locality=remote" if self.pool.is_remote else "")
            + (f" window={self.window}" if self.window is not None else "")
            + (f" block_size={self.block_size}" if self.block_size else "")
        )

    @classmethod
    def from_text(cls, text: str) -> Holder:
        """Read what `to_text` wrote.

        Raises:
            ValueError: it is something else (a foreign or newer writer's).
        """
        fields = dict(part.split("=", 1) for part in text.split(" "))
        try:
            return cls(
                EndpointName(fields["endpoint"]),
                Epoch(int(fields["epoch"])),
                Pool(
                    unquote(fields["medium"]),
                    int(fields["group"]),
                    is_remote=fields.get("locality") == "remote",
                ),
                unquote(fields["kind"]),
                int(fields["window"]) if "window" in fields else None,
                int(fields.get("block_size", 0)),
            )
        except KeyError as error:
            raise ValueError(f"no {error} in a holder") from error


def read_epoch(text: bytes) -> Epoch | None:
    """Read an epoch that somebody else may have written; None where it is none."""
    return Epoch(int(text)) if len(text) <= EPOCH_DIGITS_MAX and text.isdigit() else None


def parse_holder_ids(value: bytes) -> tuple[HolderId, ...]:
    """Read the value of a block entry: `3 17 204`.

    Raises:
        ValueError: it is something else.
    """
    return tuple(HolderId(int(part)) for part in value.split())

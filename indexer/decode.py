"""Read a message's payload: bytes become a Batch, or a MalformedBatch is raised. Pure.

Engines differ by version (docs/EVENTS.md): events are arrays with the tag first or maps
with a `type`, block hashes integers or bytes, batches arrays or maps, and all of them grow new
fields. What is not known is ignored, what is known must be right: a wrong type in a known field
spoils the whole batch, since to skip an event is to believe in blocks that are gone.

The classes that end with Map and Array are the wire forms; msgspec checks their types and ranges
while it reads, which a loop in Python would take as long again for.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct, ValidationError
from msgspec.msgpack import Decoder

from kvatlas.common import limits
from kvatlas.common.block_hash import ExtraKey
from kvatlas.common.errors import MalformedBatch
from kvatlas.common.ids import EngineHash, Pool
from kvatlas.indexer.events import (
    AllBlocksCleared,
    Batch,
    BlockRemoved,
    BlockStored,
    Event,
)

DEFAULT_MEDIUM: Final = "gpu"
REMOTE: Final = "remote"
UNNAMED_LORA: Final = "\0lora_id="
"""Begins the name of an adapter that the engine (up to 0.13) knows by number alone."""
UINT64: Final = 2**64
UINT32: Final = 2**32
POOLS_CACHED: Final = 1_024
"""Spellings of pools that are kept; an endpoint has a handful."""

Word = Annotated[str, Meta(max_length=256)] | None
Hash = int | bytes
BlockSize = Annotated[int, Meta(ge=0, le=limits.BLOCK_SIZE_MAX)]
Group = Annotated[int, Meta(ge=0, le=2**16)] | None
BlockKeys = Annotated[list[Any], Meta(max_length=limits.EXTRA_KEYS_PER_BLOCK_MAX)] | None
ExtraKeys = Annotated[list[BlockKeys], Meta(max_length=2 * limits.HASHES_PER_BATCH_MAX)] | None
"""Per block, nil or a list of untagged keys."""
Window = Annotated[int, Meta(ge=0, le=UINT32)] | None


class Stored(Struct):
    """What both forms of a BlockStored tell, in the order of the array, which grows at the end."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: BlockSize
    lora_id: Annotated[int, Meta(ge=0, le=UINT32)] | None = None
    medium: Word = None
    lora_name: Word = None
    extra_keys: ExtraKeys = None
    group_idx: Group = None
    kv_cache_spec_kind: Word = None
    kv_cache_spec_sliding_window: Window = None


class Removed(Struct):
    """What both forms of a BlockRemoved tell, in the order of the array."""

    block_hashes: list[Hash]
    medium: Word = None
    group_idx: Group = None


class StoredMap(Stored, tag_field="type", tag="BlockStored"):
    """A BlockStored as a map."""

    locality: Word = None


class RemovedMap(Removed, tag_field="type", tag="BlockRemoved"):
    """A BlockRemoved as a map."""

    locality: Word = None


class ClearedMap(Struct, tag_field="type", tag="AllBlocksCleared"):
    """An AllBlocksCleared as a map."""


class StoredArray(Stored, array_like=True, tag_field="type", tag="BlockStored"):
    """A BlockStored as an array."""


class RemovedArray(Removed, array_like=True, tag_field="type", tag="BlockRemoved"):
    """A BlockRemoved as an array."""


class ClearedArray(Struct, array_like=True, tag_field="type", tag="AllBlocksCleared"):
    """An AllBlocksCleared as an array."""


class TagMap(Struct):
    """Of any event the tag alone."""

    type: str


class TagArray(Struct, array_like=True):
    """The same of an array."""

    type: str


EventMap = StoredMap | RemovedMap | ClearedMap
EventArray = StoredArray | RemovedArray | ClearedArray
WireEvent = EventMap | EventArray
LOCATED: Final = (StoredMap, RemovedMap)
TAGS: Final = frozenset({"BlockStored", "BlockRemoved", "AllBlocksCleared"})


class BatchOfMaps(Struct, array_like=True):
    """What vLLM sends: an array with the time and events that are maps."""

    ts: float
    events: list[EventMap]


class BatchArray(Struct, array_like=True):
    """A batch as an array, of whatever events."""

    ts: float
    events: Raw


class BatchMap(Struct):
    """A batch as a map, of whatever events."""

    ts: float
    events: Raw


_BATCH_OF_MAPS: Final = Decoder(BatchOfMaps)
_BATCH_ARRAY: Final = Decoder(BatchArray)
_BATCH_MAP: Final = Decoder(BatchMap)
_EVENTS: Final = Decoder(list[Raw])
_EVENT_MAP: Final[Decoder[EventMap]] = Decoder(EventMap)
_EVENT_ARRAY: Final[Decoder[EventArray]] = Decoder(EventArray)
_TAG_MAP: Final = Decoder(TagMap)
_TAG_ARRAY: Final = Decoder(TagArray)


def decode(payload: bytes) -> Batch:
    """Read one batch of events.

    Args:
        payload: the last frame of a message.

    Raises:
        MalformedBatch: with reason "too_large", "msgpack" or "schema". The engine's fault.

    Cost: 17 us for one event of 32 blocks of 16, 2 us for one of one block.
    """
    if len(payload) > limits.FRAME_BYTES_MAX:
        raise MalformedBatch("too_large")
    try:
        return _batch(payload)
    except ValidationError:
        raise MalformedBatch("schema") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise MalformedBatch("msgpack") from None


def _batch(payload: bytes) -> Batch:
    try:
        whole = _BATCH_OF_MAPS.decode(payload)
    except ValidationError:
        return _mixed_batch(payload)
    events = whole.events
    if len(events) > limits.EVENTS_PER_BATCH_MAX:
        raise MalformedBatch("too_large")
    _check_sizes(events)
    return Batch(whole.ts, [_event(event) for event in events], 0)


def _mixed_batch(payload: bytes) -> Batch:
    """Read a batch of other forms, or with events that are not known here."""
    parts = (_BATCH_MAP if _is_map(payload) else _BATCH_ARRAY).decode(payload)
    # Seen before each of them becomes an object: eight million nils fit into a frame.
    if _length(memoryview(parts.events)) > limits.EVENTS_PER_BATCH_MAX:
        raise MalformedBatch("too_large")
    events = _EVENTS.decode(parts.events)
    known = [event for raw in events if (event := _wire_event(raw)) is not None]
    _check_sizes(known)
    return Batch(parts.ts, [_event(event) for event in known], len(events) - len(known))


def _is_map(packed: bytes | memoryview) -> bool:
    first = packed[0] if packed else 0
    return 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)


def _length(packed: memoryview) -> int:
    """Read the length of an array; 0 where it is none."""
    size = {0xDC: 2, 0xDD: 4}.get(packed[0], 0)
    if size:
        return int.from_bytes(packed[1 : 1 + size], "big")
    return packed[0] & 0x0F if 0x90 <= packed[0] <= 0x9F else 0


def _wire_event(raw: Raw) -> WireEvent | None:
    """Read one event; None when its tag is not known."""
    is_map = _is_map(memoryview(raw))
    try:
        return (_EVENT_MAP if is_map else _EVENT_ARRAY).decode(raw)
    except ValidationError:
        if (_TAG_MAP if is_map else _TAG_ARRAY).decode(raw).type in TAGS:
            raise
        return None


def _check_sizes(events: Sequence[WireEvent]) -> None:
    hashes = tokens = 0
    for event in events:
        if isinstance(event, Stored):
            hashes += len(event.block_hashes)
            tokens += len(event.token_ids)
        elif isinstance(event, Removed):
            hashes += len(event.block_hashes)
    if hashes > limits.HASHES_PER_BATCH_MAX or tokens > limits.TOKENS_PER_BATCH_MAX:
        raise MalformedBatch("too_large")


def _event(wire: WireEvent) -> Event:
    locality = wire.locality if isinstance(wire, LOCATED) else None
    if isinstance(wire, Stored):
        return _stored(wire, _pool(wire.medium, wire.group_idx, locality))
    if isinstance(wire, Removed):
        pool = _pool(wire.medium, wire.group_idx, locality)
        return BlockRemoved(pool, _hashes(wire.block_hashes))
    return AllBlocksCleared()


def _stored(wire: Stored, pool: Pool) -> BlockStored:
    block_size, hashes = wire.block_size, _hashes(wire.block_hashes)
    try:
        token_ids = array("I", wire.token_ids)
    except OverflowError:
        raise MalformedBatch("schema") from None
    tokens = len(token_ids)
    if tokens and (block_size == 0 or len(hashes) * block_size > tokens or tokens % block_size):
        raise MalformedBatch("schema")
    lora = _lora(wire.lora_name, wire.lora_id)
    return BlockStored(
        pool=pool,
        hashes=hashes,
        parent=_parent(wire.parent_block_hash),
        token_ids=token_ids,
        block_size=block_size,
        lora=lora,
        extras=_extras(wire.extra_keys, lora, len(hashes)),
        kind=wire.kv_cache_spec_kind,
        window=wire.kv_cache_spec_sliding_window,
    )


@lru_cache(POOLS_CACHED)
def _pool(medium: str | None, group: int | None, locality: str | None) -> Pool:
    is_remote = (locality or "").lower() == REMOTE
    return Pool((medium or DEFAULT_MEDIUM).lower(), group or 0, is_remote=is_remote)


def _lora(name: str | None, number: int | None) -> str | None:
    """Name the adapter: an engine that tells only its number must not look like the base model."""
    return f"{UNNAMED_LORA}{number}" if name is None and number else name


def _hashes(wire: list[Hash]) -> list[EngineHash]:
    try:
        # Nearly always they are integers that fit, which is seen without a call for each.
        if not wire or min(wire) >= 0:  # type: ignore[operator]  # bytes raise
            return wire  # type: ignore[return-value]  # a NewType of int
    except TypeError:
        pass
    return [engine_hash(item) for item in wire]


def engine_hash(value: int | bytes) -> EngineHash:
    """Fold an engine's hash to 64 bits as vLLM does: the last 8 bytes, big-endian.

    Args:
        value: bytes, or an integer that msgpack has room for: of 64 bits, with a sign or without.

    Raises:
        MalformedBatch: there are no bytes.
    """
    if isinstance(value, int):
        return EngineHash(value % UINT64)
    if not value:
        raise MalformedBatch("schema")
    return EngineHash(int.from_bytes(value[-8:], "big"))


def _parent(wire: Hash | None) -> EngineHash | None:
    # Some simulators write 0 for "no parent".
    return None if wire is None or wire == 0 else engine_hash(wire)


def _extras(wire: ExtraKeys, lora: str | None, blocks: int) -> list[tuple[ExtraKey, ...]]:
    if not wire or not any(wire):
        return []
    if len(wire) > max(blocks, 1) * 2:
        raise MalformedBatch("schema")
    return [_block_extras(keys, lora) for keys in wire]


def _block_extras(keys: list[Any] | None, lora: str | None) -> tuple[ExtraKey, ...]:
    if not keys:
        return ()
    # The first string that equals the adapter's name is the adapter, which the root covers.
    if lora is not None and keys[0] == lora:
        keys = keys[1:]
    return tuple(_extra(key) for key in keys)


def _extra(key: Any) -> ExtraKey:
    if isinstance(key, str | bytes):
        return key
    if isinstance(key, list) and len(key) == 2:
        identifier, offset = key
        if isinstance(identifier, str) and type(offset) is int and abs(offset) < 2**62:
            return identifier, offset
    raise MalformedBatch("schema")

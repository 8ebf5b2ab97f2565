"""Read a message's payload: bytes become a Batch, or a MalformedBatch is raised. Pure.

Engines differ by version (docs/EVENTS.md): events are arrays with the tag first or maps
with a `type`, block hashes integers or bytes, batches arrays or maps, and all of them grow new
fields. What is not known is ignored, what is known must be right: a wrong type in a known field
spoils the whole batch, since to skip an event is to believe in blocks that are gone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

import msgpack

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

STORED_FIELDS: Final = (
    "type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium",
    "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window",
)  # fmt: skip
"""Order of the array form; arrays grow at the end."""
REMOVED_FIELDS: Final = ("type", "block_hashes", "medium", "group_idx")
STORED_FIELDS_MIN: Final = 5
REMOVED_FIELDS_MIN: Final = 2
DEFAULT_MEDIUM: Final = "gpu"
REMOTE: Final = "remote"
UNNAMED_LORA: Final = "\0lora_id="
"""Begins the name of an adapter that the engine (up to 0.13) knows by number alone."""
WORD_CHARS_MAX: Final = 256
UINT64: Final = 2**64
UINT32: Final = 2**32
ONLY_INT: Final = {int}


def decode(payload: bytes) -> Batch:
    """Read one batch of events.

    Args:
        payload: the last frame of a message.

    Raises:
        MalformedBatch: with reason "too_large", "msgpack" or "schema". The engine's fault.

    Cost: 50 us for one event of 32 blocks of 16, 9 us for one of one block.
    """
    if len(payload) > limits.FRAME_BYTES_MAX:
        raise MalformedBatch("too_large")
    try:
        content = msgpack.unpackb(payload, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedBatch("msgpack") from None
    return _batch(content)


def _batch(content: Any) -> Batch:
    if isinstance(content, dict):
        time_s, events = content.get("ts"), content.get("events")
    elif isinstance(content, list) and len(content) >= 2:
        time_s, events = content[0], content[1]
    else:
        raise MalformedBatch("schema")
    if isinstance(time_s, bool) or not isinstance(time_s, int | float):
        raise MalformedBatch("schema")
    if not isinstance(events, list):
        raise MalformedBatch("schema")
    if len(events) > limits.EVENTS_PER_BATCH_MAX:
        raise MalformedBatch("too_large")
    known = [event for raw in events if (event := _event(raw)) is not None]
    _check_sizes(known)
    return Batch(float(time_s), known, len(events) - len(known))


def _check_sizes(events: Sequence[Event]) -> None:
    hashes = tokens = 0
    for event in events:
        if isinstance(event, AllBlocksCleared):
            continue
        hashes += len(event.hashes)
        if isinstance(event, BlockStored):
            tokens += len(event.token_ids)
    if hashes > limits.HASHES_PER_BATCH_MAX or tokens > limits.TOKENS_PER_BATCH_MAX:
        raise MalformedBatch("too_large")


def _event(raw: Any) -> Event | None:
    """Read one event; None when its tag is not known."""
    if isinstance(raw, dict):
        tag = raw.get("type")
    elif isinstance(raw, list) and raw:
        tag = raw[0]
    else:
        raise MalformedBatch("schema")
    if not isinstance(tag, str):
        raise MalformedBatch("schema")
    if tag == "BlockStored":
        return _stored(_fields(raw, STORED_FIELDS, STORED_FIELDS_MIN))
    if tag == "BlockRemoved":
        return _removed(_fields(raw, REMOVED_FIELDS, REMOVED_FIELDS_MIN))
    if tag == "AllBlocksCleared":
        return AllBlocksCleared()
    return None


def _fields(raw: Any, names: tuple[str, ...], least: int) -> dict[str, Any]:
    """Give an event's fields by name, whichever form it has."""
    if isinstance(raw, dict):
        if any(name not in raw for name in names[:least]):
            raise MalformedBatch("schema")
        return raw
    if len(raw) < least:
        raise MalformedBatch("schema")
    return dict(zip(names, raw, strict=False))


def _stored(fields: dict[str, Any]) -> BlockStored:
    hashes = _hashes(fields["block_hashes"])
    token_ids = _token_ids(fields["token_ids"])
    block_size = _bounded_int(fields["block_size"], limits.BLOCK_SIZE_MAX)
    if token_ids and (block_size == 0 or len(hashes) * block_size > len(token_ids)):
        raise MalformedBatch("schema")
    if token_ids and len(token_ids) % block_size:
        raise MalformedBatch("schema")
    lora = _lora(fields)
    return BlockStored(
        pool=_pool(fields),
        hashes=hashes,
        parent=_parent(fields["parent_block_hash"]),
        token_ids=token_ids,
        block_size=block_size,
        lora=lora,
        extras=_extras(fields.get("extra_keys"), lora, len(hashes)),
        kind=_word(fields.get("kv_cache_spec_kind")),
        window=_window(fields.get("kv_cache_spec_sliding_window")),
    )


def _removed(fields: dict[str, Any]) -> BlockRemoved:
    return BlockRemoved(_pool(fields), _hashes(fields["block_hashes"]))


def _pool(fields: dict[str, Any]) -> Pool:
    medium = _word(fields.get("medium")) or DEFAULT_MEDIUM
    group = fields.get("group_idx")
    return Pool(
        medium.lower(),
        0 if group is None else _bounded_int(group, 2**16),
        is_remote=(_word(fields.get("locality")) or "").lower() == REMOTE,
    )


def _lora(fields: dict[str, Any]) -> str | None:
    """Name the adapter: an engine that tells only its number must not look like the base model."""
    name, number = _word(fields.get("lora_name")), fields.get("lora_id")
    if name is not None or number is None or number == 0:
        return name
    return f"{UNNAMED_LORA}{_bounded_int(number, UINT32)}"


def _window(value: Any) -> int | None:
    return None if value is None else _bounded_int(value, UINT32)


def _hashes(value: Any) -> list[EngineHash]:
    if not isinstance(value, list):
        raise MalformedBatch("schema")
    # Nearly always they are whole numbers in range, which is seen without a call for each.
    if set(map(type, value)) == ONLY_INT and min(value) >= 0 and max(value) < UINT64:
        return value
    return [engine_hash(item) for item in value]


def engine_hash(value: Any) -> EngineHash:
    """Fold an engine's hash to 64 bits as vLLM does: the last 8 bytes, big-endian.

    Raises:
        MalformedBatch: it is neither an integer of 64 bits nor some bytes.
    """
    if isinstance(value, int) and not isinstance(value, bool) and -UINT64 // 2 <= value < UINT64:
        return EngineHash(value % UINT64)
    if isinstance(value, bytes) and value:
        return EngineHash(int.from_bytes(value[-8:], "big"))
    raise MalformedBatch("schema")


def _parent(value: Any) -> EngineHash | None:
    # Some simulators write 0 for "no parent".
    return None if value is None or value == 0 else engine_hash(value)


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise MalformedBatch("schema")
    if value and set(map(type, value)) != ONLY_INT:
        raise MalformedBatch("schema")
    try:
        array("I", value)  # refuses what has no room in 32 bits, and is quicker than min and max
    except OverflowError:
        raise MalformedBatch("schema") from None
    return value


def _bounded_int(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise MalformedBatch("schema")
    return value


def _word(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > WORD_CHARS_MAX:
        raise MalformedBatch("schema")
    return value


def _extras(value: Any, lora: str | None, blocks: int) -> list[tuple[ExtraKey, ...]]:
    """Read the extra keys: a list with, per block, nil or a list of untagged keys."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedBatch("schema")
    if not any(value):
        if all(item is None or item == [] for item in value):
            return []
        raise MalformedBatch("schema")
    if len(value) > max(blocks, 1) * 2:
        raise MalformedBatch("schema")
    return [_block_extras(item, lora) for item in value]


def _block_extras(value: Any, lora: str | None) -> tuple[ExtraKey, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > limits.EXTRA_KEYS_PER_BLOCK_MAX:
        raise MalformedBatch("schema")
    # The first string that equals the adapter's name is the adapter, which the root covers.
    if lora is not None and value and value[0] == lora:
        value = value[1:]
    return tuple(_extra(item) for item in value)


def _extra(value: Any) -> ExtraKey:
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, list) and len(value) == 2:
        identifier, offset = value
        if isinstance(identifier, str) and type(offset) is int and abs(offset) < 2**62:
            return identifier, offset
    raise MalformedBatch("schema")

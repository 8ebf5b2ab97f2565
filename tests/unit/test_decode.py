"""Reading batches: every wire form comes out the same, and what is wrong is refused whole."""

from __future__ import annotations

import tracemalloc
from array import array
from typing import Any

import msgpack
import pytest

from kvatlas.common import limits
from kvatlas.common.errors import MalformedBatch
from kvatlas.common.ids import Pool
from kvatlas.indexer.decode import decode
from kvatlas.indexer.events import AllBlocksCleared, BlockRemoved, BlockStored

GPU = Pool("gpu", 0)


def pack(content: Any) -> bytes:
    """Write a payload."""
    packed: bytes = msgpack.packb(content)
    return packed


def as_map(**changes: Any) -> dict[str, Any]:
    """Write a BlockStored in the map form, with some fields changed."""
    event = {
        "type": "BlockStored",
        "block_hashes": [1, 2],
        "parent_block_hash": None,
        "token_ids": [5, 6, 7, 8],
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    return {**event, **changes}


def only(content: Any) -> Any:
    """Decode a batch of one event."""
    (event,) = decode(pack([1.0, [content], 0])).events
    return event


STORED = BlockStored(GPU, [1, 2], None, array("I", [5, 6, 7, 8]), 2, None, [], None)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "wire",
    [
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2],
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU"],
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None],
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, [None, None]],
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, [None, None], 0],
        ["BlockStored", [1, 2], 0, [5, 6, 7, 8], 2, None, None, None, None, None, None, None, "x"],
        as_map(),
        as_map(group_idx=0, extra_keys=[None, None]),
        as_map(locality="LOCAL", ownership=3, lookahead_token_ids=[[1]], session_id="s"),
        as_map(block_hashes=[(1).to_bytes(32, "big"), (2).to_bytes(32, "big")]),
        as_map(extra_keys=[[], []]),
    ],
)
def test_every_version_of_a_stored_event_reads_the_same(wire: Any) -> None:
    """Arrays of any length, maps with any further fields, hashes as integers or bytes."""
    assert only(wire) == STORED


def test_groups_are_read_with_their_windows() -> None:
    """As a map, and where arrays have grown to it."""
    kind, window = "sliding_window", 64
    wire = as_map(group_idx=1, kv_cache_spec_kind=kind, kv_cache_spec_sliding_window=window)
    grown = ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, None, 1, kind, window]
    for event in (only(wire), only(grown)):
        assert (event.pool.group, event.kind, event.window) == (1, kind, window)


@pytest.mark.parametrize("tag", ["BlockStored", "BlockRemoved"])
def test_remote_copies_are_told_from_local_ones(tag: str) -> None:
    """The same medium may be there twice; no word means local."""
    for word, is_remote in (("REMOTE", True), ("remote", True), ("LOCAL", False), (None, False)):
        event = only({**as_map(medium="CPU", locality=word), "type": tag})
        assert event.pool == Pool("cpu", 0, is_remote=is_remote)


def test_placeholders_name_group_and_medium() -> None:
    """A hash, a group and a medium, and nothing else."""
    event = only(
        as_map(block_hashes=[7], token_ids=[], block_size=0, medium="STORAGE", group_idx=2)
    )
    assert event.pool == Pool("storage", 2)
    assert (event.hashes, event.kind, event.is_dense) == ([7], None, False)


@pytest.mark.parametrize(
    "change",
    [
        {"kv_cache_spec_sliding_window": "bad-window"},
        {"kv_cache_spec_sliding_window": -1},
        {"kv_cache_spec_kind": 123},
        {"locality": 1},
        {"lora_id": -1},
        {"lora_id": "x"},
    ],
)
def test_wrong_words_about_groups_spoil_the_batch(change: dict[str, Any]) -> None:
    """What is known must be right."""
    with pytest.raises(MalformedBatch, match="schema"):
        only(as_map(**change))


@pytest.mark.parametrize(
    "wire",
    [
        ["BlockRemoved", [1]],
        ["BlockRemoved", [1], "GPU"],
        ["BlockRemoved", [1], "gpu", 0],
        {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"},
        {"type": "BlockRemoved", "block_hashes": [1], "medium": None, "group_idx": 0, "more": 1},
    ],
)
def test_every_version_of_a_removed_event_reads_the_same(wire: Any) -> None:
    """With and without medium and group."""
    assert only(wire) == BlockRemoved(GPU, [1])  # type: ignore[list-item]


@pytest.mark.parametrize("wire", [["AllBlocksCleared"], {"type": "AllBlocksCleared"}])
def test_every_version_of_a_cleared_event_reads_the_same(wire: Any) -> None:
    """As an array or a map."""
    assert only(wire) == AllBlocksCleared()


@pytest.mark.parametrize(
    "content",
    [
        [1.5, [["AllBlocksCleared"]]],
        [1.5, [["AllBlocksCleared"]], 0],
        [1.5, [["AllBlocksCleared"]], None, "later versions", {}],
        {"ts": 1.5, "events": [["AllBlocksCleared"]], "data_parallel_rank": 0, "more": []},
    ],
)
def test_batches_are_lists_or_maps(content: Any) -> None:
    """A batch may be a list of two or more, or a map."""
    batch = decode(pack(content))
    assert batch.time_s == 1.5
    assert batch.events == [AllBlocksCleared()]


@pytest.mark.parametrize(
    ("hexdigits", "events"),
    [
        (
            (
                "93cb41d26580b48000009383a474797065ac426c6f636b52656d6f766564ac626c6f636b5f6861736865739164"
                "a66d656469756da343505581a474797065b0416c6c426c6f636b73436c656172656499ab426c6f636b53746f72"
                "65649107c0910901c0a3475055c0c0c0"
            ),
            3,
        ),
        (
            (
                "93cb41daa8dbe0359fe7918ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cfda"
                "b89baa7b5857c0b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473dc0010ce0002505ccd"
                "0368ccc6cd2368cd0176cd0117cd1a42cd013bcd15f01ece0002505dccc6ce0002505cce00012d23ccc6ce0002"
                "5073aa626c6f636b5f73697a6510a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0"
                "aa65787472615f6b65797391c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66"
                "756c6c5f617474656e74696f6e00"
            ),
            1,
        ),
    ],
)
def test_byte_vectors(hexdigits: str, events: int) -> None:
    """Frames as other consumers recorded them read."""
    assert len(decode(bytes.fromhex(hexdigits)).events) == events


def test_a_batch_may_mix_all_forms() -> None:
    """Events that are maps, arrays and unknown ones stand in one batch, in their order."""
    batch = decode(pack([1.0, [as_map(), ["New", 1], ["BlockRemoved", [1]], as_map(type="X")], 0]))
    assert batch.events == [STORED, BlockRemoved(GPU, [1])]  # type: ignore[list-item]
    assert batch.unknown == 2


def test_a_known_event_that_is_wrong_is_no_unknown_one() -> None:
    """Beside an unknown one it spoils the batch as ever."""
    for wrong in (as_map(block_size=-1), ["BlockRemoved", None]):
        with pytest.raises(MalformedBatch, match="schema"):
            decode(pack([1.0, [["New", 1], wrong], 0]))


def test_unknown_tags_are_counted_and_left_out() -> None:
    """An event that a newer engine invented spoils nothing."""
    batch = decode(pack([1.0, [["Fancy", 1], {"type": "Other"}, ["AllBlocksCleared"]], 0]))
    assert batch.events == [AllBlocksCleared()]
    assert batch.unknown == 2


def test_negative_hashes_are_taken_as_unsigned() -> None:
    """An int64 is the same 64 bits as its uint64."""
    assert only(["BlockRemoved", [-1]]).hashes == [2**64 - 1]


def test_media_are_folded_to_lower_case() -> None:
    """Stores of the same medium are the same pool however it is written."""
    assert only(as_map(medium="CPU", group_idx=3)).pool == Pool("cpu", 3)


def test_the_adapter_is_told_from_a_salt() -> None:
    """The first string that equals the adapter's name is the adapter, others are keys."""
    event = only(as_map(lora_name="ad1", extra_keys=[["ad1", "ad1"], ["ad1"]]))
    assert event.lora == "ad1"
    assert event.extras == [("ad1",), ()]


def test_all_kinds_of_extra_keys_are_read() -> None:
    """Salts, multimodal ids with offsets, digests."""
    event = only(as_map(extra_keys=[["s", ["image", -3], b"\x01"], None]))
    assert event.extras == [("s", ("image", -3), b"\x01"), ()]


def test_placeholders_of_offload_tiers_are_read() -> None:
    """A store without tokens and block size is one whose blocks are known by hash alone."""
    event = only(as_map(token_ids=[], block_size=0, medium="cpu"))
    assert not event.is_dense
    assert event.hashes == [1, 2]


def test_a_sliding_window_group_names_fewer_blocks_than_tokens() -> None:
    """Only the blocks that can serve a hit are named, the tokens are all there."""
    event = only(as_map(block_hashes=[2], kv_cache_spec_kind="sliding_window", group_idx=1))
    assert not event.is_dense
    assert event.pool == Pool("gpu", 1)


WRONG: list[Any] = [
    None,
    3,
    [],
    [1.0],
    [True, []],
    ["now", []],
    [1.0, {}],
    [1.0, None],
    {"ts": 1.0},
    {"events": []},
    [1.0, [None]],
    [1.0, [[]]],
    [1.0, [[7]]],
    [1.0, [{}]],
    [1.0, [{"type": 7}]],
    [1.0, [["BlockStored", [1], None, [1]]]],
    [1.0, [["BlockRemoved"]]],
    [1.0, [{"type": "BlockRemoved"}]],
    [1.0, [{"type": "BlockStored", "block_hashes": [1]}]],
]
WRONG_FIELDS: list[dict[str, Any]] = [
    {"block_hashes": None},
    {"block_hashes": "12"},
    {"block_hashes": [1.5, 2]},
    {"block_hashes": [True, 2]},
    {"block_hashes": ["1", 2]},
    {"block_hashes": [b"", 2]},
    {"block_hashes": [1, 2, 3]},
    {"parent_block_hash": "x"},
    {"token_ids": None},
    {"token_ids": {}},
    {"token_ids": [1, -1, 2, 3]},
    {"token_ids": [1, 2**32, 2, 3]},
    {"token_ids": [1, "2", 2, 3]},
    {"token_ids": [1, 2.0, 2, 3]},
    {"token_ids": [1, True, 2, 3]},
    {"token_ids": [1, 2, 3, 4, 5]},
    {"block_size": 0},
    {"block_size": -2},
    {"block_size": 2.0},
    {"block_size": True},
    {"block_size": None},
    {"block_size": 10**9},
    {"medium": 7},
    {"medium": "x" * 300},
    {"lora_name": 7},
    {"group_idx": -1},
    {"group_idx": "0"},
    {"kv_cache_spec_kind": 123},
    {"extra_keys": "abc"},
    {"extra_keys": [0]},
    {"extra_keys": ["invalid_string"]},
    {"extra_keys": [[7]]},
    {"extra_keys": [[["image"]]]},
    {"extra_keys": [[["image", "x"]]]},
    {"extra_keys": [[[7, 7]]]},
    {"extra_keys": [[["image", True]]]},
    {"extra_keys": [[["image", 2**63]]]},
    {"extra_keys": [["a"]] * 9},
    {"extra_keys": [None] * (2 * limits.HASHES_PER_BATCH_MAX + 1)},
    {"extra_keys": [["a"] * (limits.EXTRA_KEYS_PER_BLOCK_MAX + 1)]},
]


@pytest.mark.parametrize(
    "content", [*WRONG, *([1.0, [as_map(**fields)]] for fields in WRONG_FIELDS)]
)
def test_a_wrong_shape_spoils_the_batch(content: Any) -> None:
    """What is known must be right."""
    with pytest.raises(MalformedBatch) as caught:
        decode(pack(content))
    assert caught.value.reason == "schema"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xff\xff",
        b"\xc1",
        b"\x93\xcb",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        pack([1.0, [], 0]) + b"\x00",
        b"\x91\xa2\xff\xfe",
        b"\x81\x01\x02",
        b"\xc7\x01\x05x",
    ],
)
def test_what_is_not_msgpack_is_refused(payload: bytes) -> None:
    """Truncated, trailing, nested without end, of absurd length, not UTF-8, odd keys and types."""
    with pytest.raises(MalformedBatch):
        decode(payload)


@pytest.mark.parametrize("events", [b"\xdc\xff\xff", b"\xdd\x00\x7a\x12\x00"])
def test_a_bomb_of_events_is_refused_before_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch, events: bytes
) -> None:
    """Eight million nils fit into a frame, and would take half a gigabyte."""
    monkeypatch.setattr(limits, "EVENTS_PER_BATCH_MAX", 3)
    count = int.from_bytes(events[1:], "big")
    tracemalloc.start()
    with pytest.raises(MalformedBatch) as caught:
        decode(b"\x92\x01" + events + b"\xc0" * count)
    assert caught.value.reason == "too_large"
    assert tracemalloc.get_traced_memory()[1] < 4 * count
    tracemalloc.stop()


def test_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, events, hashes and tokens of a batch are bounded."""
    monkeypatch.setattr(limits, "FRAME_BYTES_MAX", 1_000)
    monkeypatch.setattr(limits, "EVENTS_PER_BATCH_MAX", 3)
    monkeypatch.setattr(limits, "HASHES_PER_BATCH_MAX", 4)
    monkeypatch.setattr(limits, "TOKENS_PER_BATCH_MAX", 8)
    for content in (
        ["x" * 2_000],
        [1.0, [["AllBlocksCleared"]] * 4],
        [1.0, [["BlockRemoved", [1, 2, 3, 4, 5]]]],
        [1.0, [as_map(token_ids=list(range(10)), block_size=5)]],
    ):
        with pytest.raises(MalformedBatch) as caught:
            decode(pack(content))
        assert caught.value.reason == "too_large"

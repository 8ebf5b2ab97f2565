"""Counting copies: what an endpoint holds, by its own word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, EngineHash, ModelName, Pool
from kvatlas.indexer.apply import Delta, EndpointCache
from kvatlas.indexer.events import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event
from kvatlas.indexer.memory import PAGES, Written

MODEL = ModelName("m")
GPU, CPU, WINDOW = Pool("gpu", 0), Pool("cpu", 0), Pool("gpu", 1)
REMOTE = Pool("gpu", 0, is_remote=True)
TOKENS = list(range(8))
FIRST, SECOND = chain(root_hash(MODEL, 4), TOKENS, 4)


def stored(
    *hashes: int,
    tokens: list[int] | None = None,
    pool: Pool = GPU,
    parent: int | None = None,
    lora: str | None = None,
    kind: str | None = "full_attention",
) -> BlockStored:
    """Write a store; tokens default to as many of TOKENS as there are hashes."""
    token_ids = TOKENS[: 4 * len(hashes)] if tokens is None else tokens
    return BlockStored(
        pool,
        [EngineHash(value) for value in hashes],
        None if parent is None else EngineHash(parent),
        token_ids,
        4 if token_ids else 0,
        lora,
        [],
        kind,
    )


def removed(*hashes: int, pool: Pool = GPU) -> BlockRemoved:
    """Write a removal."""
    return BlockRemoved(pool, [EngineHash(value) for value in hashes])


def apply(cache: EndpointCache, *events: Event) -> Delta:
    """Apply one batch."""
    return cache.apply(Batch(1.0, events, 0))


@pytest.fixture
def cache() -> EndpointCache:
    """Give an empty cache."""
    return EndpointCache(MODEL)


def present(cache: EndpointCache) -> set[tuple[Pool, BlockHash]]:
    """List what is present."""
    return set(cache.entries())


def changed(delta: Delta) -> dict[tuple[Pool, BlockHash], bool]:
    """List what a batch changed."""
    return {
        (pool, block): is_there
        for pool, blocks in delta.present.items()
        for block, is_there in blocks.items()
    }


def held(cache: EndpointCache) -> dict[Pool, dict[EngineHash, int]]:
    """List copies, without pools that have none."""
    return {pool: dict(counts) for pool, counts in cache.counts().items() if counts}


def known(cache: EndpointCache) -> dict[EngineHash, BlockHash]:
    """List which engine hashes are known to be which blocks."""
    pages = [cache.page(number) for number in range(PAGES)]
    return {key: block for page in pages for key, block in zip(page.hashes, page.blocks)}  # noqa: B905 - unplaced ones stand behind


def test_a_store_makes_blocks_present(cache: EndpointCache) -> None:
    """Under the hashes of their tokens."""
    delta = apply(cache, stored(1, 2))
    assert changed(delta) == {(GPU, FIRST): True, (GPU, SECOND): True}
    assert present(cache) == set(changed(delta))
    assert cache.block_size == 4
    assert cache.groups.of(GPU).kind == "full_attention"


def test_copies_are_counted(cache: EndpointCache) -> None:
    """Only the last copy's removal is a transition."""
    assert changed(apply(cache, stored(1), stored(1))) == {(GPU, FIRST): True}
    assert changed(apply(cache, removed(1))) == {}
    assert changed(apply(cache, removed(1))) == {(GPU, FIRST): False}
    assert apply(cache, removed(1)).unknown_removed == 1
    assert present(cache) == set()


def test_a_batch_tells_how_it_ended(cache: EndpointCache) -> None:
    """Stored and removed in one batch is absent, removed and stored is present."""
    assert changed(apply(cache, stored(1), removed(1))) == {(GPU, FIRST): False}
    apply(cache, stored(1))
    assert changed(apply(cache, removed(1), stored(1))) == {(GPU, FIRST): True}


def test_pools_are_counted_apart(cache: EndpointCache) -> None:
    """A block may be in two media; it is known as long as it is in one."""
    apply(cache, stored(1), stored(1, pool=CPU))
    assert changed(apply(cache, removed(1))) == {(GPU, FIRST): False}
    assert present(cache) == {(CPU, FIRST)}


def test_children_are_placed_behind_their_parents(cache: EndpointCache) -> None:
    """By the engine's hash of the parent."""
    apply(cache, stored(1))
    assert changed(apply(cache, stored(2, tokens=TOKENS[4:], parent=1))) == {(GPU, SECOND): True}


def test_an_orphan_is_counted_and_placed_when_its_parent_is_known(cache: EndpointCache) -> None:
    """A block whose parent is unknown becomes present when a later event explains it."""
    delta = apply(cache, stored(2, tokens=TOKENS[4:], parent=1))
    assert (delta.orphans, changed(delta)) == (1, {})
    assert present(cache) == set()
    assert changed(apply(cache, stored(1, 2))) == {(GPU, FIRST): True, (GPU, SECOND): True}
    assert changed(apply(cache, removed(2))) == {}
    assert changed(apply(cache, removed(2))) == {(GPU, SECOND): False}


def test_an_orphan_is_placed_in_the_pools_that_hold_it(cache: EndpointCache) -> None:
    """And in no other."""
    apply(cache, stored(2, tokens=TOKENS[4:], parent=1), stored(7, tokens=[7] * 4, pool=CPU))
    assert changed(apply(cache, stored(1, 2, pool=WINDOW))) == {
        (GPU, SECOND): True,
        (WINDOW, FIRST): True,
        (WINDOW, SECOND): True,
    }


def test_an_orphans_removal_is_no_transition(cache: EndpointCache) -> None:
    """What was never present cannot leave."""
    apply(cache, stored(2, tokens=TOKENS[4:], parent=1))
    assert apply(cache, removed(2)) == Delta()


def test_adapters_have_chains_of_their_own(cache: EndpointCache) -> None:
    """The same tokens under an adapter are other blocks."""
    apply(cache, stored(1), stored(9, tokens=TOKENS[:4], lora="ad1"))
    assert present(cache) == {
        (GPU, FIRST),
        (GPU, chain(root_hash(MODEL, 4, "ad1"), TOKENS[:4], 4)[0]),
    }


def test_a_window_group_is_explained_by_a_later_event_of_its_batch(cache: EndpointCache) -> None:
    """Its hashes name fewer blocks than its tokens make."""
    window = stored(2, tokens=TOKENS, pool=WINDOW, kind="sliding_window")
    apply(cache, window, stored(1, 2))
    assert present(cache) == {(GPU, FIRST), (GPU, SECOND), (WINDOW, SECOND)}
    assert cache.groups.of(WINDOW).kind == "sliding_window"


def test_placeholders_are_placed_by_what_was_learned(cache: EndpointCache) -> None:
    """An offload tier names blocks by hash alone."""
    apply(cache, stored(1))
    assert changed(apply(cache, stored(1, tokens=[], pool=CPU))) == {(CPU, FIRST): True}


def test_a_placeholder_may_come_before_what_explains_it(cache: EndpointCache) -> None:
    """It is placed, in its own pool, when the GPU's event arrives, however late."""
    delta = apply(cache, stored(1, tokens=[], pool=CPU, kind=None))
    assert (delta.orphans, changed(delta)) == (1, {})
    assert changed(apply(cache, stored(1))) == {(CPU, FIRST): True, (GPU, FIRST): True}
    assert changed(apply(cache, removed(1, pool=CPU))) == {(CPU, FIRST): False}


def test_placeholders_are_placed_after_doubts_and_clears(cache: EndpointCache) -> None:
    """What the GPU taught is kept, though the GPU no longer holds it."""
    apply(cache, stored(1, 2))
    cache.forget()
    assert changed(apply(cache, stored(2, tokens=[], pool=CPU))) == {(CPU, SECOND): True}
    apply(cache, AllBlocksCleared())
    assert changed(apply(cache, stored(1, tokens=[], pool=CPU))) == {(CPU, FIRST): True}


def test_placeholders_of_a_window_group_stand_with_the_window(cache: EndpointCache) -> None:
    """Their kind is that of the GPU's pool of the same group."""
    apply(cache, stored(2, tokens=TOKENS, pool=WINDOW, kind="sliding_window"), stored(1, 2))
    delta = apply(cache, stored(2, tokens=[], pool=Pool("cpu", 1), kind=None))
    assert changed(delta) == {(Pool("cpu", 1), SECOND): True}
    assert cache.groups.of(Pool("cpu", 1)).kind == "sliding_window"
    assert not delta.regrouped


def test_local_and_remote_copies_are_counted_apart(cache: EndpointCache) -> None:
    """Removing one leaves the other."""
    far = Pool("cpu", 0, is_remote=True)
    apply(cache, stored(1, pool=CPU), stored(1, pool=far))
    assert changed(apply(cache, removed(1, pool=far))) == {(far, FIRST): False}
    assert present(cache) == {(CPU, FIRST)}


def test_an_engine_hash_that_means_another_block_moves(cache: EndpointCache) -> None:
    """The entry under the former block is taken back, so that none is left for ever."""
    apply(cache, stored(1))
    other = chain(root_hash(MODEL, 4), [9] * 4, 4)[0]
    assert changed(apply(cache, stored(1, tokens=[9] * 4))) == {
        (GPU, FIRST): False,
        (GPU, other): True,
    }
    assert present(cache) == {(GPU, other)}


def test_groups_that_cannot_be_followed_yield_nothing(cache: EndpointCache) -> None:
    """Nothing is present of the endpoint until its groups are understood again."""
    apply(cache, stored(1))
    delta = apply(cache, stored(2, tokens=TOKENS, pool=WINDOW, kind="strange"))
    assert (delta.regrouped, changed(delta), present(cache)) == (True, {}, set())
    assert changed(apply(cache, stored(1, 2))) == {}
    cache.forget(engine_gone=True)
    assert changed(apply(cache, stored(1))) == {(GPU, FIRST): True}


def test_blocks_of_another_size_teach_nothing(cache: EndpointCache) -> None:
    """A coarse group's block has the engine hash of the last fine block in it."""
    coarse = BlockStored(WINDOW, [EngineHash(2)], None, TOKENS, 8, None, [], "mamba")
    apply(cache, stored(1, 2))
    delta = apply(cache, coarse)
    assert delta.regrouped
    assert cache.block_size == 4
    assert known(cache) == {1: FIRST, 2: SECOND}


def test_a_clear_comes_before_what_follows_it(cache: EndpointCache) -> None:
    """Everything of before is gone, what the same batch stores after it is there."""
    apply(cache, stored(1, 2))
    delta = apply(cache, stored(7, tokens=[7] * 4), AllBlocksCleared(), stored(1))
    assert delta.cleared
    assert changed(delta) == {(GPU, FIRST): True}
    assert present(cache) == {(GPU, FIRST)}


def test_a_doubt_keeps_the_map(cache: EndpointCache) -> None:
    """Presence and counts are forgotten, which hash is which block is not."""
    apply(cache, stored(1), stored(1))
    cache.forget()
    assert present(cache) == set()
    assert cache.counts() == {}
    apply(cache, stored(2, tokens=TOKENS[4:], parent=1))
    assert present(cache) == {(GPU, SECOND)}
    assert apply(cache, removed(1)).unknown_removed == 1


def test_what_has_been_absent_the_longest_is_forgotten(
    cache: EndpointCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter more than the endpoint held at most stays known, and whatever is present."""
    monkeypatch.setattr(limits, "FORGOTTEN_HASHES_MIN", 0)
    for number in range(20):
        apply(cache, stored(number, tokens=[number] * 4))
        apply(cache, *([removed(number - 8)] if number >= 8 else []))
    assert len(present(cache)) == 8
    assert set(known(cache)) == set(range(9, 20))
    cache.forget()
    assert set(known(cache)) == set(range(9, 20))


def test_a_doubt_forgets_no_hash_of_what_was_held(
    cache: EndpointCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: their children can be placed after it."""
    monkeypatch.setattr(limits, "FORGOTTEN_HASHES_MIN", 2)
    for number in range(10):
        apply(cache, stored(number, tokens=[number] * 4))
    cache.forget()
    assert set(known(cache)) == set(range(10))


def test_announced_hits_restore_presence_and_count_nothing(cache: EndpointCache) -> None:
    """However often a hit is announced, one removal ends it; what was not known becomes present."""
    for _ in range(90):
        cache.apply(Batch(0.0, (stored(1, 2),), 0), counts_copies=False)
    assert present(cache) == {(GPU, FIRST), (GPU, SECOND)}
    assert changed(apply(cache, removed(2))) == {(GPU, SECOND): False}
    assert present(cache) == {(GPU, FIRST)}


def test_copies_count_behind_a_clear(cache: EndpointCache) -> None:
    """In the same batch, too: nothing of before is there to be announced."""
    batch = Batch(0.0, (stored(1), AllBlocksCleared(), stored(1), stored(1)), 0)
    cache.apply(batch, counts_copies=False)
    apply(cache, removed(1))
    assert present(cache) == {(GPU, FIRST)}


def test_liars_are_bounded(cache: EndpointCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and pools beyond the bounds are counted and left out."""
    monkeypatch.setattr(limits, "PRESENT_HASHES_MAX", 1)
    assert apply(cache, stored(1, 2)).over_limit == 1
    monkeypatch.setattr(limits, "POOLS_PER_ENDPOINT_MAX", 1)
    assert apply(cache, stored(1, pool=CPU)).over_limit == 1
    assert present(cache) == {(GPU, FIRST)}


def test_the_gpu_of_an_endpoint_is_bounded(cache: EndpointCache) -> None:
    """All groups of it together, by engine hashes, and no other medium; a copy takes no room."""
    cache.gpu_max = 3
    assert apply(cache, stored(1, 2)).overclaimed == 0
    assert apply(cache, stored(1, 2, pool=CPU), stored(1, 2, pool=REMOTE)) == Delta(
        present={
            CPU: {FIRST: True, SECOND: True},
            REMOTE: {FIRST: True, SECOND: True},
        }
    )
    delta = apply(cache, stored(1, 2), stored(1, 2, pool=WINDOW, kind="sliding_window"))
    assert (delta.overclaimed, delta.over_limit) == (1, 0)
    assert cache.held_on_gpu == 3
    # What has left makes room.
    assert apply(cache, removed(2), removed(2)).overclaimed == 0
    assert apply(cache, stored(2, pool=WINDOW, kind="sliding_window")).overclaimed == 0
    assert apply(cache, AllBlocksCleared(), stored(1, 2)).overclaimed == 0


def test_a_bound_that_falls_takes_nothing_away(cache: EndpointCache) -> None:
    """It only lets nothing more in; whether that is a doubt is not decided here."""
    apply(cache, stored(1, 2))
    cache.gpu_max = 1
    assert apply(cache, stored(3, tokens=list(range(50, 54)))).overclaimed == 1
    assert present(cache) == {(GPU, FIRST), (GPU, SECOND)}


def restored(cache: EndpointCache, *, is_present: bool = True) -> EndpointCache:
    """Write every page down and read it into a new cache."""
    anew = EndpointCache(MODEL)
    for number in range(PAGES):
        anew.restore(Written.unpack(cache.page(number).pack("r", 1)).page, is_present=is_present)
    anew.groups = cache.groups
    return anew


def test_pages_hold_all_that_is_remembered(cache: EndpointCache) -> None:
    """Copies by pool, hashes without a place, hashes that are absent, many copies."""
    apply(cache, stored(1, 2), stored(1, tokens=[], pool=CPU), stored(8, tokens=[]))
    apply(cache, *[stored(5, tokens=[5] * 4)] * 300, stored(6, tokens=[6] * 4), removed(6))
    anew = restored(cache)
    assert anew.counts() == cache.counts()
    assert known(anew) == known(cache)
    assert present(anew) == present(cache)
    assert changed(apply(anew, stored(8, tokens=[8] * 4))) == changed(
        apply(cache, stored(8, tokens=[8] * 4))
    )
    assert apply(anew, *[removed(5)] * 300) == apply(cache, *[removed(5)] * 300)


def test_pages_of_another_root_tell_what_hashes_mean(cache: EndpointCache) -> None:
    """What they say is present is not."""
    apply(cache, stored(1), stored(8, tokens=[]))
    anew = restored(cache, is_present=False)
    assert (anew.counts(), known(anew)) == ({}, known(cache))


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x95\xa1r\x01\x01\x01\x01", b"\x90", b"\x01"])
def test_what_is_no_page_is_refused(packed: bytes) -> None:
    """Whatever stands there, it is a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is msgpack's own
        Written.unpack(packed)


@given(data=st.data())
def test_pages_of_any_age_and_the_batches_since_are_the_whole(data: st.DataObject) -> None:
    """Whenever each page was written, what is newer than it brings it to the same end."""
    hashes = st.lists(st.integers(0, 2 * PAGES), min_size=1, max_size=4)
    pools = st.sampled_from([GPU, CPU])
    stores = st.builds(
        lambda keys, pool, told: stored(
            *keys, tokens=None if told else [], pool=pool, parent=None
        ),
        hashes.filter(lambda keys: len(keys) <= 2), pools, st.booleans(),
    )  # fmt: skip
    removals = st.builds(lambda keys, pool: removed(*keys, pool=pool), hashes, pools)
    clears = st.sampled_from([AllBlocksCleared()])
    events = st.one_of(stores, stores, removals, removals, stores, removals, clears)
    batches = data.draw(st.lists(st.lists(events, min_size=1, max_size=5), min_size=1, max_size=9))
    counted_from = data.draw(st.integers(0, len(batches)))
    stamps = data.draw(st.lists(st.integers(-1, len(batches) - 1), min_size=PAGES, max_size=PAGES))
    whole, anew = EndpointCache(MODEL), EndpointCache(MODEL)
    for seq in range(-1, len(batches)):
        if seq >= 0:
            whole.apply(Batch(1.0, batches[seq], 0), counts_copies=seq >= counted_from)
        for number in range(PAGES):
            if stamps[number] == seq:
                anew.restore(whole.page(number))
    for seq in range(min(stamps) + 1, len(batches)):
        batch = Batch(1.0, batches[seq], 0)
        anew.reapply(batch, seq, stamps, counts_copies=seq >= counted_from)
    assert held(anew) == held(whole)
    assert present(anew) == present(whole)

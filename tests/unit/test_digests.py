"""The ring of digests: what a dict of the newest ones would say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvatlas.indexer.digests import DIGEST_BYTES, Digests

KEPT = 5
STEPS = st.lists(
    st.one_of(st.just("next"), st.just("clear"), st.integers(0, 2**64)), min_size=1, max_size=40
)


@given(STEPS)
def test_it_is_a_dict_of_the_newest(steps: list[str | int]) -> None:
    """Of batches that follow one another; another sequence begins anew, and so does a clear."""
    digests, plain = Digests(KEPT), dict[int, bytes]()
    seq = 0
    for number, step in enumerate(steps):
        if step == "clear":
            digests.clear()
            plain.clear()
            continue
        following = max(plain, default=-1) + 1
        seq = following if step == "next" else int(step)
        if seq != following:
            plain.clear()
        plain[seq] = digests[seq] = number.to_bytes(DIGEST_BYTES, "big")
        while len(plain) > KEPT:
            del plain[min(plain)]
        for near in (*plain, seq - KEPT, seq - 1, seq, seq + 1):
            assert digests.get(near) == plain.get(near)
            assert (near in digests) == (near in plain)


def test_it_takes_no_more_room_than_it_must() -> None:
    """However long it runs, and none for what never came."""
    digests = Digests(KEPT)
    digests[3] = bytes(DIGEST_BYTES)
    for seq in range(4, 100):
        digests[seq] = bytes(DIGEST_BYTES)
    assert len(digests._ring) == KEPT * DIGEST_BYTES

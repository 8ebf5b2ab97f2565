"""Which pages of an endpoint's memory are written when."""

from __future__ import annotations

from kvatlas.common import limits
from kvatlas.common.ids import Epoch, ModelName
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.memory import OUTLINE_FIELD, PAGES, Outline
from kvatlas.indexer.memory_writer import MemoryWriter
from kvatlas.indexer.recall import recalled
from kvatlas.indexer.targets import Position, Remembered

MODEL = ModelName("m")


def writer() -> MemoryWriter:
    """Give one that has seen batch 0."""
    made = MemoryWriter(EndpointCache(MODEL), "1.0")
    made.batch(0, 0)
    return made


def written(memory: MemoryWriter, seq: int, behind_by: int | None = None) -> list[int]:
    """Write what is due; give the pages."""
    parcel = memory.parcel(seq, behind_by)
    memory.written(parcel)
    return list(parcel.pages)


def test_before_the_first_batch_there_is_nothing_to_remember() -> None:
    """Not even an outline: a successor would find no life to go on with."""
    memory = MemoryWriter(EndpointCache(MODEL), "1.0")
    assert memory.parcel(-1, 0).fields == {}
    assert not memory.is_behind(-1)


def test_the_outline_is_written_when_it_has_changed() -> None:
    """And again until it is confirmed."""
    memory = writer()
    assert OUTLINE_FIELD in memory.parcel(0).fields
    assert OUTLINE_FIELD in memory.parcel(0).fields, "it was not confirmed"
    written(memory, 0)
    assert memory.parcel(1).fields == {}
    memory.batch(2, 2)
    assert OUTLINE_FIELD in memory.parcel(2).fields


def test_pages_are_written_in_turn_as_batches_come() -> None:
    """So that each is written again before engines forget the batches since."""
    memory, pages = writer(), []
    for seq in range(2 * PAGES * limits.PAGE_BATCHES):
        pages += written(memory, seq)
    assert pages == [*range(PAGES), *range(PAGES)][: len(pages)]
    assert len(pages) >= 2 * PAGES - 1
    assert PAGES * limits.PAGE_BATCHES * 2 < 10_000


def test_a_burst_writes_no_more_pages_than_one_write_takes() -> None:
    """However many batches it has."""
    assert len(written(writer(), 1_000_000)) == limits.PAGES_PER_WRITE_MAX


def test_quiet_hours_bring_every_page_up_to_date() -> None:
    """A few with each write, and anew when Redis may have lost them."""
    memory = writer()
    assert memory.is_behind(5)
    pages: list[int] = []
    while memory.is_behind(5):
        pages += written(memory, 5, 0)
    assert sorted(pages) == list(range(PAGES))
    assert not memory.is_behind(8, by=3)
    assert memory.is_behind(9, by=3)
    memory.lost()
    assert memory.is_behind(5, by=3)


def test_what_was_forgotten_cannot_be_recalled() -> None:
    """Pages of the root before tell what hashes mean, not what is there."""
    memory = writer()
    memory.forget("1.1")
    assert not memory.is_behind(0)
    memory.batch(7, None)
    outline = memory.parcel(7, 0).fields[OUTLINE_FIELD]
    assert isinstance(outline, str)
    assert Outline.from_text(outline.encode()) == Outline("1.1", 7, None, 0, [])


def test_what_a_stranger_wrote_is_nothing_to_go_on_with() -> None:
    """Whatever stands there, the endpoint is begun anew."""
    outline = Outline("1.0", 0, 0, 4, []).to_text().encode()
    at = Position(Epoch(1), 5)

    def left(proof: bytes = b"5 ff", outline: bytes = outline, page: bytes | None = None) -> bool:
        return recalled(MODEL, Remembered(at, 1.0, proof, 0.0, outline, [page])) is not None

    page = EndpointCache(MODEL).page(0)
    assert left()
    assert left(page=page.pack("1.0", 5))
    assert not left(page=page.pack("1.0", 6)), "ahead of the index"
    assert not left(page=b"spam")
    assert not left(proof=b"spam")
    assert not left(proof=b"5 xyz")
    assert not left(outline=b"{}")
    assert not left(outline=b"spam")
    assert not left(outline=b"[]")
    assert not left(outline=outline.replace(b'"first":0', b'"first":"x"'))
    assert not left(outline=outline.replace(b"[]", b"[[1]]"))
    assert recalled(MODEL, None) is None

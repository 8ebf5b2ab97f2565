"""The first token of a stream that speaks up before its prompt is computed."""

from __future__ import annotations

import pytest

from kvatlas.router.first_token import FirstToken
from kvatlas.router.usage import Usage, WholeAnswer, usage_of_response

OPENING = (
    b'event: response.created\ndata: {"response":{"usage":null,'
    b'"instructions":"\\nevent: response.output_text.delta"}}\n\n'
    b'event: response.in_progress\ndata: {"response":{}}\n\n'
).replace(b"\\n", b"\\\\n")
TOKEN = b'event: response.output_item.added\ndata: {"item":{}}\n\n'
LAST = b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":9}}}\n\n'


class Seen:
    """What was told."""

    def __init__(self) -> None:
        self.came = 0
        self.gaps: list[float] = []

    def first(self) -> None:
        """Note the first token."""
        self.came += 1

    def observe(self, value: float, /) -> None:
        """Note a gap."""
        self.gaps.append(value)


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_it_comes_behind_what_was_taken_in(step: int) -> None:
    """However the stream is cut; gaps count from then on, and every byte passes."""
    seen = Seen()
    reader = FirstToken(WholeAnswer(usage_of_response), seen.first, seen)
    passed = b""
    for at in range(0, len(OPENING), step):
        reader.observe(1.0)
        passed += reader.feed(OPENING[at : at + step])
    assert (seen.came, seen.gaps) == (0, [])
    rest = TOKEN + LAST
    for at in range(0, len(rest), step):
        passed += reader.feed(rest[at : at + step])
    reader.observe(2.0)
    assert (seen.came, seen.gaps) == (1, [2.0])
    assert passed + reader.end() == OPENING + rest
    assert reader.usage == Usage(9, None)
    reader.usage = None
    assert reader.usage is None
    assert not reader.takes_out

"""The usage chunk is taken out of a stream, and the stream is what it would have been."""

from __future__ import annotations

import pytest

from kvatlas.common import limits
from kvatlas.router.usage import Usage
from kvatlas.router.usage_habit import SILENT_ANSWERS, Asked, UsageHabit
from kvatlas.router.usage_stream import UsageStream

ROLE = b'data: {"id":"1","choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
TEXT = (
    'data: {"id":"1","choices":[{"index":0,"delta":{"content":"ü\\"usage\\" [DONE]"},'
    '"finish_reason":null}]}\n\n'
).encode()
END = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
STAMPED = (
    b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"system_fingerprint":"vllm-x"}\n\n'
)
USAGE = (
    b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":'
    b'{"cached_tokens":4}},"system_fingerprint":"vllm-x"}\n\n'
)
BARE_USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":9}}\n\n'
ERROR = b'data: {"error":{"message":"usage"}}\n\n'
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


def through(stream: UsageStream, *pieces: bytes) -> bytes:
    """Send pieces through."""
    return b"".join(map(stream.feed, pieces)) + stream.end()


def taking() -> UsageStream:
    """Make one that takes the usage out and puts the fingerprint back."""
    return UsageStream(takes_out=True, stamps=True)


def test_a_stream_becomes_what_it_would_have_been_unasked() -> None:
    """The chunk goes, its fingerprint stands where it stands without."""
    stream = taking()
    assert through(stream, ROLE, TEXT, END, USAGE, DONE) == ROLE + TEXT + STAMPED + DONE
    assert stream.usage == Usage(9, 4)
    assert (stream.is_done, stream.is_ended, stream.is_forced) == (True, True, False)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 17, 100, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_any_cut_and_any_kind_of_line_end(step: int, newline: bytes) -> None:
    """Inside of a character, of `data:`, of a line end."""
    sent = (ROLE + PING + TEXT + END + USAGE + DONE).replace(b"\n", newline)
    wanted = (ROLE + PING + TEXT + STAMPED + DONE).replace(b"\n", newline)
    pieces = [sent[at : at + step] for at in range(0, len(sent), step)]
    stream = taking()
    assert through(stream, *pieces) == wanted
    assert stream.usage == Usage(9, 4)


def test_ordinary_chunks_pass_at_once_and_unlooked_at() -> None:
    """The very same object comes out."""
    stream = taking()
    assert stream.feed(ROLE) is ROLE
    assert stream.feed(TEXT + TEXT) == TEXT + TEXT


def test_the_chunk_that_ends_a_choice_waits_for_the_next_one() -> None:
    """Whatever that is: usage, [DONE], an error, another chunk; comments stay behind it."""
    for after, wanted in (
        (USAGE, STAMPED),
        (DONE, END + DONE),
        (ERROR, END + ERROR),
        (TEXT, END + TEXT),
        (END + USAGE, END + STAMPED),
    ):
        stream = taking()
        assert stream.feed(END) == b""
        assert stream.feed(after) == wanted
    stream = taking()
    assert stream.feed(END) + stream.feed(PING) == b""
    assert stream.feed(USAGE) == STAMPED + PING


@pytest.mark.parametrize("cut_off", [END, TEXT[:20], END + USAGE[:20], END[:-1]])
def test_what_is_held_when_a_stream_ends_or_breaks_is_passed_on(cut_off: bytes) -> None:
    """Nothing that an engine sent is lost."""
    assert through(taking(), ROLE, cut_off) == ROLE + cut_off


def test_no_fingerprint_where_the_engine_would_put_none() -> None:
    """Neither when it has none, nor when it keeps it for the usage alone, nor twice."""
    assert through(taking(), END, BARE_USAGE, DONE) == END + DONE
    keeps = UsageStream(takes_out=True, stamps=False)
    assert through(keeps, END, USAGE, DONE) == END + DONE
    assert through(taking(), STAMPED, USAGE, DONE) == STAMPED + DONE


def test_an_engine_that_reports_to_everybody() -> None:
    """Chunks with choices carry a usage: then the client gets all of it, as it would unasked."""
    first = ROLE.replace(b"]}\n", b'],"usage":{"prompt_tokens":9}}\n')
    last = END.replace(b"]}\n", b'],"usage":{"prompt_tokens":9}}\n')
    for chunks in ((first, last), (last,)):
        stream = taking()
        sent = (*chunks, USAGE, DONE)
        assert through(stream, *sent) == b"".join(sent)
        assert stream.is_forced
        assert stream.usage == Usage(9, 4)


def test_a_stream_that_is_only_watched_passes_as_it_comes() -> None:
    """Piece by piece, however it is cut, and the usage is read all the same."""
    sent = ROLE + TEXT + STAMPED + USAGE + DONE
    stream = UsageStream(takes_out=False, stamps=False)
    for at in range(0, len(sent), 7):
        assert stream.feed(sent[at : at + 7]) == sent[at : at + 7]
    assert stream.end() == b""
    assert stream.usage == Usage(9, 4)
    assert (stream.is_done, stream.is_stamped, stream.has_usage_chunk) == (True, True, True)


@pytest.mark.parametrize("step", [1_000, 1_000_000])
def test_a_huge_event_passes_unread(step: int) -> None:
    """It is not held beyond the bound, and the events behind it are read again."""
    huge = b'data: {"prompt_token_ids":[' + b"1," * limits.STREAM_EVENT_BYTES_MAX + b"1]}\n\n"
    sent = TEXT + huge + END + USAGE + DONE
    stream, held = taking(), 0
    passed = b""
    for at in range(0, len(sent), step):
        piece = sent[at : at + step]
        passed += stream.feed(piece)
        held = max(held, at + len(piece) - len(passed))
    assert passed + stream.end() == TEXT + huge + STAMPED + DONE
    assert held <= limits.STREAM_EVENT_BYTES_MAX + step
    assert stream.usage == Usage(9, 4)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b'{"error": "no stream"}',
        b"\n\n\n\n",
        b'data: "usage"\n\n' + DONE,
        b'data: {"usage"\n\n' + DONE,
        b'event: x\ndata: {"choices":[],"usage":{}}\n\n' + DONE,
        b'data: {"choices":[],"usage":null}\n\n' + DONE,
        b'data: {"choices":"","usage":1,"finish_reason":"x"}\n\n',
        b'data: {"choices":[1],"finish_reason":"x"}\n\n',
        b"data: 1\r\n\r\ndata: [DONE]",
    ],
)
def test_what_is_no_usage_passes(sent: bytes) -> None:
    """Strange streams are the client's to read."""
    assert through(taking(), sent) == sent
    assert through(taking(), *(sent[at : at + 1] for at in range(len(sent)))) == sent


def watched(*chunks: bytes, takes_out: bool = False) -> UsageStream:
    """Give a stream that has passed."""
    stream = UsageStream(takes_out=takes_out, stamps=takes_out)
    through(stream, *chunks)
    return stream


def test_a_habit_is_learned_from_the_first_whole_stream() -> None:
    """Before it nobody is asked; broken and empty streams teach nothing."""
    habit = UsageHabit()
    for stream in (watched(TEXT), watched(TEXT, END), watched(ERROR, DONE)):
        habit.note_stream(stream, "nobody")
        assert (habit.state, habit.is_worth_asking) == ("unknown", False)
    habit.note_stream(watched(TEXT, STAMPED, DONE), "nobody")
    assert (habit.state, habit.stamps, habit.is_worth_asking) == ("on_request", True, True)
    habit.note_stream(watched(TEXT, END, DONE), "nobody")
    assert (habit.state, habit.stamps) == ("on_request", True)


def test_usage_that_comes_by_itself_is_not_asked_for() -> None:
    """Seen at the end of an unasked stream, or in the chunks of one that was asked for."""
    habit = UsageHabit()
    habit.note_stream(watched(END, USAGE, DONE), "nobody")
    assert habit.state == "by_itself"
    forced = END.replace(b"]}\n", b'],"usage":{"prompt_tokens":9}}\n')
    asked: Asked
    for asked in ("us", "nobody"):
        habit = UsageHabit("on_request")
        habit.note_stream(watched(forced, USAGE, DONE), asked)
        assert habit.state == "by_itself"
    habit = UsageHabit("on_request")
    habit.note_stream(watched(forced, USAGE, DONE), "client")
    assert habit.state == "on_request"


def test_an_engine_that_never_tells_the_cached_tokens_is_left_in_peace() -> None:
    """After a few answers in a row; one that tells them begins anew."""
    habit = UsageHabit("on_request")
    states = []
    for _ in range(SILENT_ANSWERS):
        states.append(habit.state)
        habit.note_stream(watched(END, BARE_USAGE, DONE, takes_out=True), "us")
    states.append(habit.state)
    habit.note_usage(Usage(9, 4))
    assert [*states, habit.state] == ["on_request"] * SILENT_ANSWERS + ["never", "unknown"]
    habit = UsageHabit("on_request")
    for _ in range(SILENT_ANSWERS):
        habit.note_stream(watched(END, DONE, takes_out=True), "us")
        habit.note_usage(Usage(9, 0))
    assert habit.state == "on_request"

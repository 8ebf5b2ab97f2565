"""S8, nobody reads the log, or the disk is full: requests go on, and what is lost is told of."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.log_writer import LineWriter
from tests.chaos.conftest import Report, loop_stalls

QUEUED = 50
LINE = b'{"event": "x", "filler": "' + b"x" * 500 + b'"}'


def _lost(count: int) -> bytes:
    return json.dumps({"event": "log.dropped", "lines": count}).encode()


@pytest.fixture
def few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop lines sooner."""
    monkeypatch.setattr(limits, "LOG_LINES_QUEUED_MAX", QUEUED)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


async def test_s8_a_full_pipe_makes_nobody_wait(few_lines: None, pipe: tuple[int, int]) -> None:
    """The loop turns, drops are counted, and told of when the pipe flows again."""
    del few_lines
    reading, writing = pipe
    writer = LineWriter(writing, _lost)
    wrote = 2_000
    async with loop_stalls() as stalls:
        for _ in range(wrote):
            writer.write(LINE)
            await asyncio.sleep(0)
        assert writer.dropped > 0
    assert max(stalls) < 0.1
    dropped = writer.dropped
    received = b""
    lines: list[dict[str, Any]] = []
    told: list[int] = []
    while sum(told) < dropped:
        received += await asyncio.to_thread(_read_until, reading, b"\n")
        lines = [json.loads(line) for line in received.splitlines()]
        told = [line["lines"] for line in lines if line["event"] == "log.dropped"]
    assert sum(told) == dropped == writer.dropped
    assert len(lines) - len(told) == wrote - dropped
    await asyncio.to_thread(writer.close)
    Report(
        "S8", "stderr is a pipe that nobody reads",
        "the loop turns; lines beyond the bound dropped, counted, told of afterwards",
    ).tell()  # fmt: skip


async def test_s8_a_full_disk_is_told_of_when_there_is_room(
    pipe: tuple[int, int],
) -> None:
    """`/dev/full` says what a full disk says; another file in its place gets the count."""
    reading, writing = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.write(full, b"x")
        writer = LineWriter(full, _lost)
        for _ in range(10):
            writer.write(LINE)
        await _until_dropped(writer, 10)
        os.dup2(writing, full)
        writer.write(LINE)
        received = await asyncio.to_thread(_read_until, reading, b"log.dropped")
        lines = [json.loads(line) for line in received.splitlines()]
        assert [line.get("lines") for line in lines] == [None, 10]
        assert writer.dropped == 10
        await asyncio.to_thread(writer.close)
    finally:
        os.close(full)
    Report("S8", "the disk is full", "lines dropped, counted, told of when there is room").tell()


async def _until_dropped(writer: LineWriter, count: int) -> None:
    async with asyncio.timeout(5):
        while writer.dropped < count:  # noqa: ASYNC110 - it is the state of a thread
            await asyncio.sleep(0.01)


def _read_until(descriptor: int, mark: bytes) -> bytes:
    """Read until a line with the mark is whole."""
    received = b""
    deadline = time.monotonic() + 10
    while mark not in received or not received.endswith(b"\n"):
        assert time.monotonic() < deadline
        received += os.read(descriptor, 65_536)
    return received

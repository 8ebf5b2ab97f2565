"""E7, an engine's publisher is frozen: noticed in 3 s, without matches after some more."""

from __future__ import annotations

import io
import time

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report, epochs_of
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Options, Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.publisher_process import publisher_processes

NOTICED_MAX_S = 3.3
"""Heartbeats each second, two seconds to answer one, and ZMQ's own thread."""


async def test_e7_a_frozen_publisher_is_stale(
    scale: Scale, canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is still sent requests, by load; when it goes on, all that it had is matched again."""
    if not scale.is_full:
        monkeypatch.setattr(limits, "FEED_LOST_S", 1.0)
    noticed, forgotten, recovered = [], [], []
    async with (
        publisher_processes(scale.engines) as processes,
        chaos_place(scale, canary, Options(publishers=[*processes])) as place,
    ):
        *frozen, spared = place.engines
        feeds = [place.feed(engine) for engine in frozen]
        await place.batches()
        await place.settled()
        for turn in range(scale.rounds):
            for process in processes[:-1]:
                process.freeze()
            began = time.monotonic()
            await until(lambda: {feed.phase for feed in feeds} == {"connecting"}, 10.0)
            noticed.append(time.monotonic() - began)
            assert await place.is_matched(frozen[0]), "what is lost for a moment still counts"
            await until(lambda: {feed.phase for feed in feeds} == {"stale"}, 20.0)
            for engine in frozen:
                while await place.is_matched(engine):
                    assert time.monotonic() - began < 20.0
                answer = await place.ask(engine)
                assert (answer.status, answer.match_tokens) == (200, 0)
            forgotten.append(time.monotonic() - began)
            assert await place.is_matched(spared)
            await until(
                lambda: place.count("kvatlas_indexer_endpoints", phase="stale") == len(frozen)
            )
            # A Redis that has lost it meanwhile is not told again what nobody vouches for.
            feeds[0].mirror.rewrite("index_lost")
            await until(lambda n=turn: epochs_of(place, frozen[0], "index_lost") == n + 1)  # type: ignore[misc]
            await until(lambda: feeds[0].mirror.is_current)
            assert not await place.is_matched(frozen[0])
            # What they do meanwhile is heard when they go on.
            await place.batches()
            for process in processes[:-1]:
                process.thaw()
            recovered.append(await place.recovered(time.monotonic()))
            assert [epochs_of(place, e, "back") for e in frozen] == [turn + 1] * len(frozen)
            assert {epochs_of(place, e, "restart") for e in frozen} == {0}
    assert max(noticed) <= NOTICED_MAX_S, noticed
    assert '"endpoint.stale"' in log.getvalue()
    Report(
        "E7",
        "SIGSTOP to the processes of all publishers but one",
        f"noticed after {max(noticed):.1f} s, phase `stale` and no match after "
        f"{max(forgotten):.1f} s; written again from memory when it goes on",
        recovered,
    ).tell()

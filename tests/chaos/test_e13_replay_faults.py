"""E13, replays that are slow, endless, wrong or never end: bounded, and others are served."""

from __future__ import annotations

import asyncio
import time

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report, epochs_of, loop_stalls
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import ChaosPlace, Options, Scale, chaos_place
from tests.fakes.engines import until

FAULTS = ("slow", "endless", "wrong_seq", "no_end", "silent")


pytestmark = pytest.mark.usefixtures("short_replays")


@pytest.mark.parametrize("fault", FAULTS)
async def test_e13_a_bad_replay_ends(scale: Scale, canary: Canary, fault: str, turn: int) -> None:
    """After a few attempts the endpoint goes on with what it sends, under a new epoch."""
    del turn
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        spoil(engine, fault)
        began = time.monotonic()
        async with loop_stalls() as stalls:
            await a_gap(engine)
            feed = place.feed(engine)
            await until(lambda: feed.sequencer.phase == "replaying")
            longest = limits.REPLAY_ATTEMPTS_MAX * limits.REPLAY_TOTAL_S + 5.0
            while feed.sequencer.phase != "live" or not feed.mirror.is_current:
                assert time.monotonic() - began < longest
                assert await place.is_matched(place.engines[1])
                await asyncio.sleep(0.05)
        gave_up_s = time.monotonic() - began
        failed = feed.sequencer.counts["replay_failed"]
        heal(engine)
        healed = time.monotonic()
        await engine.publisher.restart()
        engine.lose_all()
        await engine.step()
        took_s = await place.recovered(healed)
    Report(
        "E13",
        f"a gap, and a replay that is {fault.replace('_', ' ')}",
        f"live again after {gave_up_s:.1f} s ({failed} replays failed); longest stall "
        f"{1e3 * max(stalls):.0f} ms; right after a restart",
        [took_s],
    ).tell()


async def test_e13_bad_replays_keep_nobody_waiting(scale: Scale, canary: Canary) -> None:
    """More endless replays than there are slots: another endpoint's gap is healed meanwhile."""
    bad = limits.REPLAYS_AT_ONCE_MAX + 2
    async with chaos_place(scale, canary, Options(engines=bad + 1)) as place:
        *spoiled, good = place.engines
        for engine in spoiled:
            spoil(engine, "endless")
            await a_gap(engine)
        await until(lambda: replaying(place, spoiled) >= limits.REPLAYS_AT_ONCE_MAX)
        began = time.monotonic()
        await a_gap(good)
        feed = place.feed(good)
        await until(lambda: feed.sequencer.last_seq == good.publisher.next_seq - 1, 60.0)
        waited_s = time.monotonic() - began
        for engine in spoiled:
            heal(engine)
    assert waited_s < 2 * limits.REPLAY_TOTAL_S + 1.0
    Report(
        "E13",
        f"{bad} endless replays beside one that is well",
        f"the one that is well waits for {waited_s:.1f} s",
    ).tell()


def spoil(engine: ChaosEngine, fault: str) -> None:
    """Let replays go wrong."""
    if fault == "silent":
        engine.publisher.silent = True
    else:
        engine.publisher.replay_fault = fault


def heal(engine: ChaosEngine) -> None:
    """Let replays go well."""
    engine.publisher.silent, engine.publisher.replay_fault = False, None


async def a_gap(engine: ChaosEngine) -> None:
    """Lose some batches, and send one more."""
    engine.publisher.muted = True
    for _ in range(20):
        await engine.step()
    engine.publisher.muted = False
    await engine.step()


def replaying(place: ChaosPlace, engines: list[ChaosEngine]) -> int:
    """Count the engines that have been asked for a replay."""
    return sum(place.feed(engine).sequencer.phase == "replaying" for engine in engines)


async def test_e13_who_never_replays_well_is_not_asked_for_a_while(
    scale: Scale, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap is a new epoch at once then, as without a replay socket, and live events go on."""
    monkeypatch.setattr(limits, "AUDIT_S", 0.1)
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        feed = place.feed(engine)
        spoil(engine, "silent")
        await until(lambda: feed.sequencer.counts["replay_failed"] >= 6, 20.0)
        await until(lambda: feed.sequencer.phase == "live")
        asked, epochs = len(engine.publisher.replays), epochs_of(place, engine, "replay_failed")
        engine.lose_all()
        began = time.monotonic()
        await a_gap(engine)
        await until(lambda: epochs_of(place, engine, "replay_failed") == epochs + 1)
        took_s = time.monotonic() - began
        assert took_s < limits.REPLAY_IDLE_S, "nobody was waited for"
        assert len(engine.publisher.replays) - asked <= 1
        heal(engine)
    Report(
        "E13",
        "a gap of an endpoint whose replays have failed six times in a row",
        f"new epoch (`replay_failed`) after {1e3 * took_s:.0f} ms: it is not asked for a while",
    ).tell()

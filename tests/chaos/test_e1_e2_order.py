"""E1, batches are lost; E2, they come twice, or in another order."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.chaos.conftest import Report, epochs_of
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import ChaosPlace, Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.publisher import stored


async def test_e1_a_gap_is_replayed(scale: Scale, canary: Canary) -> None:
    """From the last applied batch on, which proves that it is the same life: nothing is lost."""
    recovered = []
    async with chaos_place(scale, canary) as place:
        for _ in range(scale.rounds):
            last = [engine.publisher.next_seq - 1 for engine in place.engines]
            await lose_batches(place)
            began = time.monotonic()
            for engine in place.engines:
                await engine.step()
            recovered.append(await place.recovered(began))
            for engine, seq in zip(place.engines, last, strict=True):
                assert seq in engine.publisher.replays, "asked for from the last applied one"
                assert place.feed(engine).sequencer.counts["gap"] >= 1
                assert not any(epochs_of(place, engine, why) for why in ("gap", "lost", "restart"))
    Report(
        "E1",
        f"{scale.batches} batches per engine recorded but not sent, then one that is",
        "replay from the last applied batch inclusive; no new epoch",
        recovered,
    ).tell()


@pytest.mark.usefixtures("short_replays")
@pytest.mark.parametrize(("fault", "reason"), [("truncated", "lost"), ("silent", "replay_failed")])
async def test_e1_a_gap_that_stays_is_a_doubt(
    scale: Scale, canary: Canary, fault: str, reason: str, turn: int
) -> None:
    """What cannot be had any more ends the epoch; what the engine still tells is known."""
    del turn
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        engine.publisher.muted = True
        for _ in range(5):
            await engine.step()
        engine.publisher.muted = False
        if fault == "silent":
            engine.publisher.silent = True
        else:
            engine.publisher.replay_log.clear()
        engine.lose_all()
        began = time.monotonic()
        await compute_anew(engine)
        await until(lambda: epochs_of(place, engine, reason) == 1, 12.0)
        engine.publisher.silent = False
        took_s = await place.recovered(began)
        assert epochs_of(place, place.engines[1], reason) == 0
    Report("E1", f"a gap, and a replay that is {fault}", f"new epoch (`{reason}`)", [took_s]).tell()


async def test_e2_duplicates_and_disorder_change_nothing(scale: Scale, canary: Canary) -> None:
    """What came is not counted again; what comes early waits for what is missing."""
    recovered = []
    async with chaos_place(scale, canary) as place:
        for _ in range(scale.rounds):
            await place.batches()
            began = time.monotonic()
            for engine in place.engines:
                publisher = engine.publisher
                for seq in range(max(0, publisher.next_seq - 20), publisher.next_seq):
                    await publisher.resend(seq)
                publisher.muted = True
                seqs = [publisher.next_seq, publisher.next_seq + 1]
                await engine.step()
                await engine.step()
                publisher.muted = False
                for seq in reversed(seqs):
                    await publisher.resend(seq)
            recovered.append(await place.recovered(began))
        for engine in place.engines:
            assert place.feed(engine).sequencer.counts["duplicate"] >= 20 * scale.rounds
            assert epochs_of(place, engine, "restart") == 0
    Report(
        "E2", "20 batches sent twice, two in the wrong order", "ignored, or put in order", recovered
    ).tell()


async def test_e2_a_lower_sequence_with_other_bytes_is_another_life(
    scale: Scale, canary: Canary, turn: int
) -> None:
    """Without any disconnect, too."""
    del turn
    async with chaos_place(scale, canary) as place:
        engine, publisher = place.engines[0], place.engines[0].publisher
        await place.batches()
        await place.settled()
        publisher.replay_log.clear()
        publisher.next_seq = 1
        publisher.replay_log[0] = b"\x93\xcb" + bytes(8) + b"\x90\x00"
        engine.lose_all()
        began = time.monotonic()
        await compute_anew(engine)
        took_s = await place.recovered(began)
        assert epochs_of(place, engine, "restart") == 1
    Report("E2", "a lower sequence with other bytes", "new epoch (`restart`)", [took_s]).tell()


async def lose_batches(place: ChaosPlace) -> None:
    """Let batches be recorded that nobody hears."""
    for engine in place.engines:
        engine.publisher.muted = True
    await place.batches()
    for engine in place.engines:
        engine.publisher.muted = False
    await asyncio.sleep(0)


async def compute_anew(engine: ChaosEngine) -> None:
    """Store a chain that is there whatever was there before."""
    tokens, hashes = list(range(9_000, 9_016)), [901, 902, 903, 904]
    engine.prompts.append((list(tokens), list(hashes)))
    await engine.publisher.publish(stored(hashes, tokens))

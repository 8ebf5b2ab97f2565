"""R2, Redis is killed and comes back empty: the indexer fills it again from memory."""

from __future__ import annotations

import time

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ChaosPlace, Scale, chaos_place


async def test_r2_an_empty_redis_is_filled_again(scale: Scale, canary: Canary) -> None:
    """Under new epochs, without asking engines; requests are answered all the time."""
    recovered = []
    async with chaos_place(scale, canary) as place:
        for number in range(scale.rounds):
            asked = replays(place)
            epochs = [place.feed(engine).mirror.epoch for engine in place.engines]
            place.server.kill()
            down = [await place.ask(engine) for engine in place.engines]
            await place.batches()
            place.server.start()
            began = time.monotonic()
            empty = await place.ask(place.engines[0])
            recovered.append(await place.recovered(began))
            assert {answer.status for answer in [*down, empty]} == {200}
            assert down[0].fallback == "lookup:connection"
            assert {answer.fallback for answer in down} <= {"lookup:connection", "lookup:paused"}
            assert empty.match_tokens == 0
            filled = place.count("kvatlas_indexer_rewrites_total", reason="index_lost")
            assert filled == len(place.engines) * (number + 1)
            assert replays(place) == asked
            for engine, epoch in zip(place.engines, epochs, strict=True):
                now = place.feed(engine).mirror.epoch
                assert now is not None
                assert epoch is not None
                assert now > epoch
    Report(
        "R2",
        "kill -9 of redis-server, restart without data",
        "requests by load while it is away; every endpoint written from memory under a new "
        "epoch, no engine asked",
        recovered,
    ).tell()


def replays(place: ChaosPlace) -> list[int]:
    """Count the replays that were asked for."""
    return [place.feed(engine).sequencer.counts["replay"] for engine in place.engines]

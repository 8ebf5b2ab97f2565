"""E6, an engine clears its cache and says so: forgotten by one small write."""

from __future__ import annotations

import time

from tests.chaos.conftest import Report, epochs_of
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale, chaos_place
from tests.fakes.publisher import CLEARED

SLOW_US = 5_000


async def test_e6_a_clear_is_one_small_write(scale: Scale, canary: Canary) -> None:
    """No command of ours takes 5 ms for it, and nothing of before is matched afterwards."""
    recovered = []
    async with chaos_place(scale, canary) as place:
        for turn in range(scale.rounds):
            await place.batches()
            for engine in place.engines:
                await engine.cache_chat(canary.text, place.builder, place.engines.index(engine))
            await place.settled()
            old = {engine.name: engine.longest() for engine in place.engines}
            with place.server.client() as client:
                client.config_set("slowlog-log-slower-than", SLOW_US)
                client.slowlog_reset()
            began = time.monotonic()
            for engine in place.engines:
                engine.lose_all()
                await engine.publisher.publish(CLEARED)
            for name, chain in old.items():
                while await place.match_of(name, chain):
                    assert time.monotonic() - began < 1.0
            for engine in place.engines:
                await engine.step()
            recovered.append(await place.recovered(began))
            with place.server.client() as client:
                slow = [entry for entry in client.slowlog_get(100) if b"EVAL" in entry["command"]]
            assert slow == []
            assert {epochs_of(place, e, "cleared") for e in place.engines} == {turn + 1}
    Report(
        "E6",
        "AllBlocksCleared from every engine",
        f"one new epoch each (`cleared`), no command over {SLOW_US // 1_000} ms",
        recovered,
    ).tell()

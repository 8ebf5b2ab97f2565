"""R4, writes are paused: reads go on, and nothing is written twice."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Options, Scale, chaos_place, own_redis
from tests.fakes.redis_servers import redis7


async def test_r4_paused_writes_are_made_later(scale: Scale, canary: Canary) -> None:
    """Lookups match all the time (Redis 7: EVALSHA_RO is no write); writers time out and repeat."""
    pause_s = 5.0 if scale.is_full else 1.5
    recovered = []
    with own_redis(binary=redis7()) as server:
        async with chaos_place(scale, canary, Options(server=server)) as place:
            for _ in range(scale.rounds):
                with server.client() as client:
                    client.execute_command("CLIENT", "PAUSE", int(1e3 * pause_s), "WRITE")
                over = time.monotonic() + pause_s
                await place.batches()
                while time.monotonic() < over - 0.2:
                    for engine in place.engines:
                        assert await place.is_matched(engine)
                    await asyncio.sleep(0.05)
                await asyncio.sleep(max(0.0, over - time.monotonic()))
                recovered.append(await place.recovered(over))
            assert place.count("kvatlas_indexer_store_errors_total", reason="timeout") > 0
            assert place.fallbacks("timeout") == 0
    Report(
        "R4",
        f"CLIENT PAUSE {1e3 * pause_s:.0f} WRITE",
        "lookups match all the time; writes time out, are repeated, and count once",
        recovered,
    ).tell()

"""R3, Redis is slow: within the budget it is used, beyond it requests go by load."""

from __future__ import annotations

import time

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Options, Scale, chaos_place, own_redis
from tests.fakes.redis_servers import redis7

LATER_MAX_S = 0.05


async def test_r3_a_slow_redis_is_used_as_far_as_it_goes(scale: Scale, canary: Canary) -> None:
    """Replies 5 ms late are used, 30 and 200 ms late are not waited for; all is written alike."""
    seen, recovered = [], []
    async with chaos_place(scale, canary, Options(lookup_s=limits.LOOKUP_S)) as place:
        for delay_s in (0.005, 0.03, 0.2) * scale.rounds:
            place.redis.delay_s = delay_s
            answers = [await place.ask(place.engines[0]) for _ in range(10)]
            await place.batches()
            place.redis.heal()
            recovered.append(await place.recovered(time.monotonic()))
            assert {answer.status for answer in answers} == {200}
            matched = sum(answer.fallback is None for answer in answers)
            assert all(a.seconds < limits.LOOKUP_S + LATER_MAX_S for a in answers)
            assert (matched > 5) if delay_s < limits.LOOKUP_S else (matched == 0)
            seen.append(f"{1e3 * delay_s:.0f} ms: {matched} of {len(answers)} matched")
    Report("R3", "proxy delays replies", "; ".join(seen[:3]), recovered).tell()


async def test_r3_a_redis_that_sleeps_loses_nothing(scale: Scale, canary: Canary) -> None:
    """A write that timed out was applied after all (DEBUG SLEEP): it is not applied twice."""
    server = own_redis("--enable-debug-command", "local", binary=redis7())
    with server as started:
        async with chaos_place(scale, canary, Options(server=started)) as place:
            with started.client(socket_timeout=10) as client:
                await place.engines[0].step()
                client.execute_command("DEBUG", "SLEEP", 1.5 * limits.REDIS_WRITE_S)
                await place.batches()
            await place.recovered(time.monotonic())

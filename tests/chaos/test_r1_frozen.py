"""R1, Redis is frozen: requests go by load in time, and soon without asking it."""

from __future__ import annotations

import os
import signal
import time

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Options, Scale, chaos_place

ADDED_MAX_S = 0.05


async def test_r1_a_frozen_redis_is_left_alone(scale: Scale, canary: Canary) -> None:
    """Lookups end in time, then are not made; what engines sent meanwhile is written afterwards."""
    recovered = []
    async with chaos_place(scale, canary, Options(lookup_s=limits.LOOKUP_S)) as place:
        normal = sorted([(await place.ask(place.engines[0])).seconds for _ in range(20)])[18]
        for _ in range(scale.rounds):
            os.kill(place.server.pid, signal.SIGSTOP)
            try:
                answers = [await place.ask(place.engines[0]) for _ in range(40)]
                await place.batches()
            finally:
                os.kill(place.server.pid, signal.SIGCONT)
            recovered.append(await place.recovered(time.monotonic()))
            assert {answer.status for answer in answers} == {200}
            reasons = [answer.fallback for answer in answers]
            assert reasons[0] == "lookup:timeout"
            assert reasons[-1] == "lookup:paused"
            added = max(answer.seconds for answer in answers) - normal
            assert added < ADDED_MAX_S
        assert place.running.readiness() is None
    Report(
        "R1",
        "SIGSTOP to redis-server",
        f"requests by load, at most {1e3 * added:.0f} ms later; after "
        f"{limits.LOOKUP_FAILURES_MAX} timeouts Redis is asked once a second",
        recovered,
    ).tell()

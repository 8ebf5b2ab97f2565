"""R7, somebody's script keeps Redis busy: it is waited out, and nobody's script is killed."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

from redis.exceptions import RedisError

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ChaosPlace, Options, Scale, chaos_place
from tests.fakes.redis_servers import Server, wait_until

SAYS_BUSY_AFTER_MS = 100


async def test_r7_a_busy_script_is_waited_out(scale: Scale, canary: Canary) -> None:
    """Requests go by load, for `busy` once Redis says so; the script is left to its owner."""
    recovered = []
    async with chaos_place(scale, canary, Options(lookup_s=0.05)) as place:
        with place.server.client() as client:
            client.config_set("lua-time-limit", SAYS_BUSY_AFTER_MS)
        for _ in range(scale.rounds):
            script = threading.Thread(target=run_for_ever, args=(place.server,))
            script.start()
            await asyncio.sleep(2.5 * SAYS_BUSY_AFTER_MS / 1e3)
            answers = [await place.ask(place.engines[0]) for _ in range(8)]
            await place.batches()
            await asyncio.sleep(0.5)
            kills = await asyncio.to_thread(end_script, place)
            recovered.append(await place.recovered(time.monotonic()))
            await asyncio.to_thread(script.join)
            assert {answer.status for answer in answers} == {200}
            assert "lookup:busy" in {answer.fallback for answer in answers}
            assert kills == 1, "somebody else killed it"
        assert place.count("kvatlas_indexer_store_errors_total", reason="busy") > 0
    Report(
        "R7",
        "EVAL of an endless script, BUSY after 0.1 s",
        "requests by load (`busy`, then `paused`); writers wait; nobody but its owner kills it",
        recovered,
    ).tell()


def run_for_ever(server: Server) -> None:
    """Run a script that only a kill ends."""
    with suppress(RedisError), server.client(socket_timeout=60) as client:
        client.eval("while true do end", 0)


def end_script(place: ChaosPlace) -> int:
    """Kill the script as its owner; give how many such commands Redis has had since the last."""
    with place.server.client() as client:
        client.script_kill()
        # It ends at its next look around.
        wait_until(client.ping, "an answer")
        stats = client.info("commandstats")
        client.config_resetstat()
    calls = [stats[name]["calls"] for name in stats if name in KILLS]
    return int(sum(calls))


KILLS = ("cmdstat_script|kill", "cmdstat_script")
"""Redis 7 tells commands of one name apart, 6.2 does not: there no other SCRIPT is sent either."""

"""R8, Redis forgets all scripts: each is sent once more, and nothing else is noticed."""

from __future__ import annotations

import asyncio
import time

from kvatlas.common.redis_client import Script
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ChaosPlace, Scale, chaos_place

ALONE = 8
"""Scripts that one call at a time sends: of lookups, leases, notes and sweeps."""


async def test_r8_flushed_scripts_are_sent_again(scale: Scale, canary: Canary) -> None:
    """No request goes by load, no write fails, no script goes over the wire more than it must."""
    recovered, sent = [], []
    async with chaos_place(scale, canary) as place:
        for _ in range(scale.rounds):
            errors = place.count("kvatlas_indexer_store_errors_total", reason="noscript")
            before = sources_sent(place)
            with place.server.client() as client:
                client.script_flush()
            began = time.monotonic()
            assert [(await place.ask(e)).fallback for e in place.engines] == [None] * len(
                place.engines
            )
            await place.batches()
            recovered.append(await place.recovered(began))
            sent.append(sources_sent(place) - before)
            # The writers of all endpoints may find out at the same moment (`apply`, `tell`).
            assert 2 <= sent[-1] <= ALONE + 2 * len(place.engines)
            assert place.count("kvatlas_indexer_store_errors_total", reason="noscript") == errors
            assert place.fallbacks("noscript") == 0
            await asyncio.to_thread(all_are_known, place)
    Report(
        "R8",
        "SCRIPT FLUSH",
        f"NOSCRIPT is answered with the source, {max(sent)} times in all; nothing fails",
        recovered,
    ).tell()


def sources_sent(place: ChaosPlace) -> int:
    """Count the scripts that were sent whole."""
    with place.server.client() as client:
        stats = client.info("commandstats")
    names = ("cmdstat_eval", "cmdstat_eval_ro")
    return sum(int(stats[name]["calls"]) for name in names if name in stats)


def all_are_known(place: ChaosPlace) -> None:
    """Check that the two scripts of the hot path are called by their digests again."""
    with place.server.client() as client:
        digests = [Script(name).digest for name in ("apply", "lookup")]
        assert client.script_exists(*digests) == [True, True]

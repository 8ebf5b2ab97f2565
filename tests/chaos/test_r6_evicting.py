"""R6, Redis drops keys of the index: matches get shorter, never wrong, and it is said at once."""

from __future__ import annotations

import io
import time

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ChaosPlace, Options, Scale, chaos_place, own_redis
from tests.fakes.engines import until

SHARE = 8
"""The limit is lower by this part of what is used."""


async def test_r6_an_evicting_policy_is_warned_of(
    scale: Scale, canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """In log and metric, not in readiness; while keys go, nothing is claimed that is not there."""
    if not scale.is_full:
        monkeypatch.setattr(limits, "EVICTED_REST_S", 2.0)
    del turn
    with own_redis("--maxmemory-policy", "allkeys-lru") as server:
        async with chaos_place(scale, canary, Options(server=server)) as place:
            await until(lambda: place.count("kvatlas_indexer_store_policy_unsafe") == 1)
            assert place.indexer._fault is None
            for _ in range(3):
                await place.batches()
            await place.settled()
            with server.client() as client:
                used = int(client.info("memory")["used_memory"])
                client.config_set("maxmemory", str(used - used // SHARE))
                await until(lambda: int(client.info("stats")["evicted_keys"]) > 20)
                evicted = int(client.info("stats")["evicted_keys"])
            await place.batches()
            await place.claims_nothing()
            for engine in place.engines:
                assert (await place.ask(engine)).status == 200
            with server.client() as client:
                client.config_set("maxmemory", "0")
                client.config_set("maxmemory-policy", "noeviction")
            recovered = await place.recovered(time.monotonic(), limits.EVICTED_REST_S + 5.0)
            await until(lambda: place.count("kvatlas_indexer_store_policy_unsafe") == 0)
    assert log.getvalue().count('"store.policy_unsafe"') == 1
    Report(
        "R6",
        "maxmemory-policy allkeys-lru, maxmemory below what is used",
        f"warned at the start and in kvatlas_indexer_store_policy_unsafe, readiness unmoved; "
        f"{evicted} keys evicted, no block claimed that is not there; written anew "
        f"every {limits.EVICTED_REST_S:.0f} s while keys go",
        [recovered],
        limits.EVICTED_REST_S + 5.0,
    ).tell()


async def test_r6_lost_keys_of_ours_are_made_again(
    scale: Scale, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holders that were dropped are noticed, and the endpoints written anew; so is a state."""
    if not scale.is_full:
        monkeypatch.setattr(limits, "AUDIT_S", 1.0)
    recovered = []
    async with chaos_place(scale, canary) as place:
        for key in (holders_of(place), state_of(place)):
            with place.server.client() as client:
                assert client.delete(key) == 1
            began = time.monotonic()
            await place.batches()
            await place.claims_nothing()
            recovered.append(await place.recovered(began, limits.AUDIT_S + 5.0))
    Report(
        "R6",
        "DEL of the holders map, then of an endpoint's state",
        f"noticed by an audit every {limits.AUDIT_S:.0f} s, or by the next write; written anew",
        recovered,
        limits.AUDIT_S + 5.0,
    ).tell()


def holders_of(place: ChaosPlace) -> str:
    """Name the map without which no entry means anything."""
    return place.fleet.all_shards()[0].holders


def state_of(place: ChaosPlace) -> str:
    """Name the state of the first endpoint."""
    return place.fleet.all_shards()[0].endpoint(place.engines[0].name)

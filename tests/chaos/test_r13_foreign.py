"""R13, Redis holds something else under our names: it is left alone, reported, and survived."""

from __future__ import annotations

import io
import time

import pytest

from kvatlas.common.keyspace import SCHEMA_KEY
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import EX_CONFIG, run_service
from kvatlas.indexer.app import FOREIGN, Indexer
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale, chaos_place, own_redis
from tests.fakes.engines import until


async def test_r13_a_foreign_bucket_costs_its_own_blocks(
    scale: Scale, canary: Canary, log: io.StringIO
) -> None:
    """Lookups that come across it go by load; all other blocks are followed; it is not deleted."""
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        shard = place.fleet.shard_of(engine)
        bucket, _ = shard.entry(engine.chat_chain()[0])
        with place.server.client() as client:
            client.delete(bucket)
            client.set(bucket, "foreign")
        answer = await place.ask(engine)
        assert (answer.status, answer.fallback) == (200, "lookup:wrongtype")
        # Announced again, it cannot be written; what comes after it is.
        await engine.publisher.publish({"type": "AllBlocksCleared"}, engine.chat_event())
        engine.prompts.clear()
        await place.batches()
        await until(lambda: place.count("kvatlas_indexer_foreign_entries_total") > 0)
        await until(lambda: '"store.foreign_keys"' in log.getvalue())
        others = place.engines[1]
        assert await place.is_matched(others), "one prompt's failure is not another's"
        with place.server.client() as client:
            assert client.get(bucket) == b"foreign"
            client.delete(bucket)
        await place.claims_nothing()
        missing = engine.blocks() - (await place.indexed())[engine.name]
        assert missing <= {block for block in engine.blocks() if shard.entry(block)[0] == bucket}
    Report(
        "R13",
        "SET of a bucket as a string",
        "`lookup:wrongtype` for prompts that come across it, `store.foreign_keys`; its blocks are "
        "left out, all others followed; not deleted",
    ).tell()


async def test_r13_a_foreign_state_is_reported(scale: Scale, canary: Canary) -> None:
    """The endpoint cannot be written: not ready, with the reason, until the key is gone."""
    recovered = []
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        key = place.fleet.shard_of(engine).endpoint(engine.name)
        for _ in range(scale.rounds):
            with place.server.client() as client:
                client.delete(key)
                client.set(key, "foreign")
            await place.batches()
            await until(lambda: place.indexer._fault == FOREIGN)
            assert (await place.ask(engine)).status == 200
            with place.server.client() as client:
                client.delete(key)
            recovered.append(await place.recovered(time.monotonic()))
            await until(lambda: place.indexer._fault is None)
    Report(
        "R13",
        "SET of an endpoint's state as a string",
        "indexer not ready and says why; written anew when the key is gone",
        recovered,
        None,
    ).tell()


@pytest.mark.parametrize("version", ["1", "99", "spam"])
def test_r13_an_indexer_refuses_another_schema(version: str, log: io.StringIO) -> None:
    """It stops with the status of a bad configuration, and touches nothing."""
    with own_redis() as server, server.client() as client:
        client.set(SCHEMA_KEY, version)
        client.hset("kvatlas:v0", "x", "y")
        before = sorted(client.keys())
        settings = Settings.model_validate(
            {
                "redis": {"url": server.url},
                "models": [{"name": "m", "tokenizer": "-"}],
                "indexer": {"admin_port": 0},
            }
        )
        assert run_service(lambda stop: Indexer(settings).serve(stop)) == EX_CONFIG
        assert sorted(client.keys()) == before
        assert client.get(SCHEMA_KEY) == version.encode()
    assert '"config.refused"' in log.getvalue()
    Report(
        "R13",
        "another schema version",
        "the indexer stops with status 78 (`config.refused`) and has written nothing",
    ).tell()

"""S10, indexer and router are of different versions: matches are off, and nothing crashes."""

from __future__ import annotations

import io
import threading
import time

import pytest

from kvatlas.common import limits
from kvatlas.common.keyspace import SCHEMA_KEY, SCHEMA_VERSION
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import EX_CONFIG, run_service
from kvatlas.indexer.app import Indexer
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale, chaos_place, own_redis
from tests.fakes.engines import until

MORE = limits.LOOKUP_FAILURES_MAX + 3


@pytest.mark.parametrize("version", ["99", "2", "spam"])
async def test_s10_an_unknown_schema_is_left_alone(
    version: str, scale: Scale, canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go by load and the log says why; with the version that is known, by prefix."""
    monkeypatch.setattr(limits, "SCHEMA_LOOK_S", 0.05)
    # The indexer, which would stop, does not look meanwhile: it stands for one of another version.
    monkeypatch.setattr("kvatlas.indexer.app.WATCH_S", 60.0)
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        # What one indexer has written is read by routers of another version.
        with place.server.client() as client:
            client.set(SCHEMA_KEY, version)
        await until(lambda: '"index.schema_unknown"' in log.getvalue())
        answer = await place.ask(engine)
        assert (answer.status, answer.fallback, answer.match_tokens) == (200, "lookup:schema", 0)
        for _ in range(MORE):
            assert (await place.ask(engine)).fallback == "lookup:schema"
        assert place.fallbacks("schema") == 1 + MORE
        assert place.fallbacks("paused") == 0, "Redis is not at fault"
        assert place.running.readiness() is None
        with place.server.client() as client:
            client.set(SCHEMA_KEY, SCHEMA_VERSION)
        began = time.monotonic()
        await place.matched()
        took = time.monotonic() - began
        assert log.getvalue().count('"index.schema_unknown"') == 1
    Report(
        "S10", "the index has another schema version",
        "`lookup:schema` fallbacks, `index.schema_unknown`, no status changes", [took],
    ).tell()  # fmt: skip


def test_s10_an_indexer_leaves_an_index_that_becomes_another_s(log: io.StringIO) -> None:
    """It ends with the status of a bad configuration, and writes nothing more."""
    with own_redis() as server, server.client() as client:
        settings = Settings.model_validate({
            "redis": {"url": server.url},
            "models": [{"name": "m", "tokenizer": "-"}],
            "indexer": {"admin_port": 0},
        })  # fmt: skip
        upgrade = threading.Timer(1.0, lambda: client.set(SCHEMA_KEY, "99"))
        upgrade.start()
        assert run_service(lambda stop: Indexer(settings).serve(stop)) == EX_CONFIG
        upgrade.join()
        assert client.get(SCHEMA_KEY) == b"99"
    assert '"indexer.started"' in log.getvalue()
    assert log.getvalue().count('"config.refused"') == 1
    Report(
        "S10",
        "a running indexer's index becomes that of a newer one",
        "it stops with status 78 (`config.refused`)",
    ).tell()

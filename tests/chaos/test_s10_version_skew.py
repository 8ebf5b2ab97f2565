"""S10, indexer and router are of different versions: matches are off, and nothing crashes."""

from __future__ import annotations

import io
import time

import pytest

from kvatlas.common import limits
from kvatlas.common.keyspace import SCHEMA_KEY, SCHEMA_VERSION
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale, chaos_place
from tests.fakes.engines import until


@pytest.mark.parametrize("version", ["99", "2", "spam"])
async def test_s10_an_unknown_schema_is_left_alone(
    version: str, scale: Scale, canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go by load and the log says why; with the version that is known, by prefix."""
    monkeypatch.setattr(limits, "SCHEMA_LOOK_S", 0.05)
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        # What one indexer has written is read by routers of another version.
        with place.server.client() as client:
            client.set(SCHEMA_KEY, version)
        await until(lambda: '"index.schema_unknown"' in log.getvalue())
        answer = await place.ask(engine)
        assert (answer.status, answer.fallback, answer.match_tokens) == (200, "lookup:schema", 0)
        assert place.fallbacks("schema") == 1
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

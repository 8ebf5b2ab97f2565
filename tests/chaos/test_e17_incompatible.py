"""E17, an engine is not what the configuration says: no matches of it, and an alarm."""

from __future__ import annotations

import io
import json

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import PAGE, Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.publisher import CLEARED, stored

OTHER_SIZE = 8


async def test_e17_another_block_size_matches_nothing(
    scale: Scale, canary: Canary, log: io.StringIO
) -> None:
    """Indexer and router both say it; the engine is still sent requests."""
    async with chaos_place(scale, canary) as place:
        engine, other = place.engines[:2]
        assert engine.upstream is not None
        engine.upstream.metrics = PAGE.replace(b'block_size="4"', b'block_size="8"')
        tokens = engine.chat_tokens[: len(engine.chat_tokens) // OTHER_SIZE * OTHER_SIZE]
        hashes = list(range(800, 800 + len(tokens) // OTHER_SIZE))
        salted = [[canary.text], *[None] * (len(hashes) - 1)]
        event = stored(hashes, tokens, block_size=OTHER_SIZE, extra_keys=salted)
        await engine.publisher.publish(CLEARED, event)
        await until(lambda: place.count("kvatlas_indexer_unmatched", endpoint=engine.name) == 1)
        await until(lambda: place.feed(engine).mirror.is_current)
        answers = [await place.ask(engine) for _ in range(5)]
        # One prompt stays where it was; others go elsewhere.
        answers += [await place.ask(engine, f"{n} of {n} questions") for n in range(30)]
        assert {(answer.status, answer.match_tokens) for answer in answers} == {(200, 0)}
        assert engine.name in {answer.endpoint for answer in answers}, "by load it has its share"
        assert await place.is_matched(other)
        await until(lambda: '"endpoint.block_size_differs"' in log.getvalue())
        assert log.getvalue().count('"endpoint.incompatible"') == 1
        assert place.count("kvatlas_indexer_unmatched", endpoint=other.name) == 0
    Report(
        "E17",
        "events and metrics page with blocks of 8 where 4 are configured",
        "no match of it, `endpoint.incompatible` and `endpoint.block_size_differs`, by load",
    ).tell()


async def test_e17_another_model_gets_no_requests(
    scale: Scale, canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lists is believed more than what is configured."""
    monkeypatch.setattr(limits, "MODELS_REFRESH_S", 0.2)
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        assert engine.upstream is not None
        engine.upstream.models = json.dumps({"data": [{"id": "another"}]}).encode()
        await until(lambda: '"endpoint.serves_other_model"' in log.getvalue())
        answers = [await place.ask(engine) for _ in range(20)]
        assert {answer.status for answer in answers} == {200}
        assert engine.name not in {answer.endpoint for answer in answers}
        metric = "kvatlas_router_endpoint_serves_model"
        assert place.count(metric, endpoint=engine.name) == 0
    Report(
        "E17",
        "/v1/models lists another model",
        "no requests, whatever its events say (`endpoint.serves_other_model`)",
    ).tell()

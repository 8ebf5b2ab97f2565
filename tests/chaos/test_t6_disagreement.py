"""T6, an engine tokenizes otherwise: found out before the first match, told, and not believed."""

from __future__ import annotations

import io
import json
from pathlib import Path

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.engines import other_tokenizer, routed, router_settings, simulated

BODY = {"model": "demo", "messages": [{"role": "user", "content": "hello 2.0"}], "max_tokens": 1}


async def test_t6_an_engine_with_another_tokenizer_is_not_believed(
    redis_url: str, canary: Canary, log: io.StringIO, tmp_path: Path
) -> None:
    """Its model goes by load, the log names the endpoint, the gauge says 0.

    What predictions and answers tell later is E5's and tests/contract/test_predictions.py's; that
    handed-over tokens are checked is tests/contract/test_token_handover.py's.
    """
    body = {**BODY, "user": canary.text}
    async with (
        simulated(tokenizer=other_tokenizer(tmp_path)) as url,
        routed(router_settings([url], redis_url)) as (running, client),
    ):
        async with client.post("/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
            fallback = reply.headers["x-kvatlas-fallback"]
        assert fallback == "prompt:tokenizer_differs"
        (endpoint,) = running.endpoints.all()
        labels = {"endpoint": str(endpoint.name)}
        registry = running.metrics.registry
        assert registry.get_sample_value("kvatlas_router_tokenizer_agrees", labels) == 0
        canary.look_at_metrics(registry)
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert "endpoint.tokenizer_differs" in events
    Report("T6", "an engine with another tokenizer", "told, all of its model by load").tell()

"""X4, one tenant spies on another's prompts by their cache: no match, and nothing is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvatlas.router.keys import hash_key
from tests.chaos.conftest import Report
from tests.contract.test_tenants_apart import SECRET, hit
from tests.fakes.canary import Canary
from tests.fakes.place import CHAT, simulated

pytestmark = pytest.mark.usefixtures("patient")

TELLING = ("kvatlas", "endpoint", "match", "score", "cache", "server-timing")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Write the settings of a router for two tenants: their keys are their names."""
    keys, secret = tmp_path / "keys.yaml", tmp_path / "salt"
    entries = [f"{{hash: '{hash_key(name)}', tenant: {name}}}" for name in ("spy", "victim")]
    keys.write_text(f"keys: [{', '.join(entries)}]")
    secret.write_text(SECRET)
    return {"api_keys_file": keys, "tenant_salt_file": secret}


async def test_x4_a_spy_hits_nothing_of_others(
    redis_url: str, canary: Canary, files: dict[str, Any]
) -> None:
    """The same prompt: match 0 and no cached token for the spy, the whole of it for its owner."""
    async with simulated(redis_url, **files) as place:
        assert await hit(place, "victim", user=canary.text) == (0, 0)
        match, cached = await hit(place, "victim")
        assert match == cached > 0
        assert await hit(place, "spy") == (0, 0)
        canary.look_at_metrics(place.running.metrics.registry)
    Report("X4", "another tenant's prompt, word for word", "match 0, cached_tokens 0").tell()


async def test_x4_answers_tell_nothing_by_default(redis_url: str, files: dict[str, Any]) -> None:
    """Without debug_headers no header names an endpoint, a match or a score."""
    async with simulated(redis_url, **files, debug_headers=False) as place:
        key = {"x-api-key": "victim"}
        for _ in range(2):
            url = place.url + "/v1/chat/completions"
            async with place.session.post(url, json=CHAT, headers=key) as reply:
                await reply.read()
                assert reply.status == 200
                names = {name.lower() for name in reply.headers}
            assert not [name for name in names if any(word in name for word in TELLING)]

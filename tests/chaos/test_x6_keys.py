"""X6, API keys: guessed, stolen from logs, or passed on; none of it works."""

from __future__ import annotations

import asyncio
import io
import secrets
from pathlib import Path
from typing import Any

import pytest

from kvatlas.router.keys import hash_key
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import chat, door
from tests.fakes.engines import until

ENGINES_KEY = "the-engines-own-key"


@pytest.fixture
def key() -> str:
    """Give a client's key."""
    return secrets.token_hex(32)


@pytest.fixture
def keys(tmp_path: Path, key: str) -> Path:
    """Write the file: it holds no key."""
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{hash: '{hash_key(key)}', tenant: team-a}}]")
    assert key not in path.read_text()
    return path


async def test_x6_all_who_guess_hear_the_same(
    redis_url: str, canary: Canary, log: io.StringIO, keys: Path, key: str
) -> None:
    """Missing, wrong, nearly right, too long, no UTF-8: one status, one body, no engine asked."""
    guesses = ["", canary.text, key[:-1], key + "0", key.upper() + " ", "x" * 5_000, "\u00e9"]
    bodies = set()
    async with door(redis_url, canary, api_keys_file=keys) as place:
        for guess in guesses:
            for name, value in (("Authorization", f"Bearer {guess}"), ("x-api-key", guess)):
                headers = {"Authorization": "", name: value}
                seen = await place.ask(chat("hello"), **headers)
                assert seen.status == 401, guess
                bodies.add(seen.body)
        assert len(bodies) == 1
        assert place.engine.requests == []
        seen = await place.ask(chat("hello " * 20), Authorization=f"Bearer {key}")
        assert seen.status == 200
    assert key not in log.getvalue()
    assert hash_key(key) not in log.getvalue()
    Report("X6", f"{2 * len(guesses)} guesses of a key", "401, always the same body").tell()


async def test_x6_engines_see_their_own_key_and_no_clients(
    redis_url: str, canary: Canary, keys: Path, key: str, tmp_path: Path
) -> None:
    """The client's key ends here, in whatever header; the engine's is put in its place."""
    (tmp_path / "engine.key").write_text(ENGINES_KEY + "\n")
    options: dict[str, Any] = {"api_keys_file": keys}
    async with door(redis_url, canary, **options) as place:
        (endpoint,) = place.running.endpoints.all()
        endpoint.api_key = ENGINES_KEY
        for headers in ({"Authorization": f"Bearer {key}", "x-api-key": key}, {"x-api-key": key}):
            sent = {"Authorization": "", **headers}
            assert (await place.ask(chat("hello " * 20), **sent)).status == 200
        for exchange in place.engine.requests:
            assert key.encode() not in exchange.head + exchange.body
            assert f"Bearer {ENGINES_KEY}".encode() in exchange.head
    Report("X6", "a client's key in both headers", "engines see their own only").tell()


async def test_x6_a_key_that_is_taken_out_is_refused_soon(
    redis_url: str, canary: Canary, keys: Path, key: str
) -> None:
    """Rotation is by list: the new one works beside the old one, which then goes."""
    fresh = secrets.token_hex(32)
    async with door(redis_url, canary, api_keys_file=keys) as place:

        async def status(which: str) -> int:
            return (await place.ask(chat("hello"), Authorization=f"Bearer {which}")).status

        entries = [f"{{hash: '{hash_key(each)}', tenant: team-a}}" for each in (key, fresh)]
        assert (await status(key), await status(fresh)) == (200, 401)
        await asyncio.to_thread(keys.write_text, f"keys: [{', '.join(entries)}]")
        access = place.running.core.access
        assert access is not None
        await until(lambda: access._ring.find(fresh) is not None)
        assert (await status(key), await status(fresh)) == (200, 200)
        await asyncio.to_thread(keys.write_text, f"keys: [{entries[1]}]")
        await until(lambda: access._ring.find(key) is None)
        assert (await status(key), await status(fresh)) == (401, 200)

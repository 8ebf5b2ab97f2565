"""No prefix, match or cached token crosses tenants (X4)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.errors import ConfigError, InvalidRequest
from kvatlas.router.app import router
from kvatlas.router.body import client_body
from kvatlas.router.keys import hash_key
from kvatlas.router.salts import Salts
from tests.contract.test_proxy import ANSWER, BODY, CHAT, one_engine
from tests.fakes.place import CHAT as LONG
from tests.fakes.place import Place, settings_for, simulated
from tests.fakes.upstream import plain

pytestmark = pytest.mark.usefixtures("patient")

SECRET = "0123456789abcdef" * 2
GUESSES = ("team-a", SECRET, "x")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Write the settings of a router for two tenants: their keys are their names."""
    keys, secret = tmp_path / "keys.yaml", tmp_path / "salt"
    entries = [f"{{hash: '{hash_key(name)}', tenant: {name}}}" for name in ("team-a", "team-b")]
    keys.write_text(f"keys: [{', '.join(entries)}]")
    secret.write_text(SECRET + "\n")
    return {"api_keys_file": keys, "tenant_salt_file": secret}


async def hit(place: Place, tenant: str, **more: Any) -> tuple[int, int]:
    """Send the same chat as a tenant; give its predicted and its actual hit."""
    key = {"x-api-key": tenant}
    async with place.session.post(place.url + CHAT, json={**LONG, **more}, headers=key) as reply:
        told = await reply.json()
        assert reply.status == 200, told
        match = int(reply.headers["x-kvatlas-match-tokens"])
    # What is predicted of a flight lives on for a moment; then only the index speaks.
    await place.settled()
    return match, told["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("token_handover", [False, True])
async def test_the_same_prompt_of_another_tenant_is_another(
    redis_url: str, files: dict[str, Any], *, token_handover: bool
) -> None:
    """Each tenant hits what it sent itself, and nothing else, whatever salt it sends along."""
    async with simulated(redis_url, token_handover=token_handover, **files) as place:
        assert await hit(place, "team-a") == (0, 0)
        match, cached = await hit(place, "team-a")
        assert match == cached > 0
        assert await hit(place, "team-b") == (0, 0)
        assert await hit(place, "team-b") == (match, cached)
        for guess in (*GUESSES, Salts(SECRET).salt("team-a", None)):
            assert await hit(place, "team-b", cache_salt=guess) == (0, 0)
        assert await hit(place, "team-b", cache_salt=GUESSES[0]) == (match, cached)
        assert await hit(place, "team-a", cache_salt=GUESSES[0]) == (0, 0)
        assert [each.samples for each in place.running.metrics.fallbacks.collect()] == [[]]


async def test_predictions_do_not_cross_either(redis_url: str, files: dict[str, Any]) -> None:
    """What one tenant has under way is no match of the other's same prompt at the same time."""
    async with simulated(redis_url, **files) as place:
        sent = [hit(place, tenant) for tenant in ("team-a", "team-b")]
        assert await asyncio.gather(*sent) == [(0, 0), (0, 0)]


async def test_what_the_engine_gets(redis_url: str, files: dict[str, Any]) -> None:
    """One salt, ours, wherever the client hides one; the rest of the body as it was."""
    raw = (
        b'{ "cache_salt": "s", "model":"m", "x" : [1e2], "cache\\u005fsalt":"t",'
        b' "messages": [{"role":"user","content":"hi"}] }'
    )
    plain_raw = b'{ "model":"m", "x" : [1e2], "messages": [{"role":"user","content":"hi"}] '
    salts = Salts(SECRET)
    key = {"x-api-key": "team-a"}
    async with one_engine(plain(ANSWER), redis_url, **files) as (engine, _, client):
        for body, given_salt in ((raw, "t"), (plain_raw + b"}", None)):
            async with client.post(CHAT, data=body, headers=key) as reply:
                assert reply.status == 200
            salt = salts.salt("team-a", given_salt)
            assert engine.requests[-1].body.count(b"salt") == 1
            assert json.loads(engine.requests[-1].body)["cache_salt"] == salt
        assert engine.requests[-1].body == plain_raw + b',"cache_salt":"%s"}' % salt.encode()
        wrongs: list[Any] = [1, "", "s" * 129, ["s"], {}]
        for wrong in wrongs:
            async with client.post(CHAT, json={**BODY, "cache_salt": wrong}, headers=key) as reply:
                assert reply.status == 400
                assert (await reply.json())["error"]["param"] == "cache_salt"
        assert len(engine.requests) == 2
        async with client.post(CHAT, json={**BODY, "cache_salt": None}, headers=key) as reply:
            assert reply.status == 200
        assert json.loads(engine.requests[-1].body)["cache_salt"] == salts.salt("team-a", None)


NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True)
GIVEN = st.none() | st.text(min_size=1, max_size=8)


@given(st.lists(st.tuples(NAMES, GIVEN), min_size=2, max_size=8, unique=True))
def test_salts_never_meet(pairs: list[tuple[str, str | None]]) -> None:
    """Two tenants, or two salts of one, never give the same; another secret gives others."""
    salts, others = Salts(SECRET), Salts(SECRET[1:] + "x")
    made = {salts.salt(*pair) for pair in pairs} | {others.salt(*pair) for pair in pairs}
    assert len(made) == 2 * len(pairs)


def test_fields_say_what_the_body_says() -> None:
    """What is hashed here is what the engine will read."""
    body = client_body(b'{"cache_salt":"s"}', {"cache_salt": "s"})
    salted = Salts(SECRET).salted(body, "a")
    assert json.loads(salted.raw) == salted.fields
    with pytest.raises(InvalidRequest):
        Salts(SECRET).salted(client_body(b'{"cache_salt":1}', {"cache_salt": 1}), "a")


async def test_a_secret_is_a_secret(redis_url: str, files: dict[str, Any]) -> None:
    """A short one does not start a router, nor does one without keys, or a file that is away."""
    files["tenant_salt_file"].write_text(SECRET[1:])
    settings = settings_for("http://127.0.0.1:1", redis_url, **files)
    with pytest.raises(ConfigError, match="is under 32 characters"):
        async with router(settings):
            pass
    files["tenant_salt_file"].unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        async with router(settings):
            pass
    with pytest.raises(ConfigError, match="needs api_keys_file"):
        settings_for("http://127.0.0.1:1", redis_url, tenant_salt_file=files["tenant_salt_file"])

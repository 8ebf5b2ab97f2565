"""API keys at a router's door (X6): who shows none is refused, and no key goes anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest
from redis import Redis
from typer.testing import CliRunner

from kvatlas.cli.main import app
from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.router.app import Running, router
from kvatlas.router.keys import hash_key, read_keys
from tests.contract.test_proxy import ANSWER, BODY, CHAT, one_engine, routed, settings_for
from tests.fakes.upstream import plain, upstream

KEY, OTHER, OFF, NARROW = (f"canary-{name}-key" for name in ("good", "other", "off", "narrow"))


def write(path: Path, *entries: tuple[str, str]) -> Path:
    """Write a file of keys: each key, and what else stands in its entry."""
    lines = [f"- {{hash: '{hash_key(key)}', tenant: team-a{more}}}\n" for key, more in entries]
    path.write_text("keys:\n" + "".join(lines) if lines else "keys: []\n")
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Give a file with keys of every kind."""
    entries = ((KEY, ""), (OFF, ", enabled: false"), (NARROW, ", models: [other]"))
    return write(tmp_path / "keys.yaml", *entries)


def bearer(key: str) -> dict[str, str]:
    """Show a key as OpenAI's SDKs do."""
    return {"Authorization": f"Bearer {key}"}


async def asked(client: aiohttp.ClientSession, headers: dict[str, str]) -> tuple[int, Any]:
    """Ask for a chat; give the status and the error's code."""
    async with client.post(CHAT, json=BODY, headers=headers) as reply:
        return reply.status, (await reply.json()).get("error", {}).get("code")


async def test_who_is_let_in(redis_url: str, keys: Path) -> None:
    """Keys in either header; all others are refused with the same words, and counted."""
    async with one_engine(plain(ANSWER), redis_url, api_keys_file=keys) as (
        engine,
        running,
        client,
    ):
        assert await asked(client, bearer(KEY)) == (200, None)
        assert await asked(client, {"x-api-key": KEY}) == (200, None)
        refusals: list[dict[str, str]] = [{}, bearer("canary-x"), {"x-api-key": hash_key(KEY)}]
        for headers in refusals:
            assert await asked(client, headers) == (401, "invalid_api_key")
        assert await asked(client, bearer(OFF)) == (403, "permission_denied")
        assert await asked(client, bearer(NARROW)) == (403, "permission_denied")
        async with client.get("/v1/models") as reply:
            assert reply.status == 401
        async with client.get("/v1/models", headers=bearer(KEY)) as reply:
            assert reply.status == 200
        async with client.get("/readyz") as reply:
            assert reply.status == 200
        assert len(engine.requests) == 2
        page = generate_latest(running.metrics.registry).decode()
    for reason, count in (("missing", 2), ("unknown", 2), ("disabled", 1), ("model", 1)):
        assert f'kvatlas_router_keys_refused_total{{reason="{reason}"}} {count}.0' in page


async def test_a_refusal_has_the_shape_of_its_path(redis_url: str, keys: Path) -> None:
    """Anthropic's clients read another error than OpenAI's."""
    async with one_engine(plain(ANSWER), redis_url, api_keys_file=keys) as (_, _, client):
        async with client.post("/v1/messages", json=BODY) as reply:
            told = await reply.json()
            assert reply.status == 401
        assert told["type"] == "error"
        assert told["error"]["type"] == "authentication_error"
        async with client.post("/v1/messages", json=BODY, headers=bearer(OFF)) as reply:
            assert (await reply.json())["error"]["type"] == "permission_error"


async def test_a_body_is_not_waited_for(redis_url: str, keys: Path) -> None:
    """Who is refused is so before the body is there."""
    async with one_engine(plain(ANSWER), redis_url, api_keys_file=keys) as (_, running, _):
        session = aiohttp.ClientSession()
        async with session:

            async def never() -> Any:
                yield b"{"
                raise AssertionError("the body was asked for")

            url = f"http://127.0.0.1:{running.port}{CHAT}"
            with_length = {"Content-Length": "1000", **bearer("x"), "Expect": "100-continue"}
            async with session.post(url, data=never(), headers=with_length) as reply:
                assert reply.status == 401


@pytest.mark.parametrize("has_own", [True, False])
async def test_no_key_goes_anywhere(
    redis_url: str,
    keys: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    has_own: bool,
) -> None:
    """Engines get their own key, if any; logs, metrics and Redis get none."""
    own = tmp_path / "engine.key"
    own.write_text("engine-secret\n")
    async with upstream(plain(ANSWER)) as engine:
        settings = settings_for([engine.port], redis_url, api_keys_file=keys)
        if has_own:
            endpoint = settings.endpoints[0].model_copy(update={"api_key_file": own})
            settings = settings.model_copy(update={"endpoints": [endpoint]})
        async with routed(settings) as (running, client):
            both = {**bearer(KEY), "X-Api-Key": KEY}
            assert (await asked(client, both))[0] == 200
            assert (await asked(client, bearer("canary-unknown")))[0] == 401
            page = generate_latest(running.metrics.registry).decode()
        head = engine.requests[0].head.decode().lower()
    assert ("authorization: bearer engine-secret" in head) is has_own
    assert head.count("authorization:") == has_own
    assert "x-api-key" not in head
    told = capsys.readouterr()
    with Redis.from_url(redis_url) as client:
        dump = b"".join(client.dump(key) or b"" for key in client.scan_iter())
    assert "canary" not in f"{head}{page}{told.out}{told.err}{dump!r}"
    assert hash_key(KEY) not in f"{head}{page}{told.out}{told.err}{dump!r}"


async def test_without_a_file_keys_are_the_engines(redis_url: str) -> None:
    """Nobody needs a key, and what clients send passes on."""
    async with one_engine(plain(ANSWER), redis_url) as (engine, _, client):
        assert await asked(client, bearer(KEY)) == (200, None)
        assert f"authorization: bearer {KEY}" in engine.requests[0].head.decode().lower()


def spoil(path: Path) -> None:
    """Leave half of a file."""
    path.write_text("keys: [canary")


def take_away(path: Path) -> None:
    """Leave none."""
    path.unlink()


def good(running: Running) -> bytes:
    """Find what is told of the file."""
    page = generate_latest(running.metrics.registry).splitlines()
    (line,) = (line for line in page if line.startswith(b"kvatlas_router_api_keys_good "))
    return line.split()[1]


async def test_a_changed_file_needs_no_restart(
    redis_url: str, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New keys are let in and old ones refused; a bad file keeps those that were known."""
    monkeypatch.setattr(limits, "API_KEYS_LOOK_S", 0.01)
    async with one_engine(plain(ANSWER), redis_url, api_keys_file=keys) as (_, running, client):

        async def becomes(key: str, status: int) -> None:
            while (await asked(client, bearer(key)))[0] != status:
                pass

        write(keys, (OTHER, ""))
        await becomes(OTHER, 200)
        assert (await asked(client, bearer(KEY)))[0] == 401
        spoil(keys)
        while good(running) != b"0.0":
            await becomes(OTHER, 200)
        take_away(keys)
        await becomes(OTHER, 200)
        write(keys, (KEY, ""))
        await becomes(KEY, 200)
        assert good(running) == b"1.0"
        assert (await asked(client, bearer(OTHER)))[0] == 401
        write(keys)
        await becomes(KEY, 401)


@pytest.mark.parametrize("text", [None, "keys: [{hash: canary}]"])
async def test_a_router_does_not_start_with_a_bad_file(
    redis_url: str, tmp_path: Path, text: str | None
) -> None:
    """And says which file is at fault, not what stands there."""
    file = tmp_path / "keys.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        async with router(settings_for([1], redis_url, api_keys_file=file)):
            pass
    assert str(file) in str(caught.value)
    assert "canary" not in str(caught.value)


def test_hash_key_on_the_command_line(tmp_path: Path) -> None:
    """The line goes to standard output, and of a new key the key to standard error."""
    made = CliRunner().invoke(app, ["hash-key", "team-a"])
    assert made.exit_code == 0
    ring = read_keys(b"keys:\n" + made.stdout.encode())
    client = ring.find(made.stderr.strip())
    assert client is not None
    assert client.tenant == "team-a"
    file = tmp_path / "key"
    file.write_text(f"{KEY}-of-some-length\n")
    again = CliRunner().invoke(app, ["hash-key", "team-a", "--key-file", str(file)])
    assert read_keys(b"keys:\n" + again.stdout.encode()).find(f"{KEY}-of-some-length")
    assert KEY not in again.output

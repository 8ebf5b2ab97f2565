"""Paths that go by load, and all those that lead nowhere (fault C8)."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from kvatlas.common.errors import ConfigError
from kvatlas.common.setting_sections import LoadPath
from kvatlas.common.settings import Settings
from kvatlas.router.paths import TOKENIZE_PATHS
from tests.contract.test_proxy import one_engine, routed, settings_for
from tests.fakes.upstream import plain, upstream

LOAD_PATHS = get_args(LoadPath)
ADMINISTRATIVE = [
    "/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache", "/update_weights", "/pause",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/invocations", "/start_profile",
    "/inference/v1/generate", "/scale_elastic_ep", "/abort_requests", "/server_info", "/load",
    "/metrics", "/version", "/kv_event_sources", "/v1/chat/completions/render", "/docs",
]  # fmt: skip
RAW = b'{ "model":"m","input" : "x", "n":1e2}'
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("path", [*LOAD_PATHS, *TOKENIZE_PATHS])
async def test_a_path_that_is_listed_goes_by_load(redis_url: str, path: str) -> None:
    """Byte for byte, there and back."""
    options = {"tokenize_paths": True, "load_paths": list(LOAD_PATHS)}
    async with (
        upstream(plain(b'{"data" : []}')) as engine,
        routed(settings_for([engine.port], redis_url, **options)) as (_, client),
    ):
        engine.has_tokenize = True
        engine.requests.clear()
        async with client.post(f"{path}?a=b", data=RAW) as reply:
            assert await reply.read() == b'{"data" : []}'
            assert reply.headers["x-kvatlas-fallback"] == "path:no_prompt"
        assert engine.requests[-1].body == RAW
        assert engine.requests[-1].head.startswith(f"POST {path}?a=b HTTP".encode())


def spellings(path: str) -> list[str]:
    """Write a path in ways that some server would take for it."""
    last = path.rindex("/") + 1
    return [
        path,
        path + "/",
        "/" + path,
        path.upper(),
        f"{path[:last]}%{ord(path[last]):02x}{path[last + 1 :]}",
        path.replace("/", "%2f"),
        f"/v1/..{path}",
        f"/v1/%2e%2e{path}",
        f"/v1/chat/completions/../../..{path}",
        f"/v1/chat/completions/%2e%2e/%2E%2e/..{path}",
        f"/v1/models/..%2f..{path}",
        f"/.{path}",
        f"/;{path}",
        f"http://127.0.0.1{path}",
        f"http://127.0.0.1/v1/chat/completions/../../..{path}",
    ]


async def status_of(port: int, method: str, target: str, body: bytes = RAW) -> int:
    """Send a target exactly as it is; give the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("path", [*ADMINISTRATIVE, *TOKENIZE_PATHS, *LOAD_PATHS])
async def test_c8_no_other_path_reaches_an_engine_however_it_is_spelled(
    redis_url: str, path: str
) -> None:
    """404 (405 where it is the list of models that is asked), and the engine hears nothing."""
    async with one_engine(plain(b"{}"), redis_url) as (engine, running, _):
        for target in spellings(path):
            for method in ("POST", "GET", "PUT"):
                told = await status_of(running.port, method, target)
                assert told in (400, 404, 405), (method, target)
        assert engine.requests == []


async def test_c8_spellings_of_a_served_path_are_other_paths(redis_url: str) -> None:
    """But for escapes of single letters, which engines do not get to see."""
    chat = "/v1/chat/completions"
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    async with one_engine(plain(b"{}"), redis_url) as (engine, running, _):
        for target in spellings(chat):
            await status_of(running.port, "POST", target, body)
    assert {each.head.split(b" ", 2)[1] for each in engine.requests} == {chat.encode()}


async def test_a_form_passes_unread(redis_url: str) -> None:
    """With one model it goes there; a header may name it, and ends here."""
    options: dict[str, Any] = {"load_paths": ["/v1/audio/transcriptions"]}
    async with one_engine(plain(b"{}"), redis_url, **options) as (engine, _, client):
        for extra in ({}, {"x-kvatlas-model": "m"}):
            headers = {**FORM_TYPE, **extra}
            path = "/v1/audio/transcriptions"
            async with client.post(path, data=FORM, headers=headers) as reply:
                assert reply.status == 200
        headers = {**FORM_TYPE, "x-kvatlas-model": "other"}
        async with client.post("/v1/audio/transcriptions", data=FORM, headers=headers) as reply:
            assert reply.status == 404
        async with client.post("/v1/chat/completions", data=FORM, headers=FORM_TYPE) as reply:
            assert reply.status == 400
    assert [each.body for each in engine.requests] == [FORM, FORM]
    assert all(b"boundary=b" in each.head for each in engine.requests)
    assert not any(b"x-kvatlas-model" in each.head.lower() for each in engine.requests)


async def test_with_several_models_a_form_must_name_its_own(redis_url: str) -> None:
    """Nothing is guessed. An alias leads there, and leaves the form as it is."""
    async with upstream(plain(b"{}")) as engine:
        base = settings_for([engine.port], redis_url, load_paths=["/v1/audio/translations"])
        one = base.models[0].model_dump() | {"aliases": ["ear"]}
        told = base.model_dump() | {"models": [one, {**one, "name": "n", "aliases": []}]}
        del told["router"]["policy"]
        async with routed(Settings.model_validate(told)) as (_, client):
            path = "/v1/audio/translations"
            async with client.post(path, data=FORM, headers=FORM_TYPE) as reply:
                assert (reply.status, (await reply.json())["error"]["param"]) == (400, "model")
            headers = {**FORM_TYPE, "x-kvatlas-model": "ear"}
            async with client.post(path, data=FORM, headers=headers) as reply:
                assert reply.status == 200
        assert [each.body for each in engine.requests] == [FORM]


def test_no_administrative_path_can_be_configured(redis_url: str) -> None:
    """A fault with its path."""
    for path in ADMINISTRATIVE:
        with pytest.raises(ConfigError, match=r"router\.load_paths\.0"):
            settings_for([1], redis_url, load_paths=[path])

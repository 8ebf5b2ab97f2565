"""A real router that follows pools and their rewrites, from a server over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from kvatlas.common.settings import Settings
from kvatlas.router.app import Running
from tests.contract.test_proxy import CHAT, routed, settings_for
from tests.fakes.api_objects import objective, pod, pool, rewrite, rule
from tests.fakes.api_server import TOKEN, ApiServer, api_server
from tests.fakes.following import until
from tests.fakes.upstream import Upstream, plain, upstream


def kubeconfig(folder: Path, server: ApiServer) -> str:
    """Write one for a server."""
    path = folder / "kubeconfig"
    content = {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server.url}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "demo"}}
        ],
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


@asynccontextmanager
async def ruled(
    server: ApiServer, folder: Path, redis_url: str, **options: Any
) -> AsyncIterator[tuple[Upstream, Running, aiohttp.ClientSession]]:
    """Run a router that follows what is ruled for the pool `qwen`, and an engine."""
    async with upstream(plain(b'{"model":"m"}')) as engine:
        plainly = settings_for([engine.port], redis_url, **options).model_dump(exclude_unset=True)
        place = {"kind": "inference-pool", "name": "qwen"}
        more = {"discovery": [place], "kubernetes": {"kubeconfig": kubeconfig(folder, server)}}
        async with routed(Settings.model_validate(plainly | more)) as (running, client):
            yield engine, running, client


async def asked(client: aiohttp.ClientSession, model: str) -> tuple[int, dict[str, Any]]:
    """Ask for a model."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    async with client.post(CHAT, json=body) as reply:
        return reply.status, await reply.json()


async def test_rewrites_of_the_cluster_are_followed(redis_url: str, tmp_path: Path) -> None:
    """Known when the router is ready, listed, changed and gone; those of the configuration win."""
    async with api_server() as server:
        given = rewrite("r", "qwen", [rule(("chat", "mine"), m=None)])
        server.put(given, objective("gold", "qwen", 10))
        async with ruled(server, tmp_path, redis_url, rewrites={"mine": {"m": 1}}) as (
            engine,
            running,
            client,
        ):
            assert await asked(client, "chat") == (200, {"model": "chat"})
            assert json.loads(engine.requests[0].body)["model"] == "m"
            async with client.get("/v1/models") as reply:
                names = {entry["id"] for entry in (await reply.json())["data"]}
            assert names == {"m", "chat", "mine"}
            rules = running.cores.current.rules
            assert rules.current.priority("gold") == 10

            server.put(rewrite("r", "qwen", [rule(("chat", "mine"), nowhere=None)]))
            await until(lambda: rules.current.rewrite("chat", 0.0) == "nowhere")
            status, said = await asked(client, "chat")
            assert (status, said["error"]["code"]) == (404, "model_not_found")
            assert "no engine serves" in said["error"]["message"]
            assert "nowhere" not in said["error"]["message"]
            assert (await asked(client, "mine"))[0] == 200
            unserved = running.metrics.rewrites_unserved.labels("nowhere")
            assert unserved.value == 1

            server.delete(given)
            await until(lambda: not rules.current.exact)
            assert (await asked(client, "chat"))[0] == 404
            assert unserved.value == 1


async def test_a_rule_for_every_name_takes_no_names_into_metrics(
    redis_url: str, tmp_path: Path
) -> None:
    """A client's word is no label."""
    async with api_server() as server:
        server.put(rewrite("r", "qwen", [rule((), m=None)]))
        async with ruled(server, tmp_path, redis_url) as (_, running, client):
            for name in ("a", "b", "c"):
                assert await asked(client, name) == (200, {"model": name})
            assert set(running.metrics.rewrites._children) == {("*", "m")}


async def test_a_router_without_the_right_to_read_rules_serves(
    redis_url: str, tmp_path: Path
) -> None:
    """It is ready a little later, and names stay as they are."""
    async with api_server() as server:
        server.faults.denied = {"inferenceobjectives", "inferencemodelrewrites"}
        async with ruled(server, tmp_path, redis_url, probe_wait_s=0.3) as (_, running, client):
            await until(lambda: running.readiness() is None)
            assert (await asked(client, "m"))[0] == 200


async def test_requests_go_to_the_pods_of_a_pool(redis_url: str, tmp_path: Path) -> None:
    """While they are ready; from the moment on that one terminates, to nobody there."""
    async with api_server() as server, upstream(plain(b'{"model":"m"}')) as engine:
        qwen, one = pool("qwen", ports=(engine.port,)), pod("a", "127.0.0.1")
        server.put(qwen, one)
        plainly = settings_for([], redis_url).model_dump(exclude_unset=True)
        place = {"kind": "inference-pool", "name": "qwen", "events_port": None}
        more = {"discovery": [place], "kubernetes": {"kubeconfig": kubeconfig(tmp_path, server)}}
        async with routed(Settings.model_validate(plainly | more)) as (running, client):
            assert await asked(client, "m") == (200, {"model": "m"})
            [endpoint] = running.endpoints.all()
            assert endpoint.labels["kvatlas.dev/pool"] == "demo/qwen"
            stamp = "2026-08-03T10:00:00Z"
            server.edit(one, lambda it: it["metadata"].update(deletionTimestamp=stamp))
            await until(lambda: not list(running.endpoints.all()))
            assert (await asked(client, "m"))[0] == 503
            server.put(pod("b", "127.0.0.1"))
            await until(lambda: bool(list(running.endpoints.all())))
            assert (await asked(client, "m"))[0] == 200
        assert len(engine.requests) == 2

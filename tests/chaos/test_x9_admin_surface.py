"""X9, the admin surface is looked for on the public port: it is on another one, for operators."""

from __future__ import annotations

import aiohttp
import pytest
from yarl import URL

from deploy.kube.needs import OTHERS
from deploy.kube.network import flows
from deploy.kube.render import K8S, raw_documents
from kvatlas.common.settings import Settings
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import chat, door

ADMIN = (
    "/metrics",
    "/healthz",
    "/explain",
    "/debug",
    "/debug/pprof",
    "/config",
    "/admin",
    "/pprof",
)
ENGINES = (
    "/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache", "/update_weights",
    "/load_lora_adapter", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/invocations",
    "/tokenize", "/detokenize", "/server_info", "/start_profile", "/pause", "/is_sleeping",
    "/v1/chat/completions/render", "/abort_requests", "/init_weights_update_group", "/docs",
)  # fmt: skip
SPELLINGS = ("{}", "{}/", "/{}", "/v1/..{}", "/v1/%2e%2e{}", "/./{}", "{}?x=1", "{};x")


@pytest.mark.parametrize("path", [*ADMIN, *ENGINES])
async def test_x9_neither_ours_nor_engines(redis_url: str, canary: Canary, path: str) -> None:
    """404 or 405 on the public port, however it is spelled; no engine hears of it."""
    async with door(redis_url, canary) as place:
        port = place.running.port
        async with aiohttp.ClientSession(requote_redirect_url=False) as client:
            for spelled in (each.format(path) for each in SPELLINGS):
                # Else the client would write the path anew.
                url = URL(f"http://127.0.0.1:{port}{spelled}", encoded=True)
                for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                    async with client.request(method, url, json=chat("x")) as reply:
                        assert reply.status in {400, 404, 405}, (method, spelled)
        assert place.engine.requests == []


async def test_x9_the_admin_port_serves_no_clients(redis_url: str, canary: Canary) -> None:
    """It has health, metrics and explanations, and leads to no engine."""
    async with door(redis_url, canary) as place:
        base = f"http://127.0.0.1:{place.running.admin_port}"
        async with aiohttp.ClientSession(base) as client:
            async with client.get("/metrics") as reply:
                assert reply.status == 200
            async with client.post("/v1/chat/completions", json=chat("x")) as reply:
                assert reply.status == 404
        assert place.running.admin_port != place.running.port
        assert place.engine.requests == []
    Report("X9", "admin paths on the public port, in 8 spellings", "404; another port").tell()


def test_x9_it_is_private_by_default() -> None:
    """Loopback by default, and in Kubernetes for what is labelled as monitoring alone."""
    settings = Settings.model_validate({})
    assert settings.router.admin_host == settings.indexer.admin_host == "127.0.0.1"
    for mode in ("standalone", "gateway"):
        documents = raw_documents(K8S / "overlays" / mode)
        flows_there = flows(documents, OTHERS)
        for name in ("router", "picker", "indexer"):
            reached_by = {flow.source for flow in flows_there if flow[1:] == (name, "admin")}
            assert reached_by <= {"monitoring", "doctor"}
        for service in (each for each in documents if each["kind"] == "Service"):
            targets = {port["targetPort"] for port in service["spec"]["ports"]}
            # Clients' Service has no way to it, and none is reached from outside of the cluster.
            assert not targets >= {"admin", "http"}
            assert service["spec"].get("type", "ClusterIP") == "ClusterIP"

"""Endpoints of pods and pools, and what rules them, from a server over real HTTP."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from kvatlas.common import limits
from kvatlas.common.discovery.inference_pool import PoolSource
from kvatlas.common.discovery.pods import PodsSource
from kvatlas.common.discovery.source import EndpointSource
from kvatlas.common.discovery_settings import KubernetesSettings, PodsDiscovery, PoolDiscovery
from kvatlas.common.kube.access import find_access
from kvatlas.common.kube.client import KubeClient
from kvatlas.common.kube.rules_watch import RulesWatch
from kvatlas.common.kube.watch import Api
from kvatlas.common.settings import EndpointSettings
from tests.fakes.api_objects import legacy_pool, objective, pod, pool, rewrite, rule
from tests.fakes.api_server import TOKEN, ApiServer, api_server
from tests.fakes.authority import LOCALHOST, Authority
from tests.fakes.following import KubeMetrics, following, running, until

ACTIVE = "llm-d.ai/active-ports"


class Told:
    """What a source tells."""

    def __init__(self) -> None:
        self.times = 0
        self.endpoints: Sequence[EndpointSettings] = []

    def __call__(self, endpoints: Sequence[EndpointSettings]) -> None:
        """Take what is told."""
        self.times += 1
        self.endpoints = endpoints

    @property
    def urls(self) -> list[str]:
        """Give the addresses that are known, without their scheme."""
        return sorted(each.host_port for each in self.endpoints)


@asynccontextmanager
async def telling(source: EndpointSource, by: Api) -> AsyncIterator[Told]:
    """Run a source, and wait until it has told something."""
    told = Told()
    async with running(source.run(told), by):
        await until(lambda: told.times > 0)
        yield told


def of_pods(**more: Any) -> PodsDiscovery:
    """Make a place of pods."""
    return PodsDiscovery.model_validate({"kind": "pods", "selector": "app in (vllm)", **more})


def of_pool(**more: Any) -> PoolDiscovery:
    """Make a place of the pool `qwen`."""
    return PoolDiscovery.model_validate({"kind": "inference-pool", "name": "qwen", **more})


async def test_ready_pods_are_endpoints() -> None:
    """With their event ports and labels; the others when they become ready."""
    async with api_server() as server:
        server.put(pod("a", "10.0.0.1", labels={"llm-d.ai/role": "decode"}))
        server.put(pod("b", "10.0.0.2", ready=False), pod("c", None))
        server.put(pod("d", "10.0.0.4", labels={"app": "other"}))
        by = following(server)
        settings = of_pods(labels={"fleet": "blue"}, replay_port=5600)
        async with telling(PodsSource(by, settings), by) as told:
            assert told.urls == ["10.0.0.1:8000"]
            found = told.endpoints[0]
            assert (found.events, found.replay) == ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5600")
            assert (found.model, found.url) == ("", "http://10.0.0.1:8000")
            assert found.labels == {
                "fleet": "blue",
                "kvatlas.dev/pod": "demo/a",
                "llm-d.ai/role": "decode",
                "app": "vllm",
                "pod-template-hash": "6d4cf56db6",
            }
            server.put(pod("b", "10.0.0.2"))
            await until(lambda: len(told.endpoints) == 2)
            assert told.endpoints[0] is found


async def test_an_address_that_two_pods_have_is_the_younger_ones() -> None:
    """As for a moment when an address is given away again."""
    async with api_server() as server:
        server.put(pod("old", "10.0.0.1", created="2026-08-03T09:00:00Z"))
        server.put(pod("new", "10.0.0.1", created="2026-08-03T10:00:00Z"))
        by = following(server)
        async with telling(PodsSource(by, of_pods()), by) as told:
            assert [each.labels["kvatlas.dev/pod"] for each in told.endpoints] == ["demo/new"]


async def test_annotations_override_and_what_cannot_be_read_is_said_once() -> None:
    """Whatever else changes about the pod."""
    odd = {"kvatlas.dev/events-port": "5557x", "kvatlas.dev/model": ""}
    good = {"kvatlas.dev/events-port": "6000", "kvatlas.dev/model": "m"}
    async with api_server() as server:
        server.put(pod("a", "10.0.0.1", annotations=odd), pod("b", "10.0.0.2", annotations=good))
        server.put(pod("c", "10.0.0.3", annotations={"kvatlas.dev/events-port": "none"}))
        metrics = KubeMetrics()
        by = following(server, metrics)
        with capture_logs() as logs:
            async with telling(PodsSource(by, of_pods()), by) as told:
                assert [(each.events, each.replay, each.model) for each in told.endpoints] == [
                    ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558", ""),
                    ("tcp://10.0.0.2:6000", "tcp://10.0.0.2:5558", "m"),
                    (None, None, ""),
                ]
                server.put(pod("a", "10.0.0.9", annotations=odd))
                await until(lambda: "10.0.0.9:8000" in told.urls)
        said = [line for line in logs if line["event"] == "pod.annotation_ignored"]
        assert {line["annotation"] for line in said} == set(odd)
        assert len(said) == 2
        name = "pods (app in (vllm))"
        assert metrics.kube_ignored.labels(name, "annotation").value == 2


async def test_a_pool_with_several_ports_has_an_endpoint_for_each_rank() -> None:
    """Each an event port higher; those that are not active are none, but keep their place."""
    async with api_server() as server:
        server.put(pool("qwen", ports=(8000, 8001, 8002)))
        server.put(pod("a", "10.0.0.1"), pod("b", "fd00::2", annotations={ACTIVE: "8002"}))
        by = following(server)
        async with telling(PoolSource(by, of_pool()), by) as told:
            assert {each.url: each.events for each in told.endpoints} == {
                "http://10.0.0.1:8000": "tcp://10.0.0.1:5557",
                "http://10.0.0.1:8001": "tcp://10.0.0.1:5558",
                "http://10.0.0.1:8002": "tcp://10.0.0.1:5559",
                "http://[fd00::2]:8002": "tcp://[fd00::2]:5559",
            }
            assert {each.labels["kvatlas.dev/pool"] for each in told.endpoints} == {"demo/qwen"}
            server.edit(pod("b", ""), lambda it: it["metadata"]["annotations"].pop(ACTIVE))
            await until(lambda: len(told.endpoints) == 6)


async def test_a_pool_that_changes_is_followed_at_once() -> None:
    """Its ports, its selector; deleted it has no endpoints, and created again it has them."""
    qwen = pool("qwen")
    async with api_server() as server:
        server.put(qwen, pod("a", "10.0.0.1"), pod("b", "10.0.0.2", labels={"app": "other"}))
        server.put(pool("another", labels={"app": "other"}))
        by = following(server)
        async with telling(PoolSource(by, of_pool()), by) as told:
            assert told.urls == ["10.0.0.1:8000"]
            server.put(pool("qwen", ports=(9000,)))
            assert await until(lambda: told.urls == ["10.0.0.1:9000"]) < 1
            server.put(pool("qwen", labels={"app": "other"}))
            assert await until(lambda: told.urls == ["10.0.0.2:8000"]) < 1
            server.delete(qwen)
            assert await until(lambda: told.urls == []) < 1
            server.put(qwen)
            await until(lambda: told.urls == ["10.0.0.1:8000"])


async def test_a_pool_whose_selector_changes_keeps_its_endpoints_meanwhile() -> None:
    """Until the pods that it selects now have been listed, however long that takes."""
    async with api_server() as server:
        server.put(pool("qwen"), pod("a", "10.0.0.1"), pod("b", "10.0.0.2", labels={"app": "b"}))
        by = following(server)
        async with telling(PoolSource(by, of_pool()), by) as told:
            server.faults.denied = {"pods"}
            server.put(pool("qwen", labels={"app": "b"}))
            await until(lambda: any(q.get("labelSelector") == "app=b" for _, q in server.asked))
            await asyncio.sleep(0.1)
            assert told.urls == ["10.0.0.1:8000"]
            server.faults.denied = set()
            await until(lambda: told.urls == ["10.0.0.2:8000"])


async def test_a_source_tells_what_is_wrong_with_it() -> None:
    """While it is: of the pool, then of its pods, with the rule that a Role must have."""
    async with api_server() as server:
        server.put(pool("qwen"), pod("a", "10.0.0.1"))
        server.faults.denied = {"pods"}
        by = following(server)
        source = PoolSource(by, of_pool())
        assert not source.faults
        told = Told()
        async with running(source.run(told), by):
            await until(lambda: bool(source.faults))
            assert source.faults[0].startswith("pods qwen: forbidden: pods is forbidden: User ")
            assert source.faults[0].endswith(
                'resources: ["pods"], verbs: ["get", "list", "watch"]}'
            )
            server.faults.denied = set()
            await until(lambda: bool(told.endpoints))
            await until(lambda: not source.faults)


async def test_a_pool_of_the_old_group_is_one_too() -> None:
    """With a map for a selector, and one port."""
    async with api_server() as server:
        server.put(legacy_pool("qwen", port=8010), pod("a", "10.0.0.1"))
        by = following(server)
        settings = of_pool(group="inference.networking.x-k8s.io", scheme="https")
        async with telling(PoolSource(by, settings), by) as told:
            await until(lambda: told.urls == ["10.0.0.1:8010"])
            assert told.endpoints[0].url.startswith("https:")


async def test_a_pool_that_is_not_there_has_no_endpoints() -> None:
    """Be it the object or the type that is missing."""
    async with api_server() as server:
        by = following(server)
        async with telling(PoolSource(by, of_pool()), by) as told:
            assert told.urls == []
        server.uninstall(("inference.networking.k8s.io/v1", "inferencepools"))
        by = following(server)
        async with telling(PoolSource(by, of_pool()), by) as told:
            assert told.urls == []


async def test_a_pool_asks_for_no_more_than_itself_and_its_pods() -> None:
    """So that a Role may name the one pool."""
    async with api_server() as server:
        server.put(pool("qwen"), pod("a", "10.0.0.1"))
        by = following(server)
        async with telling(PoolSource(by, of_pool(namespace="demo")), by):
            asked = {(path, query.get("fieldSelector")) for path, query in server.asked}
    assert asked == {
        (
            "/apis/inference.networking.k8s.io/v1/namespaces/demo/inferencepools",
            "metadata.name=qwen",
        ),
        ("/api/v1/namespaces/demo/pods", None),
    }


# --- what rules pools -----------------------------------------------------------------------------


async def test_rules_of_both_groups_and_several_pools_count_together() -> None:
    """Those of other pools, or of a group that is not installed, do not."""
    old = "inference.networking.x-k8s.io"
    async with api_server() as server:
        server.uninstall((f"{old}/v1alpha2", "inferencemodelrewrites"))
        server.put(objective("gold", "qwen", 10), objective("free", "llama", -1, group=old))
        server.put(objective("plain", "qwen", None), objective("other", "elsewhere", 5))
        server.put(rewrite("r", "llama", [rule(("chat",), llama=None)]))
        by = following(server)
        watch = RulesWatch(by, [of_pool(), of_pool(name="llama")])
        async with running(watch.run(), by):
            await until(watch.is_known)
            rules = watch.current
            names = ("gold", "free", "plain", "other", "none")
            assert [rules.priority(name) for name in names] == [10, -1, 0, None, None]
            assert [rules.rewrite(name, 0.5) for name in ("chat", "x")] == ["llama", None]
            server.put(objective("gold", "qwen", 11))
            await until(lambda: watch.current.priority("gold") == 11)
            server.delete(objective("gold", "qwen", 11))
            await until(lambda: watch.current.priority("gold") is None)
            assert rules.priority("gold") == 10


# --- who we are -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make the cluster's CA."""
    return Authority(tmp_path_factory.mktemp("cluster"), "cluster")


@asynccontextmanager
async def secure_server(authority: Authority) -> AsyncIterator[ApiServer]:
    """Run a server with a certificate."""
    cert, key = authority.issue("api", LOCALHOST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with api_server(context) as server:
        server.put(pod("a", "10.0.0.1"))
        yield server


def service_account(folder: Path, authority: Authority) -> Path:
    """Write what a pod finds of its service account."""
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text("demo")
    (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
    return folder


async def test_a_pod_asks_with_its_own_token_which_is_renewed(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS with the cluster's CA; in its own namespace."""
    monkeypatch.setattr(limits, "KUBE_DENIED_PAUSE_S", 0.05)
    account = service_account(tmp_path, authority)
    async with secure_server(authority) as server:
        environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(server.port),
        }
        client = KubeClient(lambda: find_access(KubernetesSettings(), account, environment))
        metrics = KubeMetrics()
        by = Api(client, metrics, 300.0, lambda: 0.5)
        async with telling(PodsSource(by, of_pods()), by) as told:
            assert told.urls == ["10.0.0.1:8000"]
            server.token = "another"  # noqa: S105 - of no server but this
            server.tear()
            server.put(pod("b", "10.0.0.2"))
            await until(lambda: "unauthorized" in metrics.failures())
            (tmp_path / "token").write_text("another\n")
            await until(lambda: len(told.endpoints) == 2)
            # Another CA: connections are made anew, and what it did not sign is not believed.
            other = Authority(tmp_path, "other")
            (tmp_path / "ca.crt").write_bytes(other.ca.read_bytes())
            monkeypatch.setattr(limits, "KUBE_CREDENTIALS_S", 0.0)
            server.tear()
            await until(lambda: "tls" in metrics.failures())
            assert len(told.endpoints) == 2


async def test_a_kubeconfig_says_where_and_who_by_its_context(
    authority: Authority, tmp_path: Path
) -> None:
    """With a namespace of its own; the current context is another one."""
    async with secure_server(authority) as server:
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(kubeconfig(server.url, authority)))
        settings = KubernetesSettings(kubeconfig=path, context="test")
        by = Api(KubeClient.of(settings), KubeMetrics(), 300.0, lambda: 0.5)
        async with telling(PodsSource(by, of_pods()), by) as told:
            assert told.urls == ["10.0.0.1:8000"]
        assert server.asked[0][0] == "/api/v1/namespaces/demo/pods"


def kubeconfig(url: str, authority: Authority) -> dict[str, Any]:
    """Make a kubeconfig with two contexts."""
    cluster = {"server": url, "certificate-authority": str(authority.ca)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "prod",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [
            {"name": "u", "user": {"token": TOKEN}},
            {"name": "nobody", "user": {"token": "x"}},
        ],
        "contexts": [
            {"name": "prod", "context": {"cluster": "c", "user": "nobody"}},
            {"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "demo"}},
        ],
    }


@pytest.mark.parametrize(
    ("written", "context", "said"),
    [
        (None, None, "No such file"),
        ("clusters: [", None, "config"),
        ("{}", "none", "config"),
        ("contexts: []\nclusters: []\nusers: []", "none", "none"),
    ],
)
async def test_a_kubeconfig_that_cannot_be_used_is_said(
    tmp_path: Path, written: str | None, context: str | None, said: str
) -> None:
    """And read again: somebody may mend it."""
    path = tmp_path / "config"
    if written is not None:
        path.write_text(written)
    settings = KubernetesSettings(kubeconfig=path, context=context)
    by = Api(KubeClient.of(settings), KubeMetrics(), 300.0, lambda: 0.5)
    source = PodsSource(by, of_pods())
    with capture_logs() as logs:
        async with running(source.run(Told()), by):
            await until(lambda: any(line["event"] == "kubernetes.failed" for line in logs))
    assert (logs[0]["reason"], said in logs[0]["message"]) == ("credentials", True)


async def test_outside_of_a_pod_without_a_file_that_is_said() -> None:
    """With the setting to use."""
    by = Api(
        KubeClient(lambda: find_access(KubernetesSettings(), environment={})),
        KubeMetrics(),
        300.0,
        lambda: 0.5,
    )
    with capture_logs() as logs:
        async with running(PodsSource(by, of_pods()).run(Told()), by):
            await until(lambda: bool(logs))
    assert "kubernetes.kubeconfig" in logs[0]["message"]

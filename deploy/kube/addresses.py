"""Addresses in a configuration must be those of pods and Services that there are. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from deploy.kube.documents import (
    Document,
    name_of,
    named,
    of_kind,
    ports,
    selected,
    title,
)
from kvatlas.common.discovery_settings import AnyDiscovery, PodsDiscovery, PoolDiscovery
from kvatlas.common.settings import Settings


def address_faults(documents: list[Document], settings: Settings) -> Iterator[str]:
    """List addresses that lead nowhere, and engines that nobody would find."""
    yield from _redis_faults(documents, settings)
    yield from _endpoint_faults(documents, settings)
    for number, discovery in enumerate(settings.discovery):
        faults = _discovery_faults(documents, discovery)
        yield from (f"discovery.{number}: {fault}" for fault in faults)
    yield from _rewrite_faults(documents, settings)


def _hosts(documents: list[Document]) -> dict[str, Document]:
    """Give who answers to each name: Services, and pods of stateful sets."""
    pods = {
        f"{owner['metadata']['name']}-{number}.{owner['spec']['serviceName']}": owner
        for owner in of_kind(documents, "StatefulSet")
        for number in range(owner["spec"]["replicas"])
    }
    services = {
        service["metadata"]["name"]: selected(
            documents, {"matchLabels": service["spec"]["selector"]}
        )
        for service in of_kind(documents, "Service")
    }
    return pods | {name: targets[0] for name, targets in services.items() if targets}


def _redis_faults(documents: list[Document], settings: Settings) -> Iterator[str]:
    redis, hosts = settings.redis, _hosts(documents)
    if redis.mode == "sentinel":
        asked = redis.sentinels
    else:
        asked = [f"{urlsplit(redis.url).hostname}:{urlsplit(redis.url).port}", *redis.nodes]
    for each in asked:
        host, _, port = each.rpartition(":")
        # A name with a domain is not of this namespace.
        is_ours = "." not in host or host in hosts or host.split(".")[1] in hosts
        if is_ours and int(port) not in (ports(hosts[host]) if host in hosts else {}).values():
            yield f"redis: there is no {each}"


def _endpoint_faults(documents: list[Document], settings: Settings) -> Iterator[str]:
    hosts = _hosts(documents)
    if settings.endpoints:
        configured = {urlsplit(endpoint.url).hostname for endpoint in settings.endpoints}
        engines = {host for host, owner in hosts.items() if name_of(owner) == "engine"}
        missed = {host for host in engines if "." in host} - configured
        yield from (f"endpoints: {name} is not configured" for name in sorted(missed))
    for endpoint in settings.endpoints:
        urls = {"http": endpoint.url, "events": endpoint.events, "replay": endpoint.replay}
        for name, url in urls.items():
            parts = urlsplit(url or "")
            owner = hosts.get(parts.hostname or "")
            if owner is None:
                yield f"endpoints: there is no pod {parts.hostname}"
            elif ports(owner).get(name) != parts.port:
                yield f"endpoints: {parts.hostname} does not serve {name} on {parts.port}"


def _discovery_faults(documents: list[Document], discovery: AnyDiscovery) -> Iterator[str]:
    engines: list[Document] = []
    wanted = {"events": discovery.events_port, "replay": discovery.replay_port}
    if isinstance(discovery, PoolDiscovery):
        pool = named(documents, "InferencePool", discovery.name)
        if pool is None:
            yield f"there is no InferencePool {discovery.name}"
            return
        engines = selected(documents, pool["spec"]["selector"])
    elif isinstance(discovery, PodsDiscovery):
        key, _, value = discovery.selector.partition("=")
        engines = selected(documents, {"matchLabels": {key: value}})
        wanted["http"] = discovery.ports[0]
    if not engines:
        yield "finds nothing"
    for engine in engines:
        for name, port in wanted.items():
            if ports(engine).get(name) != port:
                yield f"{title(engine)} does not serve {name} on {port}"


def _rewrite_faults(documents: list[Document], settings: Settings) -> Iterator[str]:
    models = {model.name for model in settings.models}
    for rewrite in of_kind(documents, "InferenceModelRewrite"):
        for rule in rewrite["spec"]["rules"]:
            for target in rule["targets"]:
                if target["modelRewrite"] not in models:
                    yield f"{title(rewrite)}: {target['modelRewrite']} is not one of models"

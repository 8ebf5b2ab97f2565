"""All that is compared: how each router is started on a site, and which processes it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.routing import peers
from bench.routing.site import Site, await_ok, kvatlas
from kvatlas.cli.redis_server import running_redis
from kvatlas.router.scheduling.build import short_form

PREFIX_IDS = 2
"""Ids of the trace that the consistent hash looks at: all prompts share the first one."""
CHARS_PER_WORD_MIN = 3.9


@dataclass(frozen=True, slots=True)
class Route:
    """A router that runs.

    Attributes:
        urls: where requests go, each to one of them.
        pids: processes that requests pass through.
        shared_pids: what these share: the indexer and Redis.
    """

    urls: list[str]
    pids: list[int]
    shared_pids: list[int]


Start = Callable[[contextlib.ExitStack, Site], Route]


@contextlib.contextmanager
def running_router(name: str, site: Site) -> Iterator[Route]:
    """Run a router on engines until the context ends.

    Raises:
        BenchError: it does not install, start, or live as long.
    """
    with contextlib.ExitStack() as stack:
        yield ROUTERS[name](stack, site)


def _kvatlas(stack: contextlib.ExitStack, site: Site, *, routers: int, policy: str | None) -> Route:
    # The default profile, with what it believes of engines scaled as these are: they compute fewer
    # tokens in a step, and all time runs faster.
    scaled = {
        "stepTokens": int(site.model.step_tokens / site.model.factor),
        "decodeMs": 2.0 / site.model.time_scale,
    }
    profile = short_form("cost-scorer", "max-score-picker", **scaled)
    options: dict[str, Any] = {"profile": profile} if policy is None else {"policy": policy}
    return kvatlas_route(stack, site, {"router": options}, routers)


def kvatlas_route(
    stack: contextlib.ExitStack, site: Site, settings: Mapping[str, Any], routers: int = 1
) -> Route:
    """Start Redis, an indexer and routers with these sections of a configuration."""
    config, shared = indexed(stack, site, settings)
    urls, pids, admin_ports = [], [], []
    for number in range(1, routers + 1):
        port, admin_port = site.ports.take(), site.ports.take()
        command = kvatlas(
            *("router", "--config", config),
            *("--port", str(port), "--admin-port", str(admin_port)),
        )
        pids.append(site.start(stack, f"router{number}", command)[0])
        urls.append(f"http://127.0.0.1:{port}")
        admin_ports.append(admin_port)
    for admin_port in admin_ports:
        await_ok(admin_port, "/readyz", "a router")
    return Route(urls, pids, shared)


def indexed(
    stack: contextlib.ExitStack, site: Site, settings: Mapping[str, Any]
) -> tuple[str, list[int]]:
    """Start Redis and an indexer; give the file with the configuration, and both processes."""
    redis = stack.enter_context(running_redis(site.folder))
    indexer_port = site.ports.take()
    sections = {
        **settings,
        "redis": {"url": redis.url},
        "router": {"pre_stop_s": 0.0, "drain_s": 1.0, **settings.get("router", {})},
        "indexer": {"admin_port": indexer_port},
    }
    config = str(site.config("kvatlas", sections))
    indexer, _ = site.start(stack, "indexer", kvatlas("indexer", "--config", config))
    await_ok(indexer_port, "/readyz", "the indexer")
    return config, [indexer, redis.pid]


def _consistent_hash(stack: contextlib.ExitStack, site: Site) -> Route:
    port = site.ports.take()
    # Within the first ids whatever words they are made of.
    chars = int(PREFIX_IDS * 512 / site.model.factor * CHARS_PER_WORD_MIN)
    command = [
        *(sys.executable, "-m", "bench.routing.hash_proxy", "--port", str(port)),
        *("--prefix-chars", str(chars), *(engine.url for engine in site.engines)),
    ]
    pid, _ = site.start(stack, "hash_proxy", command)
    await_ok(port, "/readyz", "the hash proxy")
    return Route([f"http://127.0.0.1:{port}"], [pid], [])


def _peer(
    start: Callable[[contextlib.ExitStack, Site], tuple[int, int]],
    stack: contextlib.ExitStack,
    site: Site,
) -> Route:
    port, pid = start(stack, site)
    return Route([f"http://127.0.0.1:{port}"], [pid], [])


ROUTERS: dict[str, Start] = {
    "kvatlas-1": partial(_kvatlas, routers=1, policy=None),
    "kvatlas-3": partial(_kvatlas, routers=3, policy=None),
    "round-robin": partial(_kvatlas, routers=1, policy="round-robin"),
    "least-load": partial(_kvatlas, routers=1, policy="least-load"),
    "consistent-hash": _consistent_hash,
    "smg": partial(_peer, peers.smg),
    "vllm-router-cache-aware": partial(_peer, partial(peers.vllm_router, policy="cache_aware")),
    "vllm-router-kv-aware": partial(_peer, peers.vllm_router_kv_aware),
}
NOT_TO_BE_HAD = {
    "production-stack": (
        "no package of it in the index: all versions of vllm-router there are the Rust project's"
    )
}

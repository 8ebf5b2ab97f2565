"""What `kvatlas doctor` asks Redis, indexers and routers. It changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from kvatlas.cli.doctor_facts import PageFound, RedisFound, RenderFound, Samples
from kvatlas.common import limits
from kvatlas.common.engine_client import Asked, Silence, ask
from kvatlas.common.errors import IndexUnavailable, PromptUnavailable
from kvatlas.common.keyspace import MODELS_KEY, SCHEMA_KEY
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH
from kvatlas.common.redis_client import connect, guard
from kvatlas.common.settings import RedisSettings, Settings
from kvatlas.common.tls_engines import PLAIN, EngineIdentities, EngineTls
from kvatlas.router.engine_answers import read_json
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.render_service import RenderServices

_RENDERED: Final[dict[str, dict[str, Any]]] = {
    COMPLETIONS_PATH: {"prompt": "a"},
    CHAT_PATH: {"messages": [{"role": "user", "content": "a"}]},
}
REDIS_OPTIONS: Final = ("maxmemory-policy", "hash-max-listpack-*", "hash-max-ziplist-*")


# --- Redis --------------------------------------------------------------------------------------


async def ask_redis(redis: RedisSettings) -> RedisFound:
    """Ask Redis what it is and holds; of several servers one tells of its options."""
    client = connect(redis, timeout_s=limits.REDIS_WRITE_S, connections_max=1)
    try:
        with guard():
            schema: Any = await client.get(SCHEMA_KEY)
            models: Any = await client.hgetall(MODELS_KEY)
            stats = await client.info("stats")
        return RedisFound(
            schema=schema.decode() if schema else None,
            models={name.decode(): int(shards) for name, shards in models.items()},
            config=await _redis_options(client),
            evicted=int(stats.get("evicted_keys", 0)),
        )
    except IndexUnavailable as error:
        return RedisFound(silence=error.reason)
    finally:
        with suppress(IndexUnavailable), guard():
            await client.aclose()


async def _redis_options(client: Any) -> dict[str, str]:
    """Read options; a Redis run by others may not show them."""
    try:
        with guard():
            found: dict[Any, Any] = {}
            for pattern in REDIS_OPTIONS:
                found |= await client.config_get(pattern)
    except IndexUnavailable:
        return {}
    return {_as_text(name): _as_text(value) for name, value in found.items()}


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# --- our own services ---------------------------------------------------------------------------


def indexer_url(settings: Settings) -> str:
    """Give the admin address of an indexer on this machine."""
    own = settings.indexer
    return _url(own.admin_host, own.admin_port, has_tls=own.admin_tls is not None)


def router_url(settings: Settings) -> str:
    """Give the admin address of a router on this machine."""
    own = settings.router
    return _url(own.admin_host, own.admin_port, has_tls=own.admin_tls is not None)


def _url(host: str, port: int, *, has_tls: bool) -> str:
    asked = "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104 - it is asked, not bound
    return f"{'https' if has_tls else 'http'}://{asked}:{port}"


async def ask_pages(
    session: aiohttp.ClientSession,
    named: Sequence[str],
    default: str,
    identities: EngineIdentities,
) -> list[PageFound]:
    """Ask for the metrics of services: of those that are named, or of the one configured."""
    pages = [PageFound(url, is_named=True) for url in named]
    pages = pages or [PageFound(default, is_named=False)]
    has_tls = any(page.url.startswith("https:") for page in pages)
    tls = identities.default() if has_tls else PLAIN
    return list(await asyncio.gather(*(_page(session, page, tls) for page in pages)))


async def ask_renders(
    session: aiohttp.ClientSession, settings: Settings, identities: EngineIdentities
) -> list[RenderFound]:
    """Have each render service render a text and a chat, as routers would."""
    services = RenderServices(settings.models, session, RouterMetrics(), identities)
    found = []
    for model in settings.models:
        if model.render_url:
            fault = None
            for path, body in _RENDERED.items():
                try:
                    await services.prompt(model.model, path, body, limits.MATCH_S_MAX)
                except PromptUnavailable as error:
                    fault = error.reason
            found.append(RenderFound(model.name, model.render_url, fault))
    return found


async def _page(session: aiohttp.ClientSession, page: PageFound, tls: EngineTls) -> PageFound:
    asked = Asked(page.url.rstrip("/"), None, bytes_max=limits.METRICS_BYTES_MAX, tls=tls)
    try:
        metrics = await ask(session, asked, "/metrics")
        ready = await ask(session, asked, "/readyz")
    except Silence as silence:
        return replace(page, silence=silence.why)
    if metrics.status != 200:
        return replace(page, silence=f"status {metrics.status}")
    answer = read_json(ready.content)
    reason = answer.get("reason") if isinstance(answer, dict) else None
    not_ready = None if ready.status == 200 else str(reason or f"status {ready.status}")
    return replace(page, not_ready=not_ready, samples=read_samples(metrics.content))


def read_samples(page: bytes) -> Samples:
    """Read a page of metrics; what is none holds nothing."""
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    with suppress(ValueError):
        for family in text_string_to_metric_families(page.decode("utf-8", "replace")):
            for sample in family.samples:
                values[sample.name, frozenset(sample.labels.items())] = sample.value
    return Samples(values)

"""What `kvatlas doctor` asks engines and the index. It changes nothing.

The only thing that an engine has to compute is one request of one token, which tells whether it
reports cached tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import aiohttp
import orjson

from kvatlas.cli.doctor_facts import (
    EngineFound,
    EventsFound,
    Found,
    RedisFound,
)
from kvatlas.cli.doctor_services import (
    ask_pages,
    ask_redis,
    ask_renders,
    indexer_url,
    read_samples,
    router_url,
)
from kvatlas.cli.doctor_tls import certificates
from kvatlas.cli.doctor_zmq import EventSockets
from kvatlas.cli.index_reader import EndpointState, IndexReader
from kvatlas.common import limits
from kvatlas.common.discovery.answers import EventSources, read_event_sources
from kvatlas.common.discovery.once import look_once
from kvatlas.common.engine_client import Asked, Silence, ask
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import EndpointName
from kvatlas.common.key_file import read_key
from kvatlas.common.prompt import PromptBuilder
from kvatlas.common.prompt.probe_set import Probe, probe_set
from kvatlas.common.settings import EndpointSettings, Settings
from kvatlas.common.tls import TlsGauges
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.indexer.discovery import Source, sources_of
from kvatlas.router.engine_answers import read_json
from kvatlas.router.probe import ask_models, ask_version, check_tokenizer

ENGINES_AT_ONCE: Final = 8
SETTLE_S: Final = 1.5
"""Time for the index to catch up with what an engine had sent when it was asked."""
CACHE_INFO: Final = "vllm:cache_config_info"


@dataclass(frozen=True, slots=True)
class Request:
    """What to look at.

    Attributes:
        routers: admin ports that the command line names.
        indexers: alike.
        may_send: whether engines may be sent a request of one token.
    """

    routers: Sequence[str] = ()
    indexers: Sequence[str] = ()
    may_send: bool = True


async def find_out(settings: Settings, request: Request) -> Found:
    """Ask everybody.

    Raises:
        ConfigError: a tokenizer, a key file or what engines are spoken to with cannot be read.
    """
    probes = {m.name: probe_set(PromptBuilder.load(m), m.name) for m in settings.models}
    timeout = aiohttp.ClientTimeout(total=limits.PROBE_TIMEOUT_S)
    fleet, places = await look_once(settings, EngineIdentities(settings, TlsGauges()))
    # From here on what was found is as good as configured.
    settings = settings.model_copy(update={"endpoints": list(fleet.endpoints)})
    identities = EngineIdentities(settings, TlsGauges())
    async with aiohttp.ClientSession(timeout=timeout) as session:
        redis = await ask_redis(settings.redis)
        engines = await _engines(session, settings, (probes, identities), request)
        events = await _events(settings, redis, [e.url for e in engines if e.silence is None])
        return Found(
            models={model.name: model.index_shards for model in settings.models},
            engines=engines,
            events=events,
            redis=redis,
            indexers=await ask_pages(session, request.indexers, indexer_url(settings), identities),
            renders=await ask_renders(session, settings, identities),
            routers=await ask_pages(session, request.routers, router_url(settings), identities),
            certificates=certificates(settings, identities),
            places=places,
            left_out=fleet.left_out,
        )


# --- engines ------------------------------------------------------------------------------------


async def _engines(
    session: aiohttp.ClientSession,
    settings: Settings,
    means: tuple[Mapping[str, Sequence[Probe]], EngineIdentities],
    request: Request,
) -> list[EngineFound]:
    probes, identities = means
    slots = asyncio.Semaphore(ENGINES_AT_ONCE)

    async def one(endpoint: EndpointSettings) -> EngineFound:
        found = EngineFound(
            endpoint.url,
            endpoint.model,
            endpoint.names(),
            settings.model_named(endpoint.model).block_size,
        )
        key = read_key(endpoint.api_key_file, "endpoints")
        asked = Asked(endpoint.url, key, tls=identities.of(endpoint.url))
        async with slots:
            return await _engine(session, asked, found, probes[endpoint.model], request)

    return list(await asyncio.gather(*map(one, settings.endpoints)))


async def _engine(
    session: aiohttp.ClientSession,
    asked: Asked,
    found: EngineFound,
    probes: Sequence[Probe],
    request: Request,
) -> EngineFound:
    page = replace(asked, bytes_max=limits.METRICS_BYTES_MAX)
    try:
        metrics = await ask(session, page, "/metrics")
    except Silence as silence:
        return replace(found, silence=silence.why)
    caches = {_rank(labels): labels for labels in read_samples(metrics.content).labels(CACHE_INFO)}
    models = await ask_models(session, asked, found.model)
    found = replace(
        found,
        version=await ask_version(session, asked),
        models=models,
        caches=caches,
        sources=await _sources(session, asked),
    )
    if models is not None and not models.serves:
        return found
    return replace(
        found,
        tokenizer=await check_tokenizer(session, asked, probes),
        tells_cached=await _tells_cached(session, asked, found.model) if request.may_send else None,
    )


def _rank(labels: Mapping[str, str]) -> int:
    text = labels.get("engine", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


async def _sources(session: aiohttp.ClientSession, asked: Asked) -> EventSources | None:
    """Ask where events are; engines before 0.32 do not tell."""
    with suppress(Silence):
        reply = await ask(session, asked, "/kv_event_sources")
        return read_event_sources(reply.content) if reply.status == HTTPStatus.OK else None
    return None


async def _tells_cached(session: aiohttp.ClientSession, asked: Asked, model: str) -> bool | None:
    """Have one token generated, and look whether the usage tells what was cached."""
    body = orjson.dumps({"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0})
    patient = replace(asked, timeout_s=10 * asked.timeout_s)
    with suppress(Silence):
        reply = await ask(session, patient, "/v1/completions", body)
        answer = read_json(reply.content) if reply.status == 200 else None
        usage = answer.get("usage") if isinstance(answer, dict) else None
        if isinstance(usage, dict):
            return isinstance(usage.get("prompt_tokens_details"), dict)
    return None


# --- events and index ---------------------------------------------------------------------------


async def _events(
    settings: Settings, redis: RedisFound, reached: Iterable[str]
) -> list[EventsFound]:
    there = set(reached)
    sources = {source.endpoint.name: source for source in sources_of(settings, settings.endpoints)}
    before = await _states(settings, redis)
    slots = asyncio.Semaphore(ENGINES_AT_ONCE)
    sockets = EventSockets()

    async def one(endpoint: EndpointSettings, rank: int, name: EndpointName) -> EventsFound:
        source, state = sources.get(name), before.get((endpoint.model, name))
        found = EventsFound(
            name,
            endpoint.model,
            rank,
            source.events if source else None,
            source.replay if source else None,
            before=state,
        )
        if source is None or endpoint.url not in there:
            return found
        async with slots:
            return await _listen(sockets, source, found)

    with sockets:
        events = await asyncio.gather(
            *(one(e, rank, name) for e in settings.endpoints for rank, name in enumerate(e.names()))
        )
    return await _settled(settings, redis, events)


async def _listen(sockets: EventSockets, source: Source, found: EventsFound) -> EventsFound:
    accepts = await sockets.accepts(source.events)
    start = max(0, found.before.seq if found.before else 0)
    replay = await sockets.replay(source.replay, start) if source.replay else None
    return replace(found, accepts=accepts, replay=replay)


async def _settled(
    settings: Settings, redis: RedisFound, events: Sequence[EventsFound]
) -> list[EventsFound]:
    """Read the index again, later where it was not level with what engines had sent."""
    after = await _states(settings, redis)
    settled = [replace(each, after=after.get((each.model, each.name))) for each in events]
    if all(_is_level(each) for each in settled):
        return settled
    await asyncio.sleep(SETTLE_S)
    after = await _states(settings, redis)
    return [replace(each, after=after.get((each.model, each.name))) for each in events]


def _is_level(events: EventsFound) -> bool:
    replay, after = events.replay, events.after
    if replay is None or not replay.is_complete:
        return True
    if after is None or replay.newest is None:
        return after is not None and after.seq < 0
    return after.seq >= replay.newest


async def _states(
    settings: Settings, redis: RedisFound
) -> dict[tuple[str, EndpointName], EndpointState]:
    if redis.silence is not None:
        return {}
    reader = IndexReader(settings.redis)
    try:
        models = await reader.models()
        return {(model.model, one.name): one for model in models for one in model.endpoints}
    except IndexUnavailable:
        return {}
    finally:
        await reader.aclose()

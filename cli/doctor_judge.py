"""What `kvatlas doctor` thinks of what it found, and what to do about each fault. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from kvatlas.cli.doctor_engine import judge_engine
from kvatlas.cli.doctor_events import judge_events
from kvatlas.cli.doctor_facts import (
    FAULT,
    OK,
    WARN,
    CertificateFound,
    Finding,
    Found,
    PageFound,
    RedisFound,
    RenderFound,
)
from kvatlas.common import limits
from kvatlas.common.discovery.merging import PlaceFound, Reason
from kvatlas.common.keyspace import SCHEMA_VERSION

DAY_S: Final = 86_400.0
EXPIRES_SOON_DAYS: Final = 14
"""What renews by itself does so a month before."""
REPORTED_MIN: Final = 50
"""Compared answers from which on shares of them mean something."""
OVER_SHARE_WARN: Final = 0.05
OVER_SHARE_FAULT: Final = 0.25
FALLBACK_SHARE_WARN: Final = 0.05
LEFT_OUT: Final[Mapping[Reason, tuple[str, str]]] = {
    "unasked": (
        "It was found, and does not say which model it serves: it gets no requests.",
        "Is it up? Else name the model in its entry of discovery.",
    ),
    "other_model": (
        "It was found, and serves no model that is configured.",
        "Add its model to models, or take it out of what discovery names.",
    ),
    "repeated": (
        "It was found, and its address is in the list already: the first counts.",
        "Name it once.",
    ),
    "over_limit": (
        f"It was found beyond the {limits.ENDPOINTS_MAX} engines that there may be.",
        "Split the fleet.",
    ),
}
"""What is so, and what to do, for each reason."""
LISTPACK: Final = {"entries": 512, "value": 1_024}
"""What docs/REDIS.md asks for."""
PREDICTED: Final = "kvatlas_router_predictions_total"
OUTCOMES: Final = ("exact", "over", "under")


def judge(found: Found) -> list[Finding]:
    """Judge everything, in the order in which things depend on each other."""
    findings = list(judge_redis(found.redis, found.models))
    for page in found.indexers:
        findings += judge_indexer(page)
    for page in found.routers:
        findings += judge_router(page)
    findings += map(judge_render, found.renders)
    findings += map(judge_certificate, found.certificates)
    findings += map(judge_place, found.places)
    findings += judge_left_out(found.left_out)
    for engine in found.engines:
        findings += judge_engine(engine)
    by_name = {name: engine for engine in found.engines for name in engine.names}
    for events in found.events:
        findings += judge_events(events, by_name[events.name], found)
        findings += judge_predictions(events.name, found)
    return findings


def judge_certificate(found: CertificateFound) -> Finding:
    """Judge how long a certificate is good."""
    days = found.left_s / DAY_S
    if days >= EXPIRES_SOON_DAYS:
        return Finding(OK, found.setting, "certificate", f"Good for {days:.0f} days.")
    return Finding(
        WARN if days > 0 else FAULT,
        found.setting,
        "certificate",
        f"The certificate expires in {days:.1f} days." if days > 0 else "Its certificate expired.",
        "Renew it, and replace its file: it is read again without a restart.",
    )


def judge_place(found: PlaceFound) -> Finding:
    """Judge a place where endpoints are found."""
    if found.faults or found.endpoints is None:
        why = "; ".join(found.faults) or "it does not answer"
        advice = "Correct this entry of discovery, or what it names."
        return Finding(FAULT, found.label, "discovery", f"No endpoints can be had: {why}.", advice)
    if not found.endpoints:
        return Finding(
            WARN,
            found.label,
            "discovery",
            "It tells no endpoints.",
            "Are engines running, and does this entry of discovery mean them?",
        )
    return Finding(OK, found.label, "discovery", f"Tells {found.endpoints} engines.")


def judge_left_out(left_out: Mapping[Reason, frozenset[str]]) -> Iterator[Finding]:
    """Judge engines that were found and cannot be used."""
    for reason, names in left_out.items():
        found, advice = LEFT_OUT[reason]
        for name in sorted(names):
            yield Finding(WARN, name, "discovery", found, advice)


def judge_redis(redis: RedisFound, models: Mapping[str, int]) -> Iterator[Finding]:
    """Judge the shared index' server."""
    if redis.silence is not None:
        yield Finding(
            FAULT,
            "redis",
            "reachable",
            f"Redis does not answer ({redis.silence}): all requests go by load.",
            "Start Redis, or correct redis.url.",
        )
        return
    yield Finding(OK, "redis", "reachable", "Redis answers.")
    if redis.schema == SCHEMA_VERSION:
        yield Finding(OK, "redis", "schema", f"The index has schema {redis.schema}.")
    elif redis.schema is None:
        yield Finding(
            FAULT,
            "redis",
            "schema",
            "There is no index in this Redis.",
            "Start an indexer with this configuration, or correct redis.url.",
        )
    else:
        yield Finding(
            FAULT,
            "redis",
            "schema",
            f"The index has schema {redis.schema}, this version reads {SCHEMA_VERSION}.",
            "Run indexers and routers of one version, on a database of their own.",
        )
    for model, shards in models.items():
        if redis.schema is not None and redis.models.get(model) not in (None, shards):
            yield Finding(
                FAULT,
                "redis",
                "shards",
                f"{model} is spread over {redis.models[model]} shards, configured are {shards}.",
                "Give indexers and routers the same index_shards, and begin with an empty index.",
            )
    yield from _judge_redis_options(redis)


def _judge_redis_options(redis: RedisFound) -> Iterator[Finding]:
    policy = redis.config.get("maxmemory-policy")
    if redis.evicted or policy not in (None, "noeviction"):
        yield Finding(
            FAULT if redis.evicted else WARN,
            "redis",
            "eviction",
            f"maxmemory-policy is {policy or 'not told'}, {redis.evicted} keys were dropped.",
            "Set maxmemory-policy noeviction and give Redis memory enough.",
        )
    elif policy is not None:
        yield Finding(OK, "redis", "eviction", "No eviction policy drops keys.")
    small = [
        f"{name} is {value}"
        for name, value in sorted(redis.config.items())
        for kind, least in LISTPACK.items()
        if name in (f"hash-max-listpack-{kind}", f"hash-max-ziplist-{kind}")
        and value.isdigit()
        and int(value) < least
    ]
    if small:
        yield Finding(
            WARN,
            "redis",
            "compactness",
            f"The index takes more memory than it need: {', '.join(small)}.",
            "Set hash-max-listpack-entries 512 and hash-max-listpack-value 1024.",
        )
    if not redis.config:
        yield Finding(
            WARN,
            "redis",
            "options",
            "Redis does not let its settings be read.",
            "See that it has maxmemory-policy noeviction and the limits of docs/REDIS.md.",
        )


def judge_indexer(page: PageFound) -> Iterator[Finding]:
    """Judge an indexer by its admin port."""
    if page.silence is not None:
        yield Finding(
            FAULT,
            page.url,
            "indexer",
            f"The indexer does not answer ({page.silence}): the index stands still.",
            "Start it, or name its admin port with --indexer.",
        )
    elif page.not_ready is not None:
        yield Finding(
            FAULT,
            page.url,
            "indexer",
            f"The indexer is not ready: {page.not_ready}.",
            "See that it reaches Redis; its log says more.",
        )
    else:
        yield Finding(OK, page.url, "indexer", "The indexer is ready.")


def judge_router(page: PageFound) -> Iterator[Finding]:
    """Judge a router by its admin port."""
    if page.silence is not None:
        yield Finding(
            FAULT if page.is_named else WARN,
            page.url,
            "router",
            f"The router does not answer ({page.silence}).",
            "Start it, or name the admin port of each router with --router.",
        )
        return
    if page.not_ready is not None:
        yield Finding(
            FAULT,
            page.url,
            "router",
            f"The router is not ready: {page.not_ready}.",
            "Wait some seconds; its log says more.",
        )
    else:
        yield Finding(OK, page.url, "router", "The router is ready.")
    requests = page.samples.sum("kvatlas_router_requests_total") or 0.0
    reasons = page.samples.by("kvatlas_router_fallbacks_total", "reason")
    fallbacks = sum(reasons.values())
    if requests >= REPORTED_MIN and fallbacks > FALLBACK_SHARE_WARN * requests:
        worst = max(reasons, key=lambda reason: reasons[reason])
        yield Finding(
            WARN,
            page.url,
            "fallbacks",
            f"{fallbacks / requests:.0%} of its requests went by load, most of them: {worst}.",
            "See docs/OPERATIONS.md for what each reason means.",
        )


def judge_render(render: RenderFound) -> Finding:
    """Judge a render service by a text and a chat."""
    if render.fault is None:
        return Finding(OK, render.url, "render", f"The render service renders {render.model}.")
    advice = {
        "render_status": "Start it with --enable-scale-out, or as vllm launch render, and with "
        f"--served-model-name {render.model}.",
        "render_refused": "See that it serves the same model as the engines.",
        "render_timeout": "Give it more CPU, or raise render_timeout_s.",
    }
    return Finding(
        FAULT,
        render.url,
        "render",
        f"The render service gives no token ids for {render.model} ({render.fault}).",
        advice.get(render.fault, "Start it, or correct render_url."),
    )


def judge_predictions(name: str, found: Found) -> Iterator[Finding]:
    """Judge how often an engine had what was predicted, over all routers."""
    told: dict[str, float] = {}
    for page in found.routers:
        for outcome, count in page.samples.by(PREDICTED, "outcome", endpoint=name).items():
            told[outcome] = told.get(outcome, 0.0) + count
    total = sum(told.values())
    if not total:
        yield Finding(OK, name, "predictions", "Predicted against actual is not reported yet.")
        return
    others = told.pop("other_prompt", 0.0)
    if others:
        yield Finding(
            FAULT,
            name,
            "tokens",
            f"Of {total:.0f} prompts {others:.0f} had another number of tokens than we counted.",
            "The engine renders otherwise: compare its options with the model's settings "
            "(chat_template, content_format, default_chat_template_kwargs).",
        )
    total -= others
    if not total:
        return
    over = told.get("over", 0.0) / total
    shares = ", ".join(f"{told.get(kind, 0.0) / total:.1%} {kind}" for kind in OUTCOMES)
    text = f"Of {total:.0f} predictions {shares}."
    if total < REPORTED_MIN or over <= OVER_SHARE_WARN:
        yield Finding(OK, name, "predictions", text)
        return
    yield Finding(
        FAULT if over > OVER_SHARE_FAULT else WARN,
        name,
        "predictions",
        text,
        "The engine has less than the index says: look at its events, lag and tokenizer above.",
    )

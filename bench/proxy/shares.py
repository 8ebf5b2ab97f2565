"""Which stage of a request a profile's samples belong to. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Final

STAGES: Final = {
    "HTTP to the client": ("router/connection", "router/inbound", "router/reading",
                           "router/writing", "router/front"),
    "HTTP to the engine": (
        "router/outbound",
        "router/arrival",
        "router/engine_pool",
        "router/proxy",
        "router/headers",
    ),
    "shared load (flights)": ("router/flight", "router/stand_load", "router/shared_gauges"),
    "lookup and Redis": ("common/redis_", "router/lookup", "router/holders", "redis/"),
    "render": ("common/prompt/chat", "common/prompt/template", "common/prompt/messages",
               "common/prompt/builder", "common/prompt/variables", "common/prompt/fields",
               "jinja2/", "<template>", "common/prompt/tools", "common/prompt/lax",
               "common/prompt/parts", "common/prompt/sampling", "common/templating/"),
    "tokenize": ("common/prompt/tokenizer", "common/prompt/backends", "common/prompt/segments",
                 "common/prompt/special_tokens", "router/prompts"),
    "hash": ("common/block_hash",),
    "choose": ("router/scheduling", "router/pipeline", "router/predictions", "router/endpoint",
               "router/sessions", "router/handover"),
    "log line": ("router/trip", "structlog/", "common/log", "json/encoder"),
    "metrics": ("common/metrics", "router/metrics", "prometheus_client/"),
    "admission and keys": ("router/admission", "router/access", "router/keys", "router/rates",
                           "router/intake"),
    "traces": ("router/tracing", "router/otel", "opentelemetry/"),
    "usage and proof": ("router/usage", "router/proof", "router/accuracy", "router/doubts"),
    "reading the body": ("router/body", "router/answers", "router/request"),
    "the handler": ("router/http", "router/desk", "router/job", "router/core"),
}  # fmt: skip
OTHER: Final = "event loop and the rest"
SMALL: Final = 0.03
REST: Final = f"each below {SMALL:.0%}"


def shares(raw: str) -> dict[str, float]:
    """Give the share of each stage: that of the innermost frame that belongs to any.

    Args:
        raw: collapsed stacks, as `py-spy record -f raw` writes them.

    Returns:
        By stage, the largest first; small ones together at the end.
    """
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[_stage(stack.split(";"))] += int(count)
    total = sum(counts.values()) or 1
    found = {stage: count / total for stage, count in counts.most_common()}
    large = {stage: share for stage, share in found.items() if share >= SMALL}
    rest = sum(found.values()) - sum(large.values())
    return {**large, REST: rest} if rest else large


def _stage(frames: list[str]) -> str:
    for frame in reversed(frames):
        for stage, parts in STAGES.items():
            if any(part in frame for part in parts):
                return stage
    return OTHER

"""The headers that llm-d and the Gateway API Inference Extension give a meaning. Pure.

A table only: who honours which of them decides what to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Sender = Literal["client", "gateway", "picker", "sidecar", "engine"]


@dataclass(frozen=True, slots=True)
class KnownHeader:
    """A header with a meaning.

    Attributes:
        name: in lower case.
        senders: who may set it.
        meaning: of its value.
        aliases: older names, which mean the same.
        is_owned: it belongs to the machinery: it reaches no engine, and no client.
        is_metadata: it stands in the gateway's metadata as well, or only there.
    """

    name: str
    senders: tuple[Sender, ...]
    meaning: str
    aliases: tuple[str, ...] = ()
    is_owned: bool = True
    is_metadata: bool = False


DESTINATION: Final = KnownHeader(
    "x-gateway-destination-endpoint",
    ("picker",),
    "ip:port of the chosen endpoint, further ones behind it with commas between",
    is_metadata=True,
)
SUBSET: Final = KnownHeader(
    "x-gateway-destination-endpoint-subset",
    ("gateway",),
    "ip:port of the endpoints that a request may go to",
    is_metadata=True,
)
SERVED: Final = KnownHeader(
    "x-gateway-destination-endpoint-served",
    ("gateway",),
    "ip:port of the endpoint that answered",
    is_metadata=True,
)
SCORES: Final = KnownHeader(
    "x-gateway-destination-endpoint-scores",
    ("picker",),
    "the score of each candidate",
    is_metadata=True,
)
COST: Final = KnownHeader(
    "x-gateway-inference-request-cost",
    ("picker",),
    "what a request cost, as an expression says",
    is_metadata=True,
)
FAIRNESS_ID: Final = KnownHeader(
    "x-llm-d-inference-fairness-id",
    ("client",),
    "among whose requests a request is treated fairly",
    ("x-gateway-inference-fairness-id",),
)
OBJECTIVE: Final = KnownHeader(
    "x-llm-d-inference-objective",
    ("client",),
    "name of the InferenceObjective that tells its priority",
    ("x-gateway-inference-objective",),
)
MODEL_REWRITE: Final = KnownHeader(
    "x-llm-d-model-name-rewrite",
    ("client",),
    "name of the model that engines are to be asked for",
    ("x-gateway-model-name-rewrite",),
)
TTFT_MS: Final = KnownHeader(
    "x-llm-d-slo-ttft-ms",
    ("client",),
    "within how many milliseconds its first token is wanted",
    ("x-slo-ttft-ms",),
)
TPOT_MS: Final = KnownHeader(
    "x-llm-d-slo-tpot-ms",
    ("client",),
    "within how many milliseconds each further token is wanted",
    ("x-slo-tpot-ms",),
)
VIDEO_FPS: Final = KnownHeader("x-llm-d-video-fps", ("client",), "frames per second of videos")
VIDEO_SECONDS: Final = KnownHeader(
    "x-llm-d-video-duration-seconds", ("client",), "length of videos"
)
VIDEO_RESOLUTION: Final = KnownHeader(
    "x-llm-d-video-resolution", ("client",), "width and height of videos in pixels"
)
DROPPED_REASON: Final = KnownHeader(
    "x-llm-d-request-dropped-reason",
    ("picker",),
    "why a request was refused or given up",
)
PREFILLER: Final = KnownHeader(
    "x-prefiller-host-port", ("picker",), "where the prompt is computed", is_owned=False
)
ENCODERS: Final = KnownHeader(
    "x-encoder-hosts-ports", ("picker",), "where images and the like are encoded", is_owned=False
)
RANK_ADDRESS: Final = KnownHeader(
    "x-data-parallel-host-port", ("picker",), "the rank that computes", is_owned=False
)
CACHE_SOURCE: Final = KnownHeader(
    "x-kv-cache-source-host-port", ("picker",), "whose cache is read", is_owned=False
)
RANK: Final = KnownHeader(
    "x-data-parallel-rank", ("sidecar",), "number of the rank that computes", is_owned=False
)
SESSION_TOKEN: Final = KnownHeader(
    "x-session-token", ("client", "picker"), "names the endpoint of a conversation", is_owned=False
)
SESSION_ID: Final = KnownHeader("x-session-id", ("client",), "names a conversation", is_owned=False)
REQUEST_ID: Final = KnownHeader(
    "x-request-id", ("client", "gateway", "picker"), "names a request", is_owned=False
)
PROFILE: Final = KnownHeader(
    "epp-profile", ("gateway",), "name of the scheduling profile to run", is_owned=False
)
PREFER: Final = KnownHeader(
    "prefer", ("client",), "if-available: only where its prefix is cached, else 412", is_owned=False
)
WENT_IN: Final = KnownHeader(
    "x-went-into-resp-headers", ("picker",), "true: the answer's headers were seen", is_owned=False
)
TEST_SELECTION: Final = KnownHeader(
    "test-epp-endpoint-selection",
    ("client",),
    "addresses that a conformance test chooses among",
    is_owned=False,
)
TEST_SERVED: Final = KnownHeader(
    "x-conformance-test-served-endpoint",
    ("picker",),
    "the endpoint that answered, for a conformance test",
    is_owned=False,
)

KNOWN: Final = (
    DESTINATION, SUBSET, SERVED, SCORES, COST, FAIRNESS_ID, OBJECTIVE, MODEL_REWRITE, TTFT_MS,
    TPOT_MS, VIDEO_FPS, VIDEO_SECONDS, VIDEO_RESOLUTION, DROPPED_REASON, PREFILLER, ENCODERS,
    RANK_ADDRESS, CACHE_SOURCE, RANK, SESSION_TOKEN, SESSION_ID, REQUEST_ID, PROFILE, PREFER,
    WENT_IN, TEST_SELECTION, TEST_SERVED,
)  # fmt: skip

OWNED: Final = frozenset(
    {name for each in KNOWN if each.is_owned for name in (each.name, *each.aliases)}
    | {"content-length"}
)
"""Names that are never passed on; the length is set anew where a body is."""


def first(headers: Mapping[str, str], known: KnownHeader) -> str | None:
    """Give the value of a header, or of the first of its aliases that is there.

    Args:
        headers: found by names in lower case.
        known: which one.
    """
    for name in (known.name, *known.aliases):
        if (value := headers.get(name)) is not None:
            return value
    return None

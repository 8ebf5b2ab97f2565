"""What `kvatlas doctor` finds out before it judges. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from kvatlas.cli.index_reader import EndpointState
from kvatlas.common.discovery.answers import EventSources
from kvatlas.common.discovery.merging import PlaceFound, Reason
from kvatlas.common.ids import EndpointName
from kvatlas.router.engine_answers import ServedModels
from kvatlas.router.probe import TokenizerCheck

Level = Literal["ok", "warn", "fault"]

OK: Final = "ok"
WARN: Final = "warn"
FAULT: Final = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok", "warn" (works, but not as well as it could) or "fault".
        where: an endpoint, a URL or "redis".
        check: what was looked at, one word.
        found: in one sentence.
        advice: what to do about it, in one sentence; empty where nothing is to be done.
    """

    level: Level
    where: str
    check: str
    found: str
    advice: str = ""


class Samples:
    """A page of metrics, read."""

    def __init__(self, values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
        self._values = values

    def sum(self, name: str, **labels: str) -> float | None:
        """Add up the samples of a name that have these labels; None where there is none."""
        wanted = labels.items()
        found = [v for (n, has), v in self._values.items() if n == name and wanted <= has]
        return sum(found) if found else None

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Add up samples by the value of one label."""
        sums: dict[str, float] = {}
        for (sample, has), value in self._values.items():
            if sample == name and labels.items() <= has:
                key = dict(has).get(label, "")
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def labels(self, name: str) -> list[dict[str, str]]:
        """List the labels of all samples of a name."""
        return [dict(has) for sample, has in self._values if sample == name]


@dataclass(frozen=True, slots=True)
class PageFound:
    """The metrics of one of our own services.

    Attributes:
        is_named: whether the command line names it, rather than the configuration.
        silence: why there is no page, or None.
        not_ready: why it says that it is not ready, or None.
    """

    url: str
    is_named: bool
    silence: str | None = None
    not_ready: str | None = None
    samples: Samples = field(default_factory=lambda: Samples({}))


@dataclass(frozen=True, slots=True)
class EngineFound:
    """What an engine answers.

    Attributes:
        names: endpoints, one per rank.
        block_size: as configured, or None.
        silence: why it does not answer at all, or None.
        caches: labels of its `cache_config_info`, by rank.
        sources: where its events are, by rank; None where it does not tell.
        tells_cached: whether it reports `cached_tokens`; None where it was not asked.
    """

    url: str
    model: str
    names: Sequence[EndpointName]
    block_size: int | None
    silence: str | None = None
    version: tuple[int, ...] | None = None
    models: ServedModels | None = None
    tokenizer: TokenizerCheck | None = None
    caches: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    sources: EventSources | None = None
    tells_cached: bool | None = None


@dataclass(frozen=True, slots=True)
class ReplayFound:
    """What a replay socket answers to the question for all batches from `start` on.

    Attributes:
        start: newest sequence that is in the index, or 0.
        newest: highest sequence that came, None for none.
        has_start: whether `start` itself came.
        is_complete: whether the END came.
    """

    start: int
    newest: int | None
    has_start: bool
    is_complete: bool


@dataclass(frozen=True, slots=True)
class EventsFound:
    """The event side of one endpoint.

    Attributes:
        rank: of data parallelism.
        events: address as configured for this rank, None where there is none.
        accepts: whether something that publishes answers there.
        replay: None where no replay socket is configured.
        before: state in the index before the replay was asked, None where there is none.
        after: the same some time after it.
    """

    name: EndpointName
    model: str
    rank: int
    events: str | None
    replay_address: str | None
    accepts: bool = False
    replay: ReplayFound | None = None
    before: EndpointState | None = None
    after: EndpointState | None = None


@dataclass(frozen=True, slots=True)
class RedisFound:
    """What Redis says.

    Attributes:
        silence: why it does not answer, or None.
        schema: version of the index in it, None for none.
        models: shards by model.
        config: settings that could be read.
        evicted: keys that it dropped for want of memory.
    """

    silence: str | None = None
    schema: str | None = None
    models: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class RenderFound:
    """What a model's render service does with a small request.

    Attributes:
        fault: why there are no token ids, one of the router's reasons; None where there are.
    """

    model: str
    url: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class CertificateFound:
    """A certificate that the configuration names.

    Attributes:
        setting: that names its file.
        left_s: until it expires; negative behind that.
    """

    setting: str
    left_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """Everything."""

    models: Mapping[str, int]
    """Index shards by configured model."""
    engines: Sequence[EngineFound]
    events: Sequence[EventsFound]
    redis: RedisFound
    indexers: Sequence[PageFound]
    routers: Sequence[PageFound]
    renders: Sequence[RenderFound] = ()
    certificates: Sequence[CertificateFound] = ()
    places: Sequence[PlaceFound] = ()
    left_out: Mapping[Reason, frozenset[str]] = field(default_factory=dict)

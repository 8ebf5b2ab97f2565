"""What an engine's gauges say of one endpoint, and how indexers write it for routers. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote, unquote

from kvatlas.common import limits

_NUMBER_MAX: Final = 1e9
_MS_MAX: Final = 10**15
_EVERY_MS_MAX: Final = int(limits.SCRAPE_PAUSE_MAX_S * 1e3)


@dataclass(frozen=True, slots=True)
class Adapters:
    """The LoRA adapters of an endpoint.

    Attributes:
        running: that requests are running with.
        waiting: that requests are waiting for.
        most: that can run at once; 0 where it is not known.
    """

    running: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    most: int = 0


NO_ADAPTERS: Final = Adapters()


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """What an engine's metrics page says of one rank.

    Attributes:
        kv_usage: share of the cache that running requests hold, in [0, 1].
        blocks: of the cache, in GPU memory.
        adapters: in use.
    """

    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    block_size: int | None = None
    blocks: int | None = None
    adapters: Adapters = NO_ADAPTERS


NO_GAUGES: Final = EngineGauges()


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look at one endpoint found.

    Attributes:
        is_up: whether there was an answer.
        start: when its process began, in the engine's own words; None where it does not tell.
    """

    is_up: bool
    start: str | None = None
    gauges: EngineGauges = NO_GAUGES


Outcome = Literal["answered", "no_page", "silent", "unasked"]
"""A page was had; an answer, but no page, which says that it is alive; nothing; we had no file to
ask with, which says nothing of the engine."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an engine's page saw.

    Attributes:
        at_s: when, by the monotonic clock of this process.
        ranks: the gauges of each; None where there was no page.
    """

    outcome: Outcome
    at_s: float
    start: str | None = None
    ranks: Mapping[int, EngineGauges] | None = None

    @property
    def is_up(self) -> bool:
        """Tell whether there was an answer."""
        return self.is_asked and self.outcome != "silent"

    @property
    def is_asked(self) -> bool:
        """Tell whether it says anything of the engine."""
        return self.outcome != "unasked"

    @property
    def has_work(self) -> bool:
        """Tell whether requests run or wait there."""
        return any(each.running or each.waiting for each in (self.ranks or {}).values())

    def sample(self, rank: int) -> Sample:
        """Give what was seen of one rank."""
        if not self.is_up:
            return Sample(is_up=False)
        return Sample(is_up=True, start=self.start, gauges=(self.ranks or {}).get(rank, NO_GAUGES))


@dataclass(frozen=True, slots=True)
class SharedSample:
    """A sample as it stands in Redis.

    Attributes:
        at_ms: when it was taken, by Redis' clock.
        every_ms: after which the next one is due.
    """

    at_ms: int
    every_ms: int
    sample: Sample

    def to_text(self) -> str:
        """Write the value of the gauges HASH; docs/REDIS.md has an example.

        Names of adapters are quoted, and those left out that do not fit in GAUGE_NAMES_CHARS_MAX.
        """
        sample = self.sample
        gauges = sample.gauges
        text = f"at={self.at_ms} every={self.every_ms} up={sample.is_up:d}"
        if not sample.is_up:
            return text
        return (
            f"{text} running={gauges.running:g} waiting={gauges.waiting:g}"
            f" kv={gauges.kv_usage:.4g}"
            + (f" block_size={gauges.block_size}" if gauges.block_size else "")
            + (f" blocks={gauges.blocks}" if gauges.blocks else "")
            + (f" start={quote(sample.start)}" if sample.start else "")
            + _adapters(gauges)
        )

    @classmethod
    def from_text(cls, text: str) -> SharedSample:
        """Read what `to_text` wrote; unknown words are passed over.

        Raises:
            ValueError: it is something else (a foreign or newer writer's).

        Cost: 5 us.
        """
        if len(text) > limits.GAUGE_TEXT_CHARS_MAX:
            raise ValueError("too long for gauges")
        fields = dict(part.split("=", 1) for part in text.split(" "))
        try:
            at_ms, every_ms = _whole(fields["at"], _MS_MAX), _whole(fields["every"], _EVERY_MS_MAX)
            if fields["up"] != "1":
                return cls(at_ms, every_ms, Sample(is_up=False))
            gauges = EngineGauges(
                _number(fields["running"]),
                _number(fields["waiting"]),
                min(1.0, _number(fields["kv"])),
                _whole(fields.get("block_size", "0"), limits.BLOCK_SIZE_MAX) or None,
                _whole(fields.get("blocks", "0")) or None,
                _read_adapters(fields) if "lora_max" in fields else NO_ADAPTERS,
            )
        except KeyError as error:
            raise ValueError(f"no {error} in gauges") from error
        start = unquote(fields["start"]) if "start" in fields else None
        return cls(at_ms, every_ms, Sample(is_up=True, start=start, gauges=gauges))


def _adapters(gauges: EngineGauges) -> str:
    adapters = gauges.adapters
    if adapters == NO_ADAPTERS:
        return ""
    running, waiting = _listed(adapters.running), _listed(adapters.waiting)
    return f" lora_max={adapters.most} lora_running={running} lora_waiting={waiting}"


def _read_adapters(fields: Mapping[str, str]) -> Adapters:
    running, waiting = fields.get("lora_running", ""), fields.get("lora_waiting", "")
    return Adapters(_names(running), _names(waiting), _whole(fields["lora_max"]))


def _listed(names: Iterable[str]) -> str:
    """Write names, as many as fit."""
    listed, room = [], limits.GAUGE_NAMES_CHARS_MAX
    for name in sorted(names):
        quoted = quote(name, safe="", errors="replace")
        room -= len(quoted) + 1
        if room < 0:
            break
        listed.append(quoted)
    return ",".join(listed)


def _names(text: str) -> frozenset[str]:
    return frozenset(map(unquote, text.split(","))) if text else frozenset()


def _whole(text: str, most: int = int(_NUMBER_MAX)) -> int:
    value = int(text)
    if not 0 <= value <= most:
        raise ValueError("out of range")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0.0 <= value < _NUMBER_MAX):
        raise ValueError("out of range")
    return value

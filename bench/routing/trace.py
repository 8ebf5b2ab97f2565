"""A trace in Mooncake's format, cut to a slice and scaled down. Pure but for reading the file.

Each line has the time of arrival, tokens of prompt and answer, and one id per 512 tokens of the
prompt; equal ids at the start are an equal prefix. Scaled down, an id stands for fewer tokens. An
engine that computes fewer tokens in a second by the same factor takes the same time, and as its
blocks are of whole fractions of an id, the shares of prompts that hit stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

TOKENS_PER_ID = 512
"""What an id stands for in the trace."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the trace, in its own units."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a slice, scaled.

    Attributes:
        due_s: when it arrives, in seconds of the model since the slice began.
        prompt_tokens: of its prompt, without what a chat template adds.
    """

    due_s: float
    prompt_tokens: int
    answer_tokens: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Which part of a trace, and how fast.

    Attributes:
        start_s: where it begins, in seconds of the trace.
        length_s: how long it is driven, in seconds of the model.
        rate: seconds of the trace per second of the model.
    """

    start_s: float
    length_s: float
    rate: float


def read(path: Path) -> list[Line]:
    """Read a whole trace."""
    with path.open("rb") as lines:
        return [_line(orjson.loads(line)) for line in lines]


def _line(entry: dict[str, int | list[int]]) -> Line:
    at_ms, prompt, answer = (entry[n] for n in ("timestamp", "input_length", "output_length"))
    ids = entry["hash_ids"]
    assert isinstance(at_ms, int | float)
    assert isinstance(prompt, int)
    assert isinstance(answer, int)
    assert isinstance(ids, list)
    return Line(at_ms / 1e3, prompt, answer, tuple(ids))


def cut(lines: Iterable[Line], part: Slice, tokens_per_id: int) -> list[Arrival]:
    """Cut out a slice in order of arrival, with lengths as if an id were `tokens_per_id` tokens."""
    factor = TOKENS_PER_ID / tokens_per_id
    end_s = part.start_s + part.length_s * part.rate
    chosen = sorted((x for x in lines if part.start_s <= x.at_s < end_s), key=lambda x: x.at_s)
    return [
        Arrival(
            due_s=(line.at_s - part.start_s) / part.rate,
            prompt_tokens=_scaled(line.prompt_tokens, factor),
            answer_tokens=_scaled(line.answer_tokens, factor),
            ids=line.ids,
        )
        for line in chosen
    ]


def _scaled(tokens: int, factor: float) -> int:
    """Scale a length, up rather than down, so that a prompt's last id keeps a token."""
    return max(1, -int(-tokens // factor))


def hit_ceiling(arrivals: Sequence[Arrival], tokens_per_id: int) -> float:
    """Give the share of prompt tokens that one cache without bounds would hit, instantly filled."""
    seen: set[int] = set()
    hit = total = 0
    for arrival in arrivals:
        total += arrival.prompt_tokens
        known = 0
        # An id is bound to all before it, so the first unknown one ends the prefix.
        while known < len(arrival.ids) and arrival.ids[known] in seen:
            known += 1
        hit += min(known * tokens_per_id, arrival.prompt_tokens - 1)
        seen.update(arrival.ids)
    return hit / total if total else 0.0

"""A slice of a trace, scaled down. Pure.

Equal ids at the start of two prompts are an equal prefix. Scaled down, an id stands for fewer
tokens. An engine that computes fewer tokens in a second by the same factor takes the same time, and
as an id is a whole number of blocks, the shares of prompts that hit stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvatlas.planner.trace import ID_TOKENS, Record


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

    def records(self, trace: Iterable[Record]) -> list[Record]:
        """Cut the slice out of a trace."""
        end_s = self.start_s + self.length_s * self.rate
        return [each for each in trace if self.start_s <= each.at_ms / 1e3 < end_s]

    def due_s(self, record: Record) -> float:
        """Say when a request arrives, in seconds of the model since the slice began."""
        return (record.at_ms / 1e3 - self.start_s) / self.rate


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


def scaled(record: Record, due_s: float, tokens_per_id: int) -> Arrival:
    """Scale a request as if an id were `tokens_per_id` tokens."""
    factor = ID_TOKENS / tokens_per_id
    return Arrival(
        due_s=due_s,
        prompt_tokens=_scaled(record.prompt_tokens, factor),
        answer_tokens=_scaled(record.output_tokens, factor),
        ids=record.hash_ids,
    )


def _scaled(tokens: int, factor: float) -> int:
    """Scale a length, up rather than down, so that a prompt's last id keeps a token."""
    return max(1, -int(-tokens // factor))

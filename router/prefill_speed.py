"""How fast an endpoint prefills, learned from its own answers. Pure.

The time that a prompt keeps an engine busy is close to a line, `base + tokens / rate`: fitted by
least squares whose past fades, so that it follows an engine that gets slower or faster. Two points
of the line that is believed at first stay in it with a small weight, which makes it sane from the
first request and keeps it a line when all prompts are equally long. Prompts that an engine computes
in one step end together and count as one point: `requests x base + tokens / rate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

FADE: Final = 0.97
"""Weight that is left of the past with every answer: about thirty answers count."""
PRIOR_WEIGHT: Final = 0.5
"""Of each of the two believed points at first; an answer weighs 1."""
PRIOR_WEIGHT_LEAST: Final = 0.002
"""What stays of it, so that equal prompts still make a line."""
PRIOR_FADE: Final = 0.9
"""Weight that is left of the belief with every answer."""
PRIOR_TOKENS: Final = 4_096.0
"""Where the second of them lies; the first lies at 0."""
SURPRISE_MAX: Final = 3.0
"""A longer time than so often the expected one counts as that: stalls are no speed."""
RATE_SPAN: Final = 100.0
"""The rate stays within so many times, or parts, of what is believed at first."""

TOGETHER_S: Final = 0.025
"""First bytes so close to each other may come from one step, told of early and late: one point."""
TOGETHER_MAX: Final = 32
"""First bytes in one point at most, where they come without a pause."""
ANSWERS_LEAST: Final = 8
"""Answers of an endpoint before it can be found to be another than all."""
ODD_RATIO: Final = 1.25
"""So many times slower or faster than all it must be for that."""


@dataclass(slots=True)
class PrefillSpeed:
    """The line of one endpoint.

    Attributes:
        prior_tokens_per_s: what is believed at first; above 0.
        prior_base_s: alike, for a prompt with nothing to compute.
        answers: that it was learned from.
        token_s: seconds that a token to compute takes.
        base_s: seconds that a request takes beside its tokens.
    """

    prior_tokens_per_s: float
    prior_base_s: float = 0.005
    answers: int = 0
    token_s: float = 0.0
    base_s: float = 0.0
    _prior: float = PRIOR_WEIGHT
    _weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def __post_init__(self) -> None:
        self.token_s = 1.0 / self.prior_tokens_per_s
        self.base_s = self.prior_base_s

    @property
    def tokens_per_s(self) -> float:
        """Give the rate."""
        return 1.0 / self.token_s

    def observe(self, tokens: int, seconds: float, requests: int = 1) -> None:
        """Take an answer into account, or several that came together.

        Args:
            tokens: that had to be computed.
            seconds: for which they kept the engine busy.
            requests: that were answered.
        """
        self.answers += 1
        expected = requests * self.base_s + tokens * self.token_s
        seconds = min(max(seconds, 0.0), SURPRISE_MAX * expected)
        self._prior = max(self._prior * PRIOR_FADE, PRIOR_WEIGHT_LEAST)
        self._weight = self._weight * FADE + requests * requests
        self._x = self._x * FADE + requests * tokens
        self._y = self._y * FADE + requests * seconds
        self._xx = self._xx * FADE + tokens * tokens
        self._xy = self._xy * FADE + tokens * seconds
        self._fit()

    def _fit(self) -> None:
        prior, prior_token_s = self._prior, 1.0 / self.prior_tokens_per_s
        far_s = self.prior_base_s + PRIOR_TOKENS * prior_token_s
        weight = self._weight + 2.0 * prior
        x = self._x + prior * PRIOR_TOKENS
        y = self._y + prior * (self.prior_base_s + far_s)
        xx = self._xx + prior * PRIOR_TOKENS * PRIOR_TOKENS
        xy = self._xy + prior * PRIOR_TOKENS * far_s
        slope = (weight * xy - x * y) / (weight * xx - x * x)
        least, most = prior_token_s / RATE_SPAN, prior_token_s * RATE_SPAN
        slope = min(max(slope, least), most)
        base = (y - slope * x) / weight
        if base < 0.0:
            # A line through nought says more than one that promises the past.
            base, slope = 0.0, min(max(xy / xx, least), most)
        self.token_s, self.base_s = slope, base


class SpeedOfOne:
    """How fast one endpoint of many is: as all of them, until it is found to be another.

    Engines of one model are mostly alike. What all have shown is known at once of a new one, and
    noise does not tell equals apart.

    Args:
        fleet: what all endpoints of the model have shown.
        own: what this one has.
    """

    __slots__ = ("_fleet", "_own")

    def __init__(self, fleet: PrefillSpeed, own: PrefillSpeed) -> None:
        self._fleet = fleet
        self._own = own

    @property
    def line(self) -> PrefillSpeed:
        """Give the line to go by."""
        own, fleet = self._own, self._fleet
        if own.answers < ANSWERS_LEAST:
            return fleet
        ratio = own.token_s / fleet.token_s
        return fleet if 1.0 / ODD_RATIO < ratio < ODD_RATIO else own

    def observe(self, tokens: int, seconds: float, requests: int = 1) -> None:
        """Take answers that came together into account, for this one and for all."""
        self._own.observe(tokens, seconds, requests)
        self._fleet.observe(tokens, seconds, requests)


@dataclass(slots=True)
class Lessons:
    """First bytes of one endpoint that are still to be learned from.

    What other routers tell comes late, and a time between two first bytes says nothing while a
    third one between them is not known. So they wait, and are taken in the order of their times.
    """

    speed: SpeedOfOne
    _noted: list[tuple[float, float, int]] = field(default_factory=list)
    _last_s: float = float("-inf")

    def note(self, began_s: float, launched_s: float, tokens: int) -> None:
        """Note a first byte.

        Args:
            began_s: when it came.
            launched_s: when its request was sent.
            tokens: that had to be computed; below 0 where it only ends what came before.
        """
        self._noted.append((began_s, launched_s, tokens))

    def learn(self, until_s: float) -> bool:
        """Learn from those up to a moment; tell whether all are learned."""
        self._noted.sort()
        noted, at = self._noted, 0
        while at < len(noted):
            end = at + 1
            while end < len(noted) and noted[end][0] - noted[end - 1][0] <= TOGETHER_S:
                end += 1
            if end - at < TOGETHER_MAX and noted[end - 1][0] + TOGETHER_S > until_s:
                break
            end = min(end, at + TOGETHER_MAX)
            self._learn(noted[at:end])
            at = end
        self._noted = noted[at:]
        return not self._noted

    def _learn(self, together: Sequence[tuple[float, float, int]]) -> None:
        answers = [(launched_s, tokens) for _, launched_s, tokens in together if tokens >= 0]
        began_s = together[-1][0]
        if answers:
            since_s = max(self._last_s, min(launched_s for launched_s, _ in answers))
            tokens = sum(tokens for _, tokens in answers)
            self.speed.observe(tokens, began_s - since_s, len(answers))
        self._last_s = max(self._last_s, began_s)

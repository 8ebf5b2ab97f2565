"""How fast endpoints prefill, learned from first bytes. Pure.

The time that prompts keep an engine busy is close to `requests x base + tokens / rate`. All
endpoints of a model learn that line together, and each how many times slower or faster it is
itself: endpoints are mostly alike, and one that is seldom chosen must not be believed to be slow
for want of answers, or it would never be chosen.

The line is fitted by least squares whose past fades, so that it follows. Two points of what is
believed at first stay in it with a small weight: it is sane from the first request on and stays a
line when all prompts are equally long. Prompts that an engine computes in one step end together,
the first after all their time and the others after none: they count as one point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FADE: Final = 0.995
"""Weight that is left of the past of all endpoints with every answer: about 200 count."""
OWN_FADE: Final = 0.98
"""The same for one endpoint: about 50 count."""
OWN_PRIOR_S: Final = 60.0
"""Seconds of prefill as the line has it that an endpoint is taken to have shown at first."""
PRIOR_WEIGHT: Final = 0.25
"""Of each of the two believed points; an answer weighs 1."""
PRIOR_TOKENS: Final = 4_096.0
"""Where the second of them lies; the first lies at 0."""
POINTS_MIN: Final = 50
"""Points of the line from which on endpoints are compared with it."""
TOGETHER_S: Final = 0.002
"""First bytes so close to each other come from one step."""
SURPRISE_MAX: Final = 3.0
"""A longer time than so often the expected one counts as that: stalls are no speed."""
RATE_SPAN: Final = 100.0
"""The rate stays within so many times, or parts, of what is believed at first."""


@dataclass(slots=True)
class ModelSpeed:
    """The line of all endpoints of a model.

    Attributes:
        prior_tokens_per_s: what is believed at first; above 0.
        prior_base_s: alike, for a prompt with nothing to compute.
        token_s: seconds that a token to compute takes.
        base_s: seconds that a request takes beside its tokens.
        points: that were taken into account.
    """

    prior_tokens_per_s: float
    prior_base_s: float = 0.005
    token_s: float = 0.0
    base_s: float = 0.0
    points: int = 0
    _nn: float = 0.0
    _nx: float = 0.0
    _xx: float = 0.0
    _ny: float = 0.0
    _xy: float = 0.0

    def __post_init__(self) -> None:
        self.token_s = 1.0 / self.prior_tokens_per_s
        self.base_s = self.prior_base_s

    def observe(self, requests: int, tokens: int, seconds: float) -> None:
        """Take a point into account: so many requests and tokens took so long."""
        self.points += 1
        self._nn = self._nn * FADE + requests * requests
        self._nx = self._nx * FADE + requests * tokens
        self._xx = self._xx * FADE + tokens * tokens
        self._ny = self._ny * FADE + requests * seconds
        self._xy = self._xy * FADE + tokens * seconds
        self._fit()

    def _fit(self) -> None:
        prior_token_s = 1.0 / self.prior_tokens_per_s
        far_s = self.prior_base_s + PRIOR_TOKENS * prior_token_s
        nn = self._nn + 2.0 * PRIOR_WEIGHT
        nx = self._nx + PRIOR_WEIGHT * PRIOR_TOKENS
        xx = self._xx + PRIOR_WEIGHT * PRIOR_TOKENS * PRIOR_TOKENS
        ny = self._ny + PRIOR_WEIGHT * (self.prior_base_s + far_s)
        xy = self._xy + PRIOR_WEIGHT * PRIOR_TOKENS * far_s
        slope = (nn * xy - nx * ny) / (nn * xx - nx * nx)
        slope = min(max(slope, prior_token_s / RATE_SPAN), prior_token_s * RATE_SPAN)
        base = (ny - slope * nx) / nn
        if base < 0.0:
            # A line through nought says more than one that promises the past.
            base, slope = 0.0, max(xy / xx, prior_token_s / RATE_SPAN)
        self.token_s, self.base_s = slope, base


@dataclass(slots=True, eq=False)
class PrefillSpeed:
    """How fast one endpoint is, as a multiple of the times of its model.

    Attributes:
        model: what all endpoints have shown.
        factor: how many times as long it takes.
    """

    model: ModelSpeed
    factor: float = 1.0
    _shown_s: float = 0.0
    _expected_s: float = 0.0
    _requests: int = 0
    _tokens: int = 0
    _seconds: float = 0.0

    @property
    def token_s(self) -> float:
        """Give the seconds that a token to compute takes."""
        return self.model.token_s * self.factor

    @property
    def base_s(self) -> float:
        """Give the seconds that a request takes beside its tokens."""
        return self.model.base_s * self.factor

    @property
    def tokens_per_s(self) -> float:
        """Give the rate."""
        return 1.0 / self.token_s

    def observe(self, tokens: int, seconds: float) -> None:
        """Take an answer into account.

        Args:
            tokens: that had to be computed.
            seconds: for which they kept the engine busy; 0 where it computed them along with
                those before.
        """
        if seconds > TOGETHER_S:
            self._learn()
            self._requests = self._tokens = 0
            self._seconds = 0.0
        self._requests += 1
        self._tokens += tokens
        self._seconds += max(seconds, 0.0)

    def _learn(self) -> None:
        if not self._requests:
            return
        model = self.model
        expected = self._requests * model.base_s + self._tokens * model.token_s
        seconds = min(self._seconds, SURPRISE_MAX * expected * self.factor)
        model.observe(self._requests, self._tokens, seconds)
        if model.points < POINTS_MIN:
            # What is wrong with the line so far is not the fault of those who answered first.
            return
        self._shown_s = self._shown_s * OWN_FADE + seconds
        self._expected_s = self._expected_s * OWN_FADE + expected
        self.factor = (self._shown_s + OWN_PRIOR_S) / (self._expected_s + OWN_PRIOR_S)

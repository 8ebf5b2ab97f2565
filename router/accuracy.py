"""Predicted hits against actual ones, and when an endpoint is to be doubted. Pure.

A prediction that is over cost time: the engine computed what it was believed to have. Some of it is
harmless: between decision and computing, blocks are evicted under pressure, and a request that was
preempted starts over. A cache that was emptied without a word is over almost everywhere. So an
endpoint comes into doubt when, over a window, most of the answers were over and most of the
predicted tokens were not there. What is under (an index that lags, a neighbour whose blocks came
in between) loses nothing and is only counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from kvatlas.common import limits
from kvatlas.common.ids import Epoch
from kvatlas.common.prompt import CHAT_PATH, MESSAGES_PATH, RESPONSES_PATH
from kvatlas.common.records import record
from kvatlas.router.usage import Usage

Outcome = Literal["exact", "over", "under", "other_prompt"]

OVER_SHARE: Final = 0.5
"""Share of the answers, and of the predicted tokens, above which predictions run over."""


@record
class Prediction:
    """What was believed of the chosen endpoint.

    Attributes:
        epoch: the one that the match is from; None where nothing matched.
    """

    prompt_tokens: int
    match_tokens: int
    epoch: Epoch | None


@dataclass(frozen=True, slots=True)
class Doubt:
    """An endpoint's predictions run over.

    Attributes:
        epoch: the one that is doubted.
        answers: how many were compared.
        share: of the predicted tokens that were not there.
    """

    epoch: Epoch
    answers: int
    share: float

    @property
    def text(self) -> str:
        """Write the note for the indexer."""
        return f"{self.epoch} overpredicted answers={self.answers} share={self.share:.2f}"


def reads_cache(path: str, body: Mapping[str, Any]) -> bool:
    """Tell whether an engine looks a prompt up at all: for its log probabilities it computes all.

    `echo` asks for them as well: in a chat unless `top_logprobs` is null, in a completion where
    `logprobs` is given. Source: vLLM 0.32, sampling_params.py and the two protocol.py.
    """
    if path in (MESSAGES_PATH, RESPONSES_PATH):
        # None of these is a member there.
        return True
    if body.get("prompt_logprobs") is not None:
        return False
    asked = body.get("top_logprobs", 0) if path == CHAT_PATH else body.get("logprobs")
    return not (body.get("echo") and asked is not None)


def is_comparable(body: Mapping[str, Any], sequences: int) -> bool:
    """Tell whether an answer's `cached_tokens` are those of the one prompt that was matched.

    vLLM reports one sequence's hit where there are several (`n`, several prompts): the first one's
    in streams and the last one's otherwise, and the later ones hit what the first has stored.
    """
    return (
        sequences == 1
        and body.get("n") in (None, 1)
        and not body.get("use_beam_search")
        and body.get("prompt_embeds") is None
    )


def compare(prediction: Prediction, usage: Usage) -> Outcome | None:
    """Judge a prediction; None where the engine does not tell."""
    if usage.cached_tokens is None:
        return None
    if usage.prompt_tokens != prediction.prompt_tokens:
        return "other_prompt"
    if usage.cached_tokens == prediction.match_tokens:
        return "exact"
    return "over" if usage.cached_tokens < prediction.match_tokens else "under"


@dataclass(slots=True)
class Window:
    """The latest predictions of one epoch of one endpoint that promised a hit.

    Times are seconds of any monotonic clock.
    """

    _epoch: Epoch | None = None
    _answers: deque[tuple[float, int, int]] = field(default_factory=deque)
    _predicted: int = 0
    _missing: int = 0
    _over: int = 0
    _over_since: float | None = None
    _quiet_until: float = 0.0
    _cooldown_s: float = limits.DOUBT_COOLDOWN_S

    def note(self, prediction: Prediction, cached_tokens: int, now: float) -> Doubt | None:
        """Take in an answer; give a doubt when it is time for one."""
        if prediction.epoch is None or not prediction.match_tokens:
            return None
        if prediction.epoch != self._epoch:
            self._restart(prediction.epoch)
        self._add(now, prediction.match_tokens, cached_tokens)
        doubt = self._doubt(now)
        if doubt is not None:
            self._restart(doubt.epoch)
            self._cool_down(now)
        return doubt

    def _restart(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._answers.clear()
        self._predicted = self._missing = self._over = 0
        self._over_since = None

    def _add(self, now: float, predicted: int, cached: int) -> None:
        self._answers.append((now, predicted, max(0, predicted - cached)))
        self._count(self._answers[-1], 1)
        oldest = now - limits.ACCURACY_WINDOW_S
        while len(self._answers) > limits.ACCURACY_ANSWERS_MAX or self._answers[0][0] < oldest:
            self._count(self._answers.popleft(), -1)

    def _count(self, answer: tuple[float, int, int], sign: int) -> None:
        _, predicted, missing = answer
        self._predicted += sign * predicted
        self._missing += sign * missing
        self._over += sign * (missing > 0)

    def _doubt(self, now: float) -> Doubt | None:
        if self._epoch is None or not self._runs_over():
            self._over_since = None
            return None
        if self._over_since is None:
            self._over_since = now
        if now < self._quiet_until or now - self._over_since < limits.DOUBT_SPAN_S:
            return None
        return Doubt(self._epoch, len(self._answers), self._missing / self._predicted)

    def _runs_over(self) -> bool:
        answers = len(self._answers)
        return (
            answers >= limits.DOUBT_ANSWERS_MIN
            and self._over > OVER_SHARE * answers
            and self._missing > OVER_SHARE * self._predicted
        )

    def _cool_down(self, now: float) -> None:
        """Double the pause while doubts follow each other; one that came long ago is forgotten."""
        if now - self._quiet_until > limits.DOUBT_COOLDOWN_MAX_S:
            self._cooldown_s = limits.DOUBT_COOLDOWN_S
        self._quiet_until = now + self._cooldown_s
        self._cooldown_s = min(2 * self._cooldown_s, limits.DOUBT_COOLDOWN_MAX_S)

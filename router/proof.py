"""What a request has to prove: its body for one engine, and what the answer says of our belief."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

import orjson

from kvatlas.common.clock import monotonic
from kvatlas.common.ids import EndpointName
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, RESPONSES_PATH
from kvatlas.common.records import record
from kvatlas.common.settings import Settings
from kvatlas.router import handover, relearning, response_ids
from kvatlas.router.accuracy import Prediction, Window, compare, is_comparable
from kvatlas.router.body import ClientBody, add, cut
from kvatlas.router.doubts import Doubts
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.handover_check import HandoverChecks
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.pipeline import Decision, Judged
from kvatlas.router.proxy import EVENT_STREAM
from kvatlas.router.relearning import Relearning
from kvatlas.router.usage import (
    STREAM_OPTIONS,
    USAGE_WORDS,
    AnswerReader,
    Unread,
    Usage,
    WholeAnswer,
    asking_options,
    wish_of,
)
from kvatlas.router.usage_habit import Asked
from kvatlas.router.usage_stream import UsageStream

REPORTING_PATHS: Final = (CHAT_PATH, COMPLETIONS_PATH)
"""Paths whose engines may be asked to tell more; elsewhere nothing is asked or added."""


@record
class Case:
    """A request with the endpoint that it goes to.

    Attributes:
        path: without the query.
    """

    path: str
    body: ClientBody
    decision: Decision
    judged: Judged

    @property
    def endpoint(self) -> Endpoint:
        """Give the endpoint."""
        return self.judged.endpoint

    @property
    def prediction(self) -> Prediction | None:
        """Give what is believed of the endpoint, where it can be compared with what it says."""
        decision = self.decision
        if (
            decision.fallback is not None
            or decision.prompt_tokens is None
            or self.endpoint.block_size is None
            or not is_comparable(self.body.fields, decision.sequences)
        ):
            return None
        return Prediction(decision.prompt_tokens, self.judged.match_tokens, self.judged.epoch)


@record
class Sent:
    """A body as one engine gets it.

    Attributes:
        asked: who asked for the usage of the stream; None where it is none, or that is unclear.
        is_handed_over: whether it brings our token ids.
    """

    body: bytes
    asked: Asked | None
    is_handed_over: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """What acts on what requests tell."""

    doubts: Doubts
    checks: HandoverChecks
    relearning: Relearning


class Proof:
    """Make requests tell how right the index is, and act on what they tell."""

    def __init__(self, settings: Settings, parts: Parts, metrics: RouterMetrics) -> None:
        self._asks_usage = settings.router.ask_usage
        self._doubts = parts.doubts
        self._checks = parts.checks
        self._relearning = parts.relearning
        self._metrics = metrics
        self._hands_over = {m.model for m in settings.models if m.token_handover}
        self._windows: dict[EndpointName, Window] = {}

    def prepare(self, case: Case, *, may_hand_over: bool = True, reads_answer: bool = True) -> Sent:
        """Write the body for an engine: the client's, and what we add for this engine.

        Args:
            case: the request and its endpoint.
            may_hand_over: whether it may bring our token ids.
            reads_answer: whether we see the answer, so that its usage can be had and taken out.
        """
        raw = case.body.raw
        if case.path == RESPONSES_PATH and response_ids.MEMBER not in case.body.fields:
            made = response_ids.new_id(case.endpoint.name, uuid.uuid4().hex)
            raw = add(raw, response_ids.MEMBER, orjson.dumps(made))
        if case.path not in REPORTING_PATHS:
            return Sent(raw, None, is_handed_over=False)
        asked = self._asked(case) if reads_answer else None
        if asked == "us":
            if STREAM_OPTIONS in case.body.fields:
                raw = cut(raw, (STREAM_OPTIONS,))
            raw = add(raw, STREAM_OPTIONS, asking_options(case.body.fields))
        ids = case.decision.token_ids
        is_handed_over = may_hand_over and self._may_hand_over(case)
        if is_handed_over and ids is not None:
            raw = add(raw, handover.MEMBER, handover.params(ids))
        if self._relearning.wants(case.endpoint, case.body.fields):
            raw = add(raw, relearning.MEMBER, relearning.VALUE)
            self._metrics.relearned.labels(case.endpoint.name).inc()
        return Sent(raw, asked, is_handed_over)

    def _asked(self, case: Case) -> Asked | None:
        fields = case.body.fields
        if fields.get("stream") is not True:
            return None
        wish = wish_of(fields)
        if wish != "none":
            return "client" if wish == "asked" else None
        if not self._asks_usage or case.prediction is None:
            return "nobody"
        return "us" if case.endpoint.usage.is_worth_asking else "nobody"

    def _may_hand_over(self, case: Case) -> bool:
        decision = case.decision
        if decision.model not in self._hands_over:
            return False
        if not self._checks.is_on(decision.model):
            outcome = "stopped"
        else:
            is_ours = decision.is_own_prompt and decision.sequences == 1
            candidate = handover.Candidate(
                case.path,
                case.body.fields,
                decision.model,
                decision.token_ids if is_ours else None,
            )
            outcome = handover.refusal(candidate, case.endpoint.facts) or "handed_over"
        self._metrics.handovers.labels(decision.model, outcome).inc()
        return outcome == "handed_over"

    def note_refused(self, case: Case) -> None:
        """Count that an engine did not take a request with our token ids."""
        self._metrics.handovers.labels(case.decision.model, "refused").inc()

    def reader(self, case: Case, sent: Sent, content_type: str) -> AnswerReader:
        """Give what looks at a successful answer on its way."""
        words = USAGE_WORDS.get(case.path)
        if words is None:
            return Unread()
        if content_type == EVENT_STREAM and case.path in REPORTING_PATHS:
            is_ours = sent.asked == "us"
            return UsageStream(takes_out=is_ours, stamps=is_ours and case.endpoint.usage.stamps)
        is_read = content_type in (EVENT_STREAM, "application/json")
        return WholeAnswer(words) if is_read else Unread()

    def note(self, case: Case, sent: Sent, reader: AnswerReader) -> Usage | None:
        """Learn from an answer that came to its end; give the usage that it reported."""
        if sent.is_handed_over and case.decision.token_ids is not None:
            self._checks.sample(
                case.decision.model, case.endpoint, case.body.fields, case.decision.token_ids
            )
        if case.path in REPORTING_PATHS:
            self._note_habit(case.endpoint, sent, reader)
        usage = reader.usage
        if usage is None:
            return None
        metrics, model = self._metrics, case.decision.model
        metrics.input_tokens.labels(model).inc(usage.prompt_tokens)
        metrics.cached_tokens.labels(model).inc(usage.cached_tokens or 0)
        metrics.output_tokens.labels(model).inc(usage.output_tokens)
        kind = "without_cached" if usage.cached_tokens is None else "with_cached"
        metrics.usage_reports.labels(case.endpoint.name, kind).inc()
        if (prediction := case.prediction) is not None:
            self._note_prediction(case.endpoint, prediction, usage)
        return usage

    def _note_habit(self, endpoint: Endpoint, sent: Sent, reader: AnswerReader) -> None:
        if isinstance(reader, UsageStream):
            if not reader.is_done:
                self._metrics.streams_not_done.labels(endpoint.name).inc()
            if sent.asked is not None:
                endpoint.usage.note_stream(reader, sent.asked)
        elif reader.usage is not None:
            endpoint.usage.note_usage(reader.usage)

    def _note_prediction(self, endpoint: Endpoint, prediction: Prediction, usage: Usage) -> None:
        outcome, cached = compare(prediction, usage), usage.cached_tokens
        if outcome is None or cached is None:
            return
        metrics, name = self._metrics, endpoint.name
        metrics.predictions.labels(name, outcome).inc()
        if outcome == "other_prompt":
            return
        metrics.predicted_hit_tokens.labels(name).inc(prediction.match_tokens)
        metrics.actual_hit_tokens.labels(name).inc(cached)
        difference = prediction.match_tokens - cached
        metrics.over_tokens.labels(name).inc(max(0, difference))
        metrics.under_tokens.labels(name).inc(max(0, -difference))
        window = self._windows.setdefault(name, Window())
        if (doubt := window.note(prediction, cached, monotonic())) is not None:
            self._doubts.leave(endpoint, doubt)

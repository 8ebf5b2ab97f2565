"""What a gateway shows of an answer: its head, its end, and its body where that is wanted."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from kvatlas.common.clock import monotonic
from kvatlas.common.llm_d.headers import TEST_SERVED
from kvatlas.common.records import record
from kvatlas.router.exchange import Exchange
from kvatlas.router.ext_proc import Arrived, Change
from kvatlas.router.first_token import Gaps
from kvatlas.router.headers import Header
from kvatlas.router.health import Health
from kvatlas.router.job import Job, in_clients_words
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.pipeline import Judged, Pipeline
from kvatlas.router.proof import Case, Proof, Sent
from kvatlas.router.proxy import EVENT_STREAM, SERVER_ERRORS
from kvatlas.router.usage import AnswerReader, Unread

_FROM_UPSTREAM: Final = "x-envoy-upstream-service-time"
"""Envoy puts it on what an engine answered, not on what it answers itself."""


@record
class Watch:
    """What an answer is watched with.

    Attributes:
        tells_served: whether clients are told who served, as conformance tests want.
    """

    pipeline: Pipeline
    proof: Proof
    health: Health
    metrics: RouterMetrics
    tells_served: bool = False


class GatewayAnswer:
    """The answer to a request that was forwarded.

    Args:
        exchange: of the request.
        job: the request.
        judged: the endpoint that it was sent to.
        sent: what it was sent.
        wants_body: whether something in the answer's body is to be read, or written anew.
    """

    def __init__(
        self, exchange: Exchange, job: Job, judged: Judged, sent: Sent, *, wants_body: bool
    ) -> None:
        self._exchange = exchange
        self._job = job
        self._judged = judged
        self._sent = sent
        self._wants_body = wants_body
        self._reader: AnswerReader = Unread()
        self._seen: AnswerReader = self._reader
        self._gaps: Gaps | None = None
        self._came_s: float | None = None
        self._is_open = False
        """Whether some of the body has come, and not the last of it."""

    @property
    def case(self) -> Case:
        """Put the request together with its endpoint."""
        return self._job.case(self._judged)

    async def follow(self, watch: Watch, headers: list[Header]) -> None:
        """Follow it to its end.

        Args:
            watch: what it tells of.
            headers: of ours for the client.
        """
        exchange = self._exchange
        try:
            while (arrived := await exchange.read()) is not None:
                if arrived.part == "response_headers":
                    await self._begin(watch, arrived, headers)
                elif arrived.part == "response_body":
                    await exchange.pass_on(arrived, self._read(watch, arrived))
                else:
                    await exchange.pass_on(arrived)
        finally:
            # Gateways often reset the exchange instead of ending it, whole answers or not.
            self._ended(watch)

    def _ended(self, watch: Watch) -> None:
        trip = self._job.trip
        if not trip.status:
            trip.status, trip.outcome = 499, "client_closed"
            return
        if self._is_open:
            trip.outcome = "torn"
        if trip.status not in SERVER_ERRORS:
            self._judged.endpoint.standing.succeeded()
        if trip.status == HTTPStatus.OK:
            usage = watch.proof.note(self.case, self._sent, self._reader)
            if usage is not None:
                trip.cached_tokens, trip.usage = usage.cached_tokens, usage

    # --- its parts ----------------------------------------------------------------------------

    async def _begin(self, watch: Watch, arrived: Arrived, ours: list[Header]) -> None:
        trip, exchange = self._job.trip, self._exchange
        received = dict(arrived.headers())
        self._served_by(watch, arrived.served())
        trip.status = int(received.get(":status", "0") or 0)
        is_engines = arrived.is_engines()
        if is_engines is None:
            is_engines = _FROM_UPSTREAM in received
        self._judge(watch, trip.status, is_engines=is_engines)
        told = received.get("content-type", "").partition(";")[0].strip().lower()
        is_readable = trip.status == HTTPStatus.OK and not received.get("content-encoding")
        if trip.status == HTTPStatus.BAD_REQUEST and self._sent.is_handed_over:
            watch.proof.note_refused(self.case)
        reads = self._wants_body and is_readable and not arrived.is_last
        if reads:
            self._reader = watch.proof.reader(self.case, self._sent, told)
            self._seen = in_clients_words(self._job, self._reader, told)
        removed = ["content-length"] if reads and not exchange.sends_answers else []
        if watch.tells_served:
            ours = [*ours, (TEST_SERVED.name, self._judged.endpoint.address)]
        await exchange.begin(Change(ours, removed), with_body=reads)
        if told == EVENT_STREAM and exchange.sends_answers:
            self._gaps = watch.metrics.gap_seconds.labels(self._job.decision.model)
        if not exchange.sends_answers or arrived.is_last:
            self._first_byte(watch)

    def _read(self, watch: Watch, arrived: Arrived) -> bytes:
        """Take a piece of the body; give what the client gets for it."""
        if self._job.trip.first_byte_ms is None:
            self._first_byte(watch)
            if self._job.trip.status == HTTPStatus.OK:
                self._job.flight.began()
        if self._gaps is not None:
            now_s = monotonic()
            if self._came_s is not None:
                self._gaps.observe(now_s - self._came_s)
            self._came_s = now_s
        self._is_open = not arrived.is_last
        out = self._seen.feed(arrived.body)
        return out + self._seen.end() if arrived.is_last else out

    def _first_byte(self, watch: Watch) -> None:
        model = self._job.decision.model
        watch.metrics.first_byte_seconds.labels(model).observe(self._job.trip.began())

    def _judge(self, watch: Watch, status: int, *, is_engines: bool) -> None:
        """Tell the endpoint's health of a status."""
        endpoint = self._judged.endpoint
        if not is_engines:
            if status in SERVER_ERRORS:
                # The gateway's own words, most likely: a reason to look at the engine, no more.
                watch.health.failed(endpoint, "disconnected", is_reused=True)
        elif status in SERVER_ERRORS:
            watch.health.refused(endpoint)
        elif endpoint.standing.unanswered:
            watch.health.answered(endpoint)

    def _served_by(self, watch: Watch, served: str | None) -> None:
        """Follow a gateway that went down the list of endpoints."""
        job = self._job
        if served is None or served == self._judged.endpoint.address:
            return
        other = next((e for e in job.decision.candidates if e.endpoint.address == served), None)
        if other is None:
            return
        self._judged = other
        job.trip.retries += 1
        job.trip.endpoint, job.trip.match_tokens = other.endpoint.name, other.match_tokens
        job.flight.lift()
        watch.pipeline.fly(job.flight, job.decision, other)

"""The router's HTTP: bodies in, answers out, every error in the path's shape."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from kvatlas.common import limits
from kvatlas.common.errors import (
    HttpError,
    UpstreamConnect,
)
from kvatlas.common.prompt import RESPONSES_PATH
from kvatlas.common.settings import RouterSettings
from kvatlas.router.answers import error_response, torn_event
from kvatlas.router.arrival import Answer
from kvatlas.router.desk import Desk
from kvatlas.router.first_token import FirstToken, Gaps
from kvatlas.router.headers import Header
from kvatlas.router.job import Busy, Job, another, demand_one_alive, in_clients_words, outgoing
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.pipeline import Decision, Judged
from kvatlas.router.proof import Case, Sent
from kvatlas.router.proxy import EVENT_STREAM, Delivery, Proxy, Torn
from kvatlas.router.request import Request, Response
from kvatlas.router.retry_budget import RetryBudget
from kvatlas.router.sessions import answer_headers
from kvatlas.router.trip import Trip
from kvatlas.router.usage import AnswerReader, Unread


class RouterHttp:
    """Handlers of the public port.

    Args:
        settings: the configuration.
        desk: where requests are taken in and decided on.
        proxy: that moves their bytes.
        metrics: told of how engines answer.
    """

    def __init__(
        self, settings: RouterSettings, desk: Desk, proxy: Proxy, metrics: RouterMetrics
    ) -> None:
        self._router = settings
        self._desk = desk
        self._pipeline = desk.pipeline
        self._proof = desk.proof
        self._proxy = proxy
        self._metrics = metrics
        self._retries = RetryBudget(settings.retries_share, limits.RETRIES_AT_LEAST)

    # --- handlers ---------------------------------------------------------------------------

    async def generate(self, request: Request) -> Response | None:
        """Route a chat or a completion."""
        desk = self._desk
        trip = desk.begin(request)
        response = None
        try:
            response = await self._generate(request, trip)
        except HttpError as error:
            trip.status, trip.outcome = error.status, error.code
            response = error_response(error, trip.path, trip.request_id)
        except Torn:
            trip.outcome = "torn"
            raise
        except (asyncio.CancelledError, ConnectionError):
            # The client is gone; there is nobody to answer.
            trip.status, trip.outcome = trip.status or 499, "client_closed"
            raise
        finally:
            desk.leave()
            if response is None:
                desk.finish(trip)
        if response is not None:
            response.then.append(lambda: desk.finish(trip))
        return response

    # --- a request's way ----------------------------------------------------------------------

    async def _generate(self, request: Request, trip: Trip) -> Response | None:
        taken = await self._desk.take(request, trip)
        with self._desk.admitted(trip):
            decision, flight = await self._desk.decide(request, trip, taken)
            response = None
            try:
                response = await self._forward(Job(request, trip, taken, decision, flight))
            finally:
                if response is None:
                    flight.close()
                else:
                    response.then.append(flight.close)
            return response

    async def _forward(self, job: Job) -> Response | None:
        """Send to the best endpoint, and to one other if that one cannot be reached."""
        decision = job.decision
        try:
            return await self._attempt(job, decision.chosen)
        except Busy as busy:
            # Its own words, should there be nobody else.
            refusal = busy
        except UpstreamConnect:
            demand_one_alive(decision)
            if not self._may_retry(decision):
                raise
            refusal = None
        try:
            return await self._again(job)
        except UpstreamConnect:
            if refusal is not None:
                return await self._pass_refusal(job, refusal)
            demand_one_alive(decision)
            raise
        finally:
            self._retries.give_back()

    def _may_retry(self, decision: Decision) -> bool:
        """Take a retry from the budget, if there is one."""
        may = self._retries.take(self._desk.open_requests)
        self._metrics.retries.labels(decision.model, "sent" if may else "budget").inc()
        return may

    async def _again(self, job: Job) -> Response | None:
        decision = job.decision
        # One that is alone is tried again itself: it may just have closed an idle connection.
        other = another(decision) or decision.chosen
        job.trip.retries += 1
        job.flight.lift()
        self._pipeline.fly(job.flight, decision, other)
        return await self._attempt(job, other)

    async def _pass_refusal(self, job: Job, refusal: Busy) -> Response | None:
        trip, case = job.trip, refusal.case
        trip.endpoint, trip.match_tokens = case.endpoint.name, case.judged.match_tokens
        trip.status = refusal.answer.status
        return await self._pass_on(job, case, refusal.sent, refusal.answer)

    async def _attempt(self, job: Job, judged: Judged) -> Response | None:
        endpoint, trip = judged.endpoint, job.trip
        trip.endpoint, trip.match_tokens = endpoint.name, judged.match_tokens
        case = job.case(judged)
        answer = None
        try:
            sent, answer = await self._send(job, case)
            trip.status, trip.is_handed_over = answer.status, sent.is_handed_over
            if answer.status == HTTPStatus.SERVICE_UNAVAILABLE and self._goes_elsewhere(
                job, answer
            ):
                raise Busy(case, sent, answer)
            return await self._pass_on(job, case, sent, answer)
        finally:
            if answer is not None:
                answer.close()
            trip.attempted()

    def _goes_elsewhere(self, job: Job, answer: Answer) -> bool:
        """Tell whether a request that an engine has no room for is tried at another one."""
        is_first = job.trip.retries == 0 and answer.is_whole
        return is_first and another(job.decision) is not None and self._may_retry(job.decision)

    async def _pass_on(self, job: Job, case: Case, sent: Sent, answer: Answer) -> Response | None:
        """Pass an answer on, and learn from it what it tells."""
        trip, decision = job.trip, job.decision
        is_readable = answer.status == HTTPStatus.OK and not answer.headers.get("content-encoding")
        reader = self._proof.reader(case, sent, answer.content_type) if is_readable else Unread()

        def first_byte() -> None:
            self._metrics.first_byte_seconds.labels(decision.model).observe(trip.began())
            if answer.status == HTTPStatus.OK:
                # An answer that refuses says nothing about prompts.
                job.flight.began()

        is_stream = answer.content_type == EVENT_STREAM
        gaps: Gaps | None = self._metrics.gap_seconds.labels(decision.model) if is_stream else None
        headers = self._our_headers(trip, decision, case.judged)
        seen: AnswerReader = (
            in_clients_words(job, reader, answer.content_type) if is_readable else reader
        )
        if gaps is not None and is_readable and trip.path == RESPONSES_PATH:
            seen = gaps = FirstToken(seen, first_byte, gaps)
        begun = _nothing if isinstance(seen, FirstToken) else first_byte
        delivery = Delivery(headers, seen, begun, torn_event(trip.path), gaps)
        response = await self._proxy.relay(job.request, answer, case.endpoint, delivery)

        def learn() -> None:
            if is_readable and (usage := self._proof.note(case, sent, reader)) is not None:
                trip.cached_tokens, trip.usage = usage.cached_tokens, usage

        if response is None:
            learn()
        else:
            response.then.append(learn)
        return response

    async def _send(self, job: Job, case: Case) -> tuple[Sent, Answer]:
        """Send to an engine, a second time where it does not take our token ids."""
        sent = self._proof.prepare(case)
        answer = await self._proxy.send(case.endpoint, outgoing(job, sent))
        if sent.is_handed_over and answer.status == HTTPStatus.BAD_REQUEST:
            # What is wrong with the client's own request is for the engine to say.
            answer.close()
            self._proof.note_refused(case)
            sent = self._proof.prepare(case, may_hand_over=False)
            answer = await self._proxy.send(case.endpoint, outgoing(job, sent))
        return sent, answer

    def _our_headers(self, trip: Trip, decision: Decision, judged: Judged) -> list[Header]:
        headers = [("X-Request-Id", trip.request_id)]
        headers += trip.grant.headers if trip.grant else []
        headers += answer_headers(self._router.session, judged.endpoint.name)
        if self._router.debug_headers:
            headers += [
                ("x-kvatlas-endpoint", judged.endpoint.name),
                ("x-kvatlas-match-tokens", str(judged.match_tokens)),
                ("x-kvatlas-prompt-tokens", str(decision.prompt_tokens or 0)),
            ]
            if decision.fallback is not None:
                headers.append(("x-kvatlas-fallback", decision.fallback))
        return headers


def _nothing() -> None:
    """Do nothing."""

"""The router's HTTP: bodies in, answers out, every error in the path's shape."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

from kvatlas.common import limits
from kvatlas.common.errors import (
    HttpError,
    InvalidRequest,
    UpstreamConnect,
)
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import CHAT_PATH, PROMPT_PATHS, RESPONSES_PATH
from kvatlas.common.settings import Settings
from kvatlas.router.access import demand_model
from kvatlas.router.admission import Admission
from kvatlas.router.answers import error_response, explanation, parse_object, torn_event
from kvatlas.router.arrival import Answer
from kvatlas.router.body import ClientBody, client_body, replace
from kvatlas.router.catalog import Catalog, model_not_found
from kvatlas.router.first_token import FirstToken, Gaps
from kvatlas.router.headers import Header
from kvatlas.router.intake import Intake
from kvatlas.router.job import Busy, Job, another, demand_one_alive, in_clients_words, outgoing
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.pipeline import Decision, Judged, Pipeline
from kvatlas.router.proof import Case, Proof, Sent
from kvatlas.router.proxy import EVENT_STREAM, Delivery, Proxy, Torn
from kvatlas.router.rates import RateLimits
from kvatlas.router.request import Request, Response
from kvatlas.router.retry_budget import RetryBudget
from kvatlas.router.rewrites import Rewrites
from kvatlas.router.salts import Salts
from kvatlas.router.sessions import answer_headers
from kvatlas.router.tracing import TRACEPARENT, Tracer
from kvatlas.router.trip import Trip, chosen_id
from kvatlas.router.usage import AnswerReader, Unread


@dataclass(frozen=True, slots=True)
class Handled:
    """What requests are handled with."""

    pipeline: Pipeline
    proxy: Proxy
    proof: Proof
    rates: RateLimits
    admission: Admission
    salts: Salts | None
    tracer: Tracer | None = None


class RouterHttp:
    """Handlers of the public port, and of /explain.

    Attributes:
        open_requests: how many it has under way.
        idle: set while there are none.
    """

    def __init__(self, settings: Settings, parts: Handled, metrics: RouterMetrics) -> None:
        self._settings = settings
        self._rates = parts.rates
        self._admission = parts.admission
        self._requests_max = {model.model: model.requests_max for model in settings.models}
        self._salts = parts.salts
        self._router = settings.router
        self._pipeline = parts.pipeline
        self._proxy = parts.proxy
        self._proof = parts.proof
        self._metrics = metrics
        self.tracer = parts.tracer
        self._intake = Intake(settings)
        self._rewrites = Rewrites(settings.models, settings.router)
        self.catalog = Catalog(settings, self._pipeline, self._rewrites)
        self._retries = RetryBudget(settings.router.retries_share, limits.RETRIES_AT_LEAST)
        self.open_requests = 0
        self.idle = asyncio.Event()
        self.idle.set()

    # --- handlers ---------------------------------------------------------------------------

    async def generate(self, request: Request) -> Response | None:
        """Route a chat or a completion."""
        trip = Trip(chosen_id(request.headers.get("x-request-id")), request.path)
        if self.tracer is not None:
            trip.trace = self.tracer.begin(request.headers.getall(TRACEPARENT))
        self.open_requests += 1
        self.idle.clear()
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
            self.open_requests -= 1
            if self.open_requests == 0:
                self.idle.set()
            if response is None:
                self._finish(trip)
        if response is not None:
            response.then.append(lambda: self._finish(trip))
        return response

    async def explain(self, asked: bytes, request_id: str | None) -> dict[str, Any]:
        """Say what would be decided for a body, and why; nothing is sent to an engine.

        Raises:
            HttpError: the asker's fault, or there are no endpoints.
        """
        content = parse_object(asked)
        path, body = content.get("path", CHAT_PATH), content.get("body")
        if path not in PROMPT_PATHS:
            raise InvalidRequest(f"path is one of {', '.join(PROMPT_PATHS)}", "path")
        if not isinstance(body, dict):
            raise InvalidRequest("body is not an object", "body")
        raw = orjson.dumps(body)
        read, _ = self._rewritten(client_body(raw, body), chosen_id(request_id))
        self._check(read.fields)
        decision = await self._pipeline.decide(path, read.fields, len(raw), explains=True)
        return explanation(decision)

    # --- a request's way ----------------------------------------------------------------------

    async def _generate(self, request: Request, trip: Trip) -> Response | None:
        client = request.client
        trip.tenant = client.tenant if client is not None else None
        self._rates.check(client)
        taken = await self._intake.take(request)
        trip.received()
        body, asked_name = self._rewritten(taken, trip.request_id)
        trip.model = self._check(body.fields)
        demand_model(request, taken.fields["model"], self._metrics)
        if asked_name is not None:
            self._metrics.rewrites.labels(asked_name, body.fields["model"]).inc()
        if client is not None and self._salts is not None and not body.is_unread:
            body = self._salts.salted(body, client.tenant)
        for member in body.cut:
            self._metrics.members_cut.labels(member).inc()
        with self._admission.admitted_to(trip.model, self._requests_max[trip.model]):
            return await self._route(request, trip, body, asked_name)

    async def _route(
        self, request: Request, trip: Trip, body: ClientBody, asked_name: str | None
    ) -> Response | None:
        decision = await self._pipeline.decide(
            trip.path, body.fields, len(body.raw), headers=request.headers
        )
        trip.prompt_tokens, trip.fallback = decision.prompt_tokens, decision.fallback
        trip.grant = await self._rates.take(request.client, decision.work.prompt_tokens)
        is_silent = body.fields.get("stream") is not True
        flight = self._pipeline.flight(decision, is_silent=is_silent)
        response = None
        try:
            decision = await self._pipeline.settle(decision, flight)
            self._pipeline.note(decision)
            # Counted while the engine is waited for.
            asyncio.get_running_loop().call_soon(self._pipeline.count, decision)
            trip.decided(decision.timings_ms)
            response = await self._forward(Job(request, trip, body, decision, flight, asked_name))
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
        may = self._retries.take(self.open_requests)
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
        seen: AnswerReader = in_clients_words(job, reader, answer) if is_readable else reader
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

    def _rewritten(self, body: ClientBody, request_id: str) -> tuple[ClientBody, str | None]:
        """Put the name that engines know in the place of the client's, which is given too."""
        asked = body.fields.get("model")
        target = self._rewrites.target(asked, request_id) if isinstance(asked, str) else asked
        if not isinstance(asked, str) or target == asked:
            return body, None
        fields = {**body.fields, "model": target}
        if body.is_unread:
            return dataclasses.replace(body, fields=fields), asked
        raw = replace(body.raw, "model", orjson.dumps(target))
        return ClientBody(raw, fields, body.cut), asked

    def _check(self, body: Mapping[str, Any]) -> ModelName:
        """Check the fields that decide where a request may go; give its (base) model."""
        model = body.get("model")
        if not isinstance(model, str):
            raise InvalidRequest("model is not a string", "model")
        served = self._pipeline.served(model)
        if served is None:
            raise model_not_found()
        return served.model

    def _finish(self, trip: Trip) -> None:
        status = str(trip.status) if trip.status else "none"
        self._metrics.requests.labels(trip.model, trip.path, status).inc()
        self._metrics.request_seconds.labels(trip.model).observe(trip.spent_s())
        if (reason := trip.error()) is not None:
            self._metrics.errors.labels(trip.model, reason).inc()
        self._rates.settle(trip.grant, trip.status, trip.usage)
        trip.log()


def _nothing() -> None:
    """Do nothing."""

"""Where requests are taken in and decided on, whoever moves their bytes: we or a gateway."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from kvatlas.common.errors import InvalidRequest, Overloaded
from kvatlas.common.ids import ModelName
from kvatlas.common.llm_d.headers import MODEL_REWRITE, OBJECTIVE, first
from kvatlas.common.pool_rules import Ruled
from kvatlas.common.prompt import CHAT_PATH, PROMPT_PATHS
from kvatlas.common.records import record
from kvatlas.common.settings import Settings
from kvatlas.router.access import demand_model
from kvatlas.router.admission import Admission, ModelStay
from kvatlas.router.answers import RETRY_AFTER_S, explanation, parse_object
from kvatlas.router.body import ClientBody, client_body, replace
from kvatlas.router.catalog import Catalog, model_not_found, target_not_served
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.flight_log import OwnFlight
from kvatlas.router.intake import Intake
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.pipeline import Asked, Decision, Pipeline
from kvatlas.router.proof import Proof
from kvatlas.router.rates import RateLimits
from kvatlas.router.request import Request
from kvatlas.router.rewrites import ANY_NAME, Rewrites
from kvatlas.router.salts import Salts
from kvatlas.router.tracing import TRACEPARENT, Tracer
from kvatlas.router.trip import Trip, chosen_id


@dataclass(frozen=True, slots=True)
class Handled:
    """What requests are handled with.

    Attributes:
        ruled: gives what is ruled for the pools that are watched.
    """

    pipeline: Pipeline
    proof: Proof
    rates: RateLimits
    admission: Admission
    salts: Salts | None
    ruled: Ruled
    tracer: Tracer | None = None


@record
class Taken:
    """A request that has been read and may go on.

    Attributes:
        body: as engines are to read it.
        asked_name: of the model, as the client wrote it, where engines are sent another one.
        is_silent: its answer comes as a whole, so that the first byte tells nothing of the prompt.
    """

    body: ClientBody
    asked_name: str | None
    is_silent: bool


class Desk:
    """Take requests in, and decide where they go.

    Attributes:
        catalog: of the models that are served.
        open_requests: how many are under way.
        idle: set while there are none.
    """

    def __init__(self, settings: Settings, parts: Handled, metrics: RouterMetrics) -> None:
        self.pipeline = parts.pipeline
        self.proof = parts.proof
        self.tracer = parts.tracer
        self._rates = parts.rates
        self._admission = parts.admission
        self._salts = parts.salts
        self._metrics = metrics
        self._requests_max = {model.model: model.requests_max for model in settings.models}
        self._intake = Intake(settings)
        self._ruled = parts.ruled
        self._rewrites = Rewrites(settings.models, settings.router, parts.ruled)
        self.catalog = Catalog(settings, self.pipeline, self._rewrites)
        self.open_requests = 0
        self.idle = asyncio.Event()
        self.idle.set()

    # --- a request's way ----------------------------------------------------------------------

    def begin(self, request: Request) -> Trip:
        """Count a request in, and its trace if it has one; `leave` and `finish` must follow."""
        trip = Trip(chosen_id(request.headers.get("x-request-id")), request.path)
        if self.tracer is not None:
            trip.trace = self.tracer.begin(request.headers.getall(TRACEPARENT))
        self.open_requests += 1
        self.idle.clear()
        return trip

    async def take(self, request: Request, trip: Trip, *, passes: bool = False) -> Taken:
        """Read a request, and check what decides where it may go.

        Args:
            request: the request.
            trip: told of it.
            passes: take a body that is not JSON, unread.

        Raises:
            RequestError: the client's.
        """
        client = request.client
        trip.tenant = client.tenant if client is not None else None
        self._rates.check(client)
        taken = await self._intake.take(request, passes=passes)
        trip.received()
        trip.priority = self._priority(request)
        named = first(request.headers, MODEL_REWRITE)
        body, asked_name = self._rewritten(taken, trip.request_id, named)
        trip.model = self._check(body.fields, asked_name if named is None else None)
        demand_model(request, taken.fields["model"] if named is None else named, self._metrics)
        if asked_name is not None:
            # A name that a header brought is a client's word, and no label.
            target = body.fields["model"] if named is None else ANY_NAME
            self._metrics.rewrites.labels(self._rewrites.label(asked_name), target).inc()
        if client is not None and self._salts is not None and not body.is_unread:
            body = self._salts.salted(body, client.tenant)
        for member in body.cut:
            self._metrics.members_cut.labels(member).inc()
        return Taken(body, asked_name, body.fields.get("stream") is not True)

    def admitted(self, trip: Trip) -> ModelStay:
        """Count a request in with its model until the context of what is given ends.

        Raises:
            Overloaded: it is not let in.
        """
        return self._admission.admitted_to(trip.model, self._requests_max[trip.model])

    async def decide(
        self,
        request: Request,
        trip: Trip,
        taken: Taken,
        may_take: Callable[[Endpoint], bool] | None = None,
    ) -> tuple[Decision, OwnFlight]:
        """Decide where a request goes; its flight is to be closed.

        Args:
            request: the request.
            trip: told of the decision.
            taken: the request as it was read.
            may_take: tells of an endpoint whether the request may go there; None where to any.

        Raises:
            InvalidRequest, RateLimited: the client's.
            NoEndpoints: the model has none.
        """
        body = taken.body
        self._shed(trip)
        decision = await self.pipeline.decide(
            Asked(trip.path, body.fields, len(body.raw), request.headers, may_take)
        )
        trip.prompt_tokens, trip.fallback = decision.prompt_tokens, decision.fallback
        trip.grant = await self._rates.take(request.client, decision.work.prompt_tokens)
        flight = self.pipeline.flight(decision, is_silent=taken.is_silent)
        try:
            decision = await self.pipeline.settle(decision, flight)
        except BaseException:
            flight.close()
            raise
        self.pipeline.note(decision)
        # Counted while the engine is waited for.
        asyncio.get_running_loop().call_soon(self.pipeline.count, decision)
        trip.decided(decision.timings_ms)
        return decision, flight

    def _priority(self, request: Request) -> int:
        """Find the priority of the objective that a request names; 0 for one that is not known."""
        objective = first(request.headers, OBJECTIVE)
        found = None if objective is None else self._ruled().priority(objective)
        return found or 0

    def _shed(self, trip: Trip) -> None:
        """Refuse what is to be shed first where all is full.

        Raises:
            Overloaded: the fleet's.
        """
        if trip.priority < 0 and self.pipeline.saturation(trip.model) >= 1:
            self._metrics.shed.labels("priority").inc()
            error = Overloaded("the engines are saturated, and the request may be shed")
            error.headers = [("Retry-After", RETRY_AFTER_S)]
            raise error

    def leave(self) -> None:
        """Count a request out."""
        self.open_requests -= 1
        if self.open_requests == 0:
            self.idle.set()

    def finish(self, trip: Trip) -> None:
        """Tell metrics, limits and the log of a request that has ended."""
        status = str(trip.status) if trip.status else "none"
        self._metrics.requests.labels(trip.model, trip.path, status).inc()
        self._metrics.request_seconds.labels(trip.model).observe(trip.spent_s())
        if (reason := trip.error()) is not None:
            self._metrics.errors.labels(trip.model, reason).inc()
        self._rates.settle(trip.grant, trip.status, trip.usage)
        trip.log()

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
        read, asked_name = self._rewritten(client_body(raw, body), chosen_id(request_id))
        self._check(read.fields, asked_name)
        decision = await self.pipeline.decide(Asked(path, read.fields, len(raw)), explains=True)
        return explanation(decision)

    # --- names of models ----------------------------------------------------------------------

    def _rewritten(
        self, body: ClientBody, request_id: str, named: str | None = None
    ) -> tuple[ClientBody, str | None]:
        """Put the name that engines know in the place of the client's, which is given too.

        Args:
            body: of the request.
            request_id: of it, by which a target is drawn.
            named: the target, where a header names it.
        """
        asked = body.fields.get("model")
        target = asked
        if isinstance(asked, str):
            target = named or self._rewrites.target(asked, request_id)
        if not isinstance(asked, str) or target == asked:
            return body, None
        fields = {**body.fields, "model": target}
        if body.is_unread:
            return dataclasses.replace(body, fields=fields), asked
        raw = replace(body.raw, "model", orjson.dumps(target))
        return ClientBody(raw, fields, body.cut), asked

    def _check(self, body: Mapping[str, Any], asked_name: str | None) -> ModelName:
        """Check the fields that decide where a request may go; give its (base) model."""
        model = body.get("model")
        if model is None:
            raise InvalidRequest("model not found in request body", "model")
        if not isinstance(model, str):
            raise InvalidRequest("model is not a string", "model")
        served = self.pipeline.served(model)
        if served is None and asked_name is not None:
            self._metrics.rewrites_unserved.labels(model).inc()
            raise target_not_served()
        if served is None:
            raise model_not_found()
        return served.model

"""Decide for a gateway: one exchange of its external processing is one request of a client.

The gateway moves the bytes. It sends us a request's headers and body, and is told where the request
goes and what is to change in it; of the answer it shows us the head, and by closing the exchange
the end. That is what counting requests in flight needs. Bodies of answers pass us by, unless the
gateway sends them, or there is something in them for us to read or to write anew.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Iterable
from contextlib import closing, suppress

from kvatlas.common.errors import HttpError, InvalidRequest, NoEndpoints, ShuttingDown
from kvatlas.common.metrics import OTHER
from kvatlas.common.settings import PickerSettings
from kvatlas.router import ext_proc
from kvatlas.router.admission import Admission
from kvatlas.router.core import Core
from kvatlas.router.cores import Cores
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.exchange import Exchange, Gone, Stream, Unusable
from kvatlas.router.ext_proc import Change
from kvatlas.router.gateway_answer import GatewayAnswer, Watch
from kvatlas.router.headers import NOTHING, Header, steering
from kvatlas.router.job import Job
from kvatlas.router.keys import KEY_HEADERS
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.paths import gateway_path
from kvatlas.router.pipeline import Decision
from kvatlas.router.proxy import endpoint_headers
from kvatlas.router.request import Request
from kvatlas.router.sessions import answer_headers
from kvatlas.router.tracing import TRACEPARENT
from kvatlas.router.trip import Trip, tell_refused

NO_CANDIDATES = "failed to find endpoint candidates for serving the request"
"""llm-d's words, which alerts may go by."""


class Picker:
    """Answer exchanges.

    Args:
        cores: that decide.
        admission: how much is let in.
        metrics: told of requests.
        is_closed: tells whether nothing new is taken any more.
    """

    def __init__(
        self,
        cores: Cores,
        admission: Admission,
        metrics: RouterMetrics,
        is_closed: Callable[[], bool],
    ) -> None:
        self._cores = cores
        self._admission = admission
        self._metrics = metrics
        self._is_closed = is_closed
        self._chance = random.Random()  # noqa: S311 - spreads load, guards nothing
        self.open = 0
        metrics.exchanges.set_function(lambda: self.open)

    async def process(self, stream: Stream) -> None:
        """Answer one exchange, from its first message to its end.

        Raises:
            Unusable: the gateway is configured in a way that we cannot serve.
        """
        self.open += 1
        try:
            await self._process(stream)
        finally:
            self.open -= 1

    async def _process(self, stream: Stream) -> None:
        raw = await stream.read()
        if raw is None:
            return None
        # Behind the wait: a core that was retired meanwhile may have closed.
        core = self._cores.current
        try:
            exchange = Exchange(stream, ext_proc.read(raw), core.settings.picker)
        except ValueError:
            raise Unusable("no ProcessingRequest") from None
        request = exchange.request
        try:
            if self._is_closed():
                raise ShuttingDown("the picker is shutting down")
            if core.access is not None:
                request.client = core.access.client(request)
            if not exchange.has_body:
                return await self._pass(core, exchange)
            _demand_known(request, core.settings.picker)
            with self._admission.admitted(self._admission.ask_of(request)):
                return await self._route(core, exchange)
        except HttpError as error:
            path = gateway_path(request.path) or OTHER
            trip_id = tell_refused(error, path, request, self._metrics)
            await exchange.refuse(error, trip_id)

    # --- requests without a body that we see --------------------------------------------------

    async def _pass(self, core: Core, exchange: Exchange) -> None:
        """Send a request without a body to any endpoint that is well."""
        may_take = _within(exchange.subset)
        known = [each for each in core.endpoints.all() if may_take is None or may_take(each)]
        well = [each for each in known if each.healthy] or known
        if not well:
            raise NoEndpoints(NO_CANDIDATES)
        endpoint = self._chance.choice(well)
        change = Change(
            endpoint_headers(endpoint),
            steering(exchange.request.headers, _kept_back(core)),
            endpoint.address,
        )
        await exchange.forward(change, b"")
        while (arrived := await exchange.read()) is not None:
            if arrived.part == "response_headers":
                await exchange.begin(ext_proc.NO_CHANGE)
            else:
                await exchange.pass_on(arrived)

    # --- a request's way ----------------------------------------------------------------------

    async def _route(self, core: Core, exchange: Exchange) -> None:
        desk, request = core.desk, exchange.request
        trip = desk.begin(request)
        if gateway_path(request.path) is None:
            trip.path = OTHER
        try:
            await self._follow(core, exchange, trip)
        except HttpError as error:
            trip.status, trip.outcome = error.status, error.code
            with suppress(Gone):
                await exchange.refuse(_in_their_words(error), trip.request_id)
        except (asyncio.CancelledError, Gone):
            if not trip.status:
                trip.status, trip.outcome = 499, "client_closed"
            raise
        finally:
            desk.leave()
            desk.finish(trip)

    async def _follow(self, core: Core, exchange: Exchange, trip: Trip) -> None:
        desk, request, router = core.desk, exchange.request, core.settings.router
        await exchange.receive(router.body_bytes_max, router.body_read_s)
        taken = await desk.take(request, trip, passes=gateway_path(request.path) is None)
        wants_body = taken.asked_name is not None or core.settings.picker.reads_answers
        wants_body = wants_body and exchange.may_send_answers
        is_streamed = exchange.streams_answers or (wants_body and not exchange.sends_answers)
        if not is_streamed:
            # Engines send the head of a stream before they compute the prompt: it tells nothing.
            taken = dataclasses.replace(taken, is_silent=True)
        with desk.admitted(trip):
            decision, flight = await desk.decide(request, trip, taken, _within(exchange.subset))
            with closing(flight):
                job = Job(request, trip, taken, decision, flight)
                answer = await self._send(core, exchange, job, wants_body=wants_body)
                watch = Watch(
                    desk.pipeline,
                    desk.proof,
                    core.endpoints.health,
                    self._metrics,
                    tells_served=_is_under_test(core),
                )
                await answer.follow(watch, _our_headers(core, job))
        trip.attempted()

    async def _send(
        self, core: Core, exchange: Exchange, job: Job, *, wants_body: bool
    ) -> GatewayAnswer:
        """Tell the gateway where the request goes, and give it the body for that endpoint."""
        judged, trip, options = job.decision.chosen, job.trip, core.settings.picker
        trip.endpoint, trip.match_tokens = judged.endpoint.name, judged.match_tokens
        sent = core.desk.proof.prepare(job.case(judged), reads_answer=wants_body)
        trip.is_handed_over = sent.is_handed_over
        ours = [("X-Request-Id", trip.request_id), ("Content-Length", str(len(sent.body)))]
        if trip.trace is not None:
            ours.append((TRACEPARENT, trip.trace.header()))
        if wants_body:
            # What is to be read, or written anew, must be readable.
            ours.append(("Accept-Encoding", "identity"))
        ours += endpoint_headers(judged.endpoint)
        change = Change(
            ours,
            steering(exchange.request.headers, _kept_back(core)),
            _destination(job.decision, options.destinations),
            _scores(job.decision) if options.emit_scores else None,
        )
        await exchange.forward(change, sent.body)
        return GatewayAnswer(exchange, job, judged, sent, wants_body=wants_body)


def _our_headers(core: Core, job: Job) -> list[Header]:
    """Give the headers that a client gets of us beside the engine's."""
    headers = [("X-Request-Id", job.trip.request_id)]
    headers += job.trip.grant.headers if job.trip.grant else []
    headers += answer_headers(core.settings.router.session, job.decision.chosen.endpoint.name)
    return headers


def _is_under_test(core: Core) -> bool:
    """Tell whether the profile takes endpoints that requests name, as conformance tests want."""
    plugins = (core.settings.router.profile or {}).get("plugins") or ()
    return any(each.get("type") == "header-based-testing-filter" for each in plugins)


def _demand_known(request: Request, settings: PickerSettings) -> None:
    """Refuse a path that is none of an engine's API.

    Raises:
        InvalidRequest: the client's.
    """
    if gateway_path(request.path) is None and not settings.passthrough:
        raise InvalidRequest("unsupported path")


def _kept_back(core: Core) -> frozenset[str]:
    """Name the headers with keys that are ours to check, not the engine's."""
    return KEY_HEADERS if core.access is not None else NOTHING


def _within(subset: Iterable[str] | None) -> Callable[[Endpoint], bool] | None:
    """Make what tells whether an endpoint is one of a gateway's subset.

    An entry with a port means that endpoint, one without all of its address.
    """
    if subset is None:
        return None
    allowed = frozenset(subset)
    return lambda endpoint: endpoint.address in allowed or endpoint.host in allowed


def _destination(decision: Decision, most: int) -> str:
    """Write whom to send a request to: the chosen one, then those to be tried next."""
    chosen = decision.chosen.endpoint.address
    if most == 1:
        return chosen
    order = [each.endpoint.address for each in decision.order[1:] if each.endpoint.healthy]
    return ",".join([*dict.fromkeys([chosen, *order])][:most])


def _scores(decision: Decision) -> dict[str, float]:
    return {each.endpoint.address: each.score for each in decision.candidates}


def _in_their_words(error: HttpError) -> HttpError:
    """Say that there is nobody as llm-d's scheduler does."""
    return NoEndpoints(NO_CANDIDATES) if isinstance(error, NoEndpoints) else error

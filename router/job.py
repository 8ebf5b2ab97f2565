"""A request that has been decided on, on its way to engines."""

from __future__ import annotations

from kvatlas.common.errors import KvatlasError, NoEndpoints
from kvatlas.common.records import record
from kvatlas.router.arrival import Answer
from kvatlas.router.desk import Taken
from kvatlas.router.flight_log import OwnFlight
from kvatlas.router.pipeline import Decision, Judged
from kvatlas.router.proof import Case, Sent
from kvatlas.router.proxy import EVENT_STREAM, Outgoing
from kvatlas.router.renamed import PARENTS, Names, Renamed
from kvatlas.router.request import Request
from kvatlas.router.tracing import TRACEPARENT
from kvatlas.router.trip import Trip
from kvatlas.router.usage import AnswerReader


@record
class Job:
    """A request that has been decided on."""

    request: Request
    trip: Trip
    taken: Taken
    decision: Decision
    flight: OwnFlight

    @property
    def asked_name(self) -> str | None:
        """Give the name of the model that the client asked for, where engines get another."""
        return self.taken.asked_name

    def case(self, judged: Judged) -> Case:
        """Put it together with an endpoint."""
        return Case(self.trip.path, self.taken.body, self.decision, judged)


class Busy(KvatlasError):
    """An engine has no room for a request, and another one may have; its answer is at hand."""

    def __init__(self, case: Case, sent: Sent, answer: Answer) -> None:
        super().__init__("busy")
        self.case, self.sent, self.answer = case, sent, answer


def outgoing(job: Job, sent: Sent) -> Outgoing:
    """Write a request as an engine gets it."""
    ours = [("X-Request-Id", job.trip.request_id)]
    if job.trip.trace is not None:
        ours.append((TRACEPARENT, job.trip.trace.header()))
    if sent.asked == "us" or job.asked_name is not None:
        # What is to be taken out, or written anew, must be readable.
        ours.append(("Accept-Encoding", "identity"))
    request = job.request
    target = request.path + request.query
    return Outgoing(target, request.headers.received, ours, sent.body, request.peer)


def in_clients_words(job: Job, reader: AnswerReader, content_type: str) -> AnswerReader:
    """Give the model the name that the client asked for, where engines were sent another."""
    is_stream = content_type == EVENT_STREAM
    if job.asked_name is None or not (is_stream or content_type == "application/json"):
        return reader
    parent = PARENTS.get(job.trip.path, b"")
    return Renamed(reader, Names(job.asked_name, parent, is_stream=is_stream))


def demand_one_alive(decision: Decision) -> None:
    """Say that nobody answers where that is known, rather than that one endpoint did not.

    Raises:
        NoEndpoints: no endpoint of the model is healthy.
    """
    if not any(each.endpoint.healthy for each in decision.candidates):
        raise NoEndpoints("no endpoint of this model answers") from None


def another(decision: Decision) -> Judged | None:
    """Give the best endpoint but the first that takes requests; None where there is none."""
    return next((each for each in decision.order[1:] if each.endpoint.healthy), None)

"""gRPC's health checks (grpc.health.v1): answered by hand, they are two bytes."""

from __future__ import annotations

from typing import Final

from google.protobuf import wrappers_pb2
from google.protobuf.message import DecodeError

from kvatlas.common.admin import Readiness
from kvatlas.router.grpc.call import Call
from kvatlas.router.grpc.connection import Failed, Handler
from kvatlas.router.grpc.heads import Status

CHECK: Final = "/grpc.health.v1.Health/Check"
_SERVING, _NOT_SERVING, _UNKNOWN = (b"\x08%c" % status for status in (1, 2, 3))


def checks(live: frozenset[str], ready: frozenset[str], readiness: Readiness) -> Handler:
    """Make what answers health checks.

    Args:
        live: services that are well as long as somebody answers.
        ready: those that are well while we are ready.
        readiness: says why not.
    """

    async def check(call: Call) -> None:
        service = _service(await call.read() or b"")
        if service in live:
            answer = _SERVING
        elif service in ready:
            answer = _SERVING if readiness() is None else _NOT_SERVING
        else:
            answer = _UNKNOWN
        await call.write(answer)

    return check


def _service(asked: bytes) -> str:
    """Read whom a HealthCheckRequest asks for: on the wire it is what a StringValue is."""
    try:
        return wrappers_pb2.StringValue.FromString(asked).value
    except DecodeError:
        raise Failed(Status.INTERNAL, "no HealthCheckRequest") from None

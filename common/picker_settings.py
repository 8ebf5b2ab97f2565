"""The section of the configuration that is the picker's: what a gateway asks instead of a proxy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from kvatlas.common import limits
from kvatlas.common.section import STRICT
from kvatlas.common.tls_settings import ListenTls

_Port = Annotated[int, Field(ge=0, le=65_535)]


class PickerSettings(BaseModel):
    """The endpoint picker; all that is not about the gateway is under `router`.

    Attributes:
        host, port: where gateways ask, over gRPC.
        health_port: for gRPC health checks in plain text; None for none.
        secure_serving: speak TLS on `port`.
        tls: who we are there; without it a certificate that we sign ourselves at each start.
        destinations: endpoints that a gateway is told for one request, the best first; a gateway
            must be able to walk a list for more than one.
        emit_scores: tell the gateway the scores of all candidates, as metadata.
        subset_hint: honour the gateway's hint of which endpoints a request may go to.
        unknown_models: "by-engine" lets engines say what they think of a model that is not known,
            where only one is configured; "refuse" answers 404.
        passthrough: take bodies that are no JSON, and paths that we do not know, by load.
        request_body: how bodies of requests come where the gateway does not say.
        reads_answers: have the gateway send answers, too, to count tokens and compare hits.
        message_bytes_max: of one message of a gateway.
    """

    model_config = STRICT

    host: str = "127.0.0.1"
    port: _Port = 9002
    health_port: _Port | None = 9003
    secure_serving: bool = True
    tls: ListenTls | None = None
    destinations: Annotated[int, Field(ge=1, le=limits.PICKER_DESTINATIONS_MAX)] = 1
    emit_scores: bool = False
    subset_hint: bool = True
    unknown_models: Literal["by-engine", "refuse"] = "by-engine"
    passthrough: bool = False
    request_body: Literal["full-duplex", "buffered", "none"] = "full-duplex"
    reads_answers: bool = False
    message_bytes_max: Annotated[int, Field(ge=65_536, le=2**31 - 1)] = (
        limits.PICKER_MESSAGE_BYTES_MAX
    )

"""A gateway's side of external processing: real gRPC, and the whole of what a picker answers.

The schema of the answers is that of envoy.service.ext_proc.v3 by field numbers, told apart from
the product's own way of writing them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio

from kvatlas.router.ext_proc import message_class

FULL_DUPLEX: Final = 4
BUFFERED: Final = 2
PATH: Final = "/v1/completions"
_HEADERS: Final = {
    "HeaderValue": "key:1:string value:2:string raw_value:3:bytes",
    "HeaderMap": "headers:1:*HeaderValue",
}
_REQUEST: Final = {
    **_HEADERS,
    "HttpHeaders": "headers:1:HeaderMap end_of_stream:3:bool",
    "HttpBody": "body:1:bytes end_of_stream:2:bool",
    "HttpTrailers": "trailers:1:HeaderMap",
    "Metadata": "filter_metadata:1:@Struct",
    "ProtocolConfiguration": "request_body_mode:1:int32 response_body_mode:2:int32",
    "ProcessingRequest": (
        "request_headers:2:HttpHeaders response_headers:3:HttpHeaders request_body:4:HttpBody"
        " response_body:5:HttpBody request_trailers:6:HttpTrailers"
        " response_trailers:7:HttpTrailers metadata_context:8:Metadata"
        " protocol_config:11:ProtocolConfiguration"
    ),
}
_RESPONSE: Final = {
    **_HEADERS,
    "BoolValue": "value:1:bool",
    "HeaderValueOption": "header:1:HeaderValue append:2:BoolValue append_action:3:int32",
    "HeaderMutation": "set_headers:1:*HeaderValueOption remove_headers:2:*string",
    "StreamedBodyResponse": "body:1:bytes end_of_stream:2:bool",
    "BodyMutation": "body:1:bytes clear_body:2:bool streamed_response:3:StreamedBodyResponse",
    "CommonResponse": (
        "status:1:int32 header_mutation:2:HeaderMutation body_mutation:3:BodyMutation"
        " clear_route_cache:5:bool"
    ),
    "PartResponse": "response:1:CommonResponse",
    "TrailersResponse": "header_mutation:1:HeaderMutation",
    "HttpStatus": "code:1:int32",
    "ImmediateResponse": (
        "status:1:HttpStatus headers:2:HeaderMutation body:3:bytes details:5:string"
    ),
    "ProcessingMode": "response_header_mode:2:int32 response_body_mode:4:int32",
    "ProcessingResponse": (
        "request_headers:1:PartResponse response_headers:2:PartResponse request_body:3:PartResponse"
        " response_body:4:PartResponse request_trailers:5:TrailersResponse"
        " response_trailers:6:TrailersResponse immediate_response:7:ImmediateResponse"
        " dynamic_metadata:8:Struct mode_override:9:ProcessingMode"
    ),
}
ProcessingRequest = message_class(_REQUEST, "ProcessingRequest")
ProcessingResponse = message_class(_RESPONSE, "ProcessingResponse")
_PARTS: Final = (
    "request_headers", "response_headers", "request_body", "response_body", "request_trailers",
    "response_trailers", "immediate_response",
)  # fmt: skip
METHOD: Final = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


@dataclass
class Told:
    """One answer of a picker.

    Attributes:
        part: what it answers.
        headers: that are set.
        removed: names of headers that are taken out.
        body: in the place of what came; None for none.
        is_last: whether a streamed body ends with it.
        metadata: of `envoy.lb`.
        status: for the client, of an answer in the engine's place.
        response_body_mode: that is asked for; None for none.
    """

    part: str
    headers: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    body: bytes | None = None
    is_last: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    clears_route: bool = False
    response_body_mode: int | None = None


@dataclass
class Picked:
    """What a picker made of a request.

    Attributes:
        told: all its answers to the request.
    """

    told: list[Told]

    @property
    def head(self) -> Told:
        """Give the answer that says where the request goes, or refuses it."""
        return next(each for each in self.told if each.metadata or each.status)

    @property
    def destination(self) -> str:
        """Give where the request goes; header and metadata have to agree."""
        head = self.head
        assert not head.status, (head.status, head.body)
        name = "x-gateway-destination-endpoint"
        assert head.headers[name] == head.metadata[name]
        assert head.clears_route
        return head.headers[name]

    @property
    def body(self) -> bytes:
        """Give the body as the engine would get it."""
        return b"".join(each.body or b"" for each in self.told if each.part == "request_body")


def read(raw: bytes) -> Told:
    """Read an answer."""
    message = ProcessingResponse.FromString(raw)
    part = next(each for each in _PARTS if message.HasField(each))
    content = getattr(message, part)
    told = Told(part)
    if part == "immediate_response":
        told.status, told.body = content.status.code, content.body
        mutation = content.headers
    elif part.endswith("trailers"):
        mutation = content.header_mutation
    else:
        common = content.response
        mutation, told.clears_route = common.header_mutation, common.clear_route_cache
        if common.HasField("body_mutation"):
            changed = common.body_mutation
            is_streamed = changed.HasField("streamed_response")
            told.body = changed.streamed_response.body if is_streamed else changed.body
            told.is_last = changed.streamed_response.end_of_stream
    for each in mutation.set_headers:
        assert each.append_action == 2, "headers are set, never added to"
        told.headers[each.header.key] = each.header.raw_value.decode()
    told.removed = list(mutation.remove_headers)
    if message.HasField("dynamic_metadata"):
        told.metadata = _plain(message.dynamic_metadata).get("envoy.lb", {})
    if message.HasField("mode_override"):
        told.response_body_mode = message.mode_override.response_body_mode
    return told


def _plain(struct: Any) -> dict[str, Any]:
    return {
        name: _plain(value.struct_value)
        if value.WhichOneof("kind") == "struct_value"
        else getattr(value, value.WhichOneof("kind"))
        for name, value in struct.fields.items()
    }


@dataclass
class Ask:
    """A request as a gateway shows it.

    Attributes:
        body: as it comes, in these pieces; None for none.
        subset: hint of endpoints; None for no hint.
        mode, response_mode: in which bodies are sent.
    """

    body: Sequence[bytes] | None = None
    path: str = PATH
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    subset: Sequence[str] | None = None
    mode: int = FULL_DUPLEX
    response_mode: int = 0

    @classmethod
    def json(cls, content: Any, **more: Any) -> Ask:
        """Ask with a JSON body."""
        return cls([json.dumps(content).encode()], **more)


class Call:
    """An exchange from the gateway's side."""

    def __init__(self, channel: grpc.aio.Channel, ask: Ask) -> None:
        self._call: Any = channel.stream_stream(METHOD)()
        self._ask = ask

    async def send(self, **parts: Any) -> None:
        """Send a message made of these fields."""
        await self._call.write(ProcessingRequest(**parts).SerializeToString())

    async def told(self) -> Told | None:
        """Give the next answer; None when the picker has ended the exchange, well or not."""
        try:
            raw = await self._call.read()
        except grpc.aio.AioRpcError:
            return None
        return None if raw is grpc.aio.EOF else read(raw)

    async def code(self) -> grpc.StatusCode:
        """Give the status with which the picker ended the exchange."""
        found: grpc.StatusCode = await self._call.code()
        return found

    async def pick(self) -> Picked:
        """Show the request, and give all that the picker makes of it."""
        ask = self._ask
        await self.begin()
        told: list[Told] = []
        if ask.body is None:
            return Picked([await self._next()])
        if ask.mode == BUFFERED:
            told.append(await self._next())
            if told[0].status:
                return Picked(told)
            await self.send(request_body={"body": b"".join(ask.body), "end_of_stream": True})
            return Picked([*told, await self._next()])
        for number, piece in enumerate(ask.body, 1):
            is_last = number == len(ask.body)
            await self.send(request_body={"body": piece, "end_of_stream": is_last})
        while True:
            told.append(await self._next())
            if told[-1].status or told[-1].is_last:
                return Picked(told)

    async def begin(self) -> None:
        """Show the head of the request, and no more."""
        await self.send(**self._head())

    async def answer(
        self, status: int, headers: Mapping[str, str] | None = None, served: str | None = None
    ) -> Told:
        """Show the head of the engine's answer; give what becomes of it.

        Args:
            status: of it.
            headers: alike.
            served: the endpoint that gave it, where the gateway tells that.
        """
        all_headers = {":status": str(status), **(headers or {})}
        parts: dict[str, Any] = {"response_headers": {"headers": _map(all_headers)}}
        if served is not None:
            name = "x-gateway-destination-endpoint-served"
            parts["metadata_context"] = _metadata("envoy.lb", {name: served})
        await self.send(**parts)
        return await self._next()

    async def piece(self, body: bytes, *, is_last: bool = False) -> Told:
        """Show a piece of the engine's answer; give what becomes of it."""
        await self.send(response_body={"body": body, "end_of_stream": is_last})
        return await self._next()

    async def end(self) -> grpc.StatusCode:
        """End the exchange as a gateway does at the end of an answer."""
        await self._call.done_writing()
        assert await self.told() is None
        return await self.code()

    def cancel(self) -> None:
        """Break the exchange off."""
        self._call.cancel()

    async def _next(self) -> Told:
        told = await self.told()
        assert told is not None, await self._call.code()
        return told

    def _head(self) -> dict[str, Any]:
        ask = self._ask
        headers = {":method": ask.method, ":path": ask.path, ":authority": "gateway", **ask.headers}
        parts: dict[str, Any] = {
            "request_headers": {"headers": _map(headers), "end_of_stream": ask.body is None},
            "protocol_config": {
                "request_body_mode": ask.mode, "response_body_mode": ask.response_mode,
            },
        }  # fmt: skip
        if ask.subset is not None:
            hint = {"x-gateway-destination-endpoint-subset": list(ask.subset)}
            parts["metadata_context"] = _metadata("envoy.lb.subset_hint", hint)
        return parts


def _metadata(namespace: str, content: Mapping[str, Any]) -> Any:
    message = ProcessingRequest()
    message.metadata_context.filter_metadata[namespace].update(content)
    return message.metadata_context


def _map(headers: Mapping[str, str]) -> dict[str, Any]:
    return {"headers": [{"key": k, "raw_value": v.encode()} for k, v in headers.items()]}


@asynccontextmanager
async def gateway(port: int) -> AsyncIterator[grpc.aio.Channel]:
    """Connect to a picker, as a gateway does that checks no certificate."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel

"""The messages of Envoy's external processing, as far as a picker needs them.

The schema is a part of `envoy.service.ext_proc.v3` (Envoy's API, external_processor.proto and what
it uses), written down here by field numbers: fields that are not named are skipped, as protobuf
has it. Answers are put together from bytes, since most of each is the same every time
([ADR 9](docs/adr/0009-picker.md)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

from kvatlas.common import limits
from kvatlas.common.llm_d.headers import DESTINATION, SCORES, SERVED, SUBSET
from kvatlas.common.records import record
from kvatlas.router.headers import Header

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD: Final = "Process"
BODY_CHUNK_BYTES: Final = 62_000
"""Of a body in one message: below the 64 KB that gateways take."""
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
DESTINATION_NAMESPACE: Final = "envoy.lb"

Part = Literal[
    "request_headers",
    "response_headers",
    "request_body",
    "response_body",
    "request_trailers",
    "response_trailers",
]
NO_BODY, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX, GRPC = range(6)
"""Modes in which bodies are sent (ProcessingMode.BodySendMode)."""

_PACKAGE: Final = "kvatlas.ext_proc"
_SCHEMA: Final[Mapping[str, str]] = {
    "HeaderValue": "key:1:string value:2:string raw_value:3:bytes",
    "HeaderMap": "headers:1:*HeaderValue",
    "HttpHeaders": "headers:1:HeaderMap end_of_stream:3:bool",
    "HttpBody": "body:1:bytes end_of_stream:2:bool end_of_stream_without_message:3:bool",
    "HttpTrailers": "trailers:1:HeaderMap",
    "Metadata": "filter_metadata:1:@Struct",
    "ProtocolConfiguration": "request_body_mode:1:int32 response_body_mode:2:int32",
    "ProcessingRequest": (
        "request_headers:2:HttpHeaders response_headers:3:HttpHeaders request_body:4:HttpBody"
        " response_body:5:HttpBody request_trailers:6:HttpTrailers"
        " response_trailers:7:HttpTrailers metadata_context:8:Metadata attributes:9:@Struct"
        " protocol_config:11:ProtocolConfiguration"
    ),
}
_FILTER: Final = "envoy.filters.http.ext_proc"
"""Attributes are told under its name, whatever a filter is called."""
_VIA_UPSTREAM: Final = "via_upstream"
_STRUCT: Final = ".google.protobuf.Struct"
_SCALARS: Final = {
    "string": "TYPE_STRING",
    "bytes": "TYPE_BYTES",
    "bool": "TYPE_BOOL",
    "int32": "TYPE_INT32",
}


def message_class(schema: Mapping[str, str], name: str) -> Any:
    """Make the class of a message.

    Args:
        schema: of it and those that it uses: fields as name:number:kind, where a kind is a scalar
            or another message, *Message a list of them, @Struct a map from texts to Structs.
        name: of the message.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name=f"kvatlas/{name}.proto", package=_PACKAGE, syntax="proto3"
    )
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    for message_name, fields in schema.items():
        message = file.message_type.add(name=message_name)
        for each in fields.split():
            field, number, kind = each.split(":")
            made = message.field.add(name=field, number=int(number), label=kinds.LABEL_OPTIONAL)
            if kind.startswith("*"):
                made.label = kinds.LABEL_REPEATED
            kind = kind.lstrip("*")
            if kind in _SCALARS:
                made.type = getattr(kinds, _SCALARS[kind])
                continue
            made.type = kinds.TYPE_MESSAGE
            made.type_name = _STRUCT if kind == "Struct" else f".{_PACKAGE}.{kind}"
            if kind.startswith("@"):
                _as_map(message, made)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def _entry_name(field: str) -> str:
    """Name the pairs of a map as protobuf demands it."""
    return "".join(word.title() for word in field.split("_")) + "Entry"


def _as_map(message: Any, field: Any) -> None:
    """Make a field a map of strings to Structs, which is a list of pairs on the wire."""
    kinds = descriptor_pb2.FieldDescriptorProto
    entry = message.nested_type.add(name=_entry_name(field.name))
    entry.options.map_entry = True
    optional = kinds.LABEL_OPTIONAL
    entry.field.add(name="key", number=1, label=optional, type=kinds.TYPE_STRING)
    value = entry.field.add(name="value", number=2, label=optional, type=kinds.TYPE_MESSAGE)
    value.type_name = _STRUCT
    field.label = kinds.LABEL_REPEATED
    field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"


_ProcessingRequest: Final = message_class(_SCHEMA, "ProcessingRequest")


# --- what arrives ---------------------------------------------------------------------------------


@record
class Arrived:
    """A message from the gateway.

    Attributes:
        part: of the exchange that it brings; None for one that we do not know.
        content: its headers, body or trailers.
        message: all of it.
    """

    part: Part | None
    content: Any
    message: Any

    @property
    def is_last(self) -> bool:
        """Tell whether nothing of the body follows."""
        content = self.content
        if self.part in ("request_body", "response_body"):
            return bool(content.end_of_stream or content.end_of_stream_without_message)
        return bool(content.end_of_stream)

    @property
    def body(self) -> bytes:
        """Give the piece of a body."""
        piece: bytes = self.content.body
        return piece

    def headers(self) -> list[Header]:
        """Give the headers as received, pseudo-headers among them; bytes as surrogates."""
        return [
            (each.key, each.raw_value.decode("utf-8", "surrogateescape") or each.value)
            for each in self.content.headers.headers
        ]

    def body_modes(self) -> tuple[int, int] | None:
        """Tell how bodies of requests and answers are sent; None where that is not told."""
        if not self.message.HasField("protocol_config"):
            return None
        told = self.message.protocol_config
        return told.request_body_mode, told.response_body_mode

    def subset(self) -> list[str] | None:
        """Give the endpoints that a request may go to; None where any is fine.

        A hint that is there but cannot be read lets nobody through.
        """
        value = self._metadata(SUBSET_NAMESPACE, SUBSET.name)
        if value is None:
            return None
        if value.WhichOneof("kind") == "list_value":
            return [each.string_value for each in value.list_value.values]
        return [each.strip() for each in value.string_value.split(",") if each.strip()]

    def served(self) -> str | None:
        """Give the endpoint that answered, where the gateway tells it."""
        value = self._metadata(DESTINATION_NAMESPACE, SERVED.name)
        if value is not None and value.string_value:
            told: str = value.string_value
            return told
        return self._attribute("upstream.address")

    def is_engines(self) -> bool | None:
        """Tell whether an answer is an engine's, not the gateway's own; None if it is not told."""
        details = self._attribute("response.code_details")
        return None if details is None else details == _VIA_UPSTREAM

    def _metadata(self, namespace: str, key: str) -> Any:
        if not self.message.HasField("metadata_context"):
            return None
        return _member(self.message.metadata_context.filter_metadata, namespace, key)

    def _attribute(self, name: str) -> str | None:
        value = _member(self.message.attributes, _FILTER, name)
        return (value.string_value or None) if value is not None else None


def _member(structs: Any, key: str, member: str) -> Any:
    """Give a member of a struct of a map; None where there is none."""
    if key not in structs or member not in structs[key].fields:
        return None
    return structs[key].fields[member]


def read(raw: bytes) -> Arrived:
    """Read a message.

    Raises:
        ValueError: it is none. The gateway's.

    Cost: 6 us with 20 headers.
    """
    try:
        message = _ProcessingRequest.FromString(raw)
    except Exception as error:  # DecodeError is the runtime's own, and differs between them
        raise ValueError("no ProcessingRequest") from error
    for part in _PARTS:
        if message.HasField(part):
            return Arrived(part, getattr(message, part), message)
    return Arrived(None, None, message)


_PARTS: Final[tuple[Part, ...]] = (
    "request_body",
    "request_headers",
    "response_headers",
    "response_body",
    "response_trailers",
    "request_trailers",
)


# --- what is answered -----------------------------------------------------------------------------

_ANSWERS: Final[Mapping[Part, int]] = {
    "request_headers": 1,
    "response_headers": 2,
    "request_body": 3,
    "response_body": 4,
    "request_trailers": 5,
    "response_trailers": 6,
}
_IMMEDIATE: Final = 7
_OVERWRITE: Final = b"\x18\x02"
"""HeaderValueOption.append_action: OVERWRITE_IF_EXISTS_OR_ADD."""
_CLEAR_ROUTE: Final = b"\x28\x01"


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    """Write a field of bytes, text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _header(name: str, value: str) -> bytes:
    """Write a header as HeaderMutation.set_headers has it."""
    inner = _field(1, name.lower().encode()) + _field(3, _encoded(value))
    return _field(1, _field(1, inner) + _OVERWRITE)


def _mutation(headers: Iterable[Header], removed: Iterable[str]) -> bytes:
    written = [_header(name, value) for name, value in headers]
    written += [_field(2, name.encode()) for name in removed]
    return b"".join(written)


@lru_cache(maxsize=limits.DESTINATIONS_WRITTEN_MAX)
def _destination_metadata(destination: str) -> bytes:
    return _metadata({DESTINATION.name: destination}, {})


def _metadata(texts: Mapping[str, str], scores: Mapping[str, float]) -> bytes:
    """Write dynamic metadata of the namespace that load balancers read."""
    struct = struct_pb2.Struct()
    inner: dict[str, Any] = dict(texts)
    if scores:
        inner[SCORES.name] = dict(scores)
    struct.update({DESTINATION_NAMESPACE: inner})
    return _field(8, struct.SerializeToString())


@record
class Change:
    """What is to become of a request, or of an answer.

    Attributes:
        headers: that are set; they replace those of the same name.
        removed: names of headers to be taken out.
        destination: endpoints to send a request to, the best first, with commas; None for none.
        scores: of all candidates by endpoint, where they are to be told.
        body: instead of the one that came whole; None to leave it.
    """

    headers: Sequence[Header] = ()
    removed: Sequence[str] = ()
    destination: str | None = None
    scores: Mapping[str, float] | None = None
    body: bytes | None = None


NO_CHANGE: Final = Change()


def changed(part: Part, change: Change, *, response_body: int | None = None) -> bytes:
    """Answer a part: go on, with these changes.

    Args:
        part: headers, or a body that was buffered.
        change: what to change.
        response_body: mode in which the answer's body is to be sent, where it is to be another.
    """
    headers = list(change.headers)
    if change.destination is not None:
        headers.append((DESTINATION.name, change.destination))
    # Gateways differ in what comes first, so nothing is both set and taken out.
    ours = {name.lower() for name, _ in headers}
    mutation = _mutation(headers, [name for name in change.removed if name not in ours])
    common = _field(2, mutation) if mutation else b""
    if change.body is not None:
        common += _field(3, _field(1, change.body))
    if change.destination is not None:
        common += _CLEAR_ROUTE
    told = _field(_ANSWERS[part], _field(1, common) if common else b"")
    if change.destination is not None:
        if change.scores:
            told += _metadata({DESTINATION.name: change.destination}, change.scores)
        else:
            told += _destination_metadata(change.destination)
    if response_body is not None:
        # ProcessingMode: response headers and trailers are sent as before (1: SEND).
        told += _field(9, b"\x10\x01\x20" + _varint(response_body) + b"\x30\x01")
    return told


def streamed(part: Part, body: bytes, *, is_last: bool) -> bytes:
    """Answer with a piece of a body (FULL_DUPLEX_STREAMED)."""
    piece = (_field(1, body) if body else b"") + (b"\x10\x01" if is_last else b"")
    return _field(_ANSWERS[part], _field(1, _field(3, _field(3, piece))))


def streamed_body(part: Part, body: bytes, *, is_last: bool = True) -> list[bytes]:
    """Answer with a body in as many pieces as it takes; at least one."""
    starts = range(0, max(1, len(body)), BODY_CHUNK_BYTES)
    end = starts[-1]
    return [
        streamed(part, body[at : at + BODY_CHUNK_BYTES], is_last=is_last and at == end)
        for at in starts
    ]


def trailers(part: Part) -> bytes:
    """Answer trailers: leave them."""
    return _field(_ANSWERS[part], b"")


def immediate(status: int, headers: Iterable[Header], body: bytes, details: str) -> bytes:
    """Answer the client at once.

    Args:
        status: of HTTP.
        headers: of the answer.
        body: alike.
        details: for the gateway's log, without blanks.
    """
    content = _field(1, b"\x08" + _varint(status))
    mutation = _mutation(headers, ())
    if mutation:
        content += _field(2, mutation)
    return _field(_IMMEDIATE, content + _field(3, body) + _field(5, details.encode()))

"""llm-d's list of endpoints, as its file-discovery reads it, in the form of ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.llm_d.schema import Entry, Reader


def _address(text: str) -> str:
    return f"[{text}]" if isinstance(ip_address(text), IPv6Address) else text


def _port(text: str) -> str:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise ValueError("is a port, written as text")
    return text


class _Endpoint(Entry):
    name: Annotated[str, Field(min_length=1)]
    namespace: str = ""
    address: Annotated[str, AfterValidator(_address)]
    port: Annotated[str, AfterValidator(_port)]
    metrics_host: str = ""
    labels: Annotated[dict[str, str] | None, Field(max_length=limits.LABELS_PER_ENDPOINT_MAX)] = (
        None
    )


def is_llm_d(content: object) -> bool:
    """Tell whether a file's content is a list of endpoints as llm-d has it."""
    return isinstance(content, Mapping) and "endpoints" in content


def entries_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the entries as under `endpoints`, without a model and event ports.

    Args:
        content: of the file: a mapping with `endpoints`.

    Raises:
        ConfigError: with every fault, each with its path.
    """
    reader, entries = Reader(), content.get("endpoints")
    if not isinstance(entries, list) or set(content) != {"endpoints"}:
        raise ConfigError(["endpoints: is a list, and all that the file has"])
    found = []
    for i, entry in enumerate(entries):
        if (read := reader.read(_Endpoint, entry, f"endpoints.{i}")) is not None:
            url = f"http://{read.address}:{int(read.port)}"
            found.append({"url": url, "labels": dict(read.labels or {})})
    if reader.faults:
        raise ConfigError(reader.faults)
    return found

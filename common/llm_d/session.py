"""How llm-d's session plugins tell conversations apart, as `router.session` has it. Pure."""

from __future__ import annotations

from typing import Any, Final

from kvatlas.common.llm_d.parameters import (
    AgentIdentity,
    EndpointHeader,
    IdSource,
    SessionAffinity,
    SessionId,
    SessionIdProducer,
)
from kvatlas.common.llm_d.plugins import Plugin, Plugins
from kvatlas.common.llm_d.schema import Reader

TOKEN_HEADER: Final = "x-session-token"  # noqa: S105 - the name of a header
ID_HEADER: Final = "x-session-id"
AGENT_HEADERS: Final = (
    "x-claude-code-session-id", "x-session-affinity", "session-id", "session_id",
)  # fmt: skip
"""By which llm-d tells the conversations of agents apart."""


class SessionReader:
    """Reads the session plugins of the profile that decides."""

    def __init__(self, reader: Reader, plugins: Plugins) -> None:
        self._faults = reader.faults
        self._plugins = plugins
        self._headers: list[str] = []
        self._ids: list[str] = []

    def read(self, in_use: list[Plugin]) -> dict[str, Any]:
        """Give the section; empty where conversations are not told apart."""
        for each in in_use:
            if each.use == "session":
                self._session(each)
        section: dict[str, Any] = {}
        if self._headers:
            section["header"] = self._headers[0]
        if self._ids:
            section["id_headers"] = list(dict.fromkeys(self._ids))
        return section

    def _session(self, plugin: Plugin) -> None:
        told = self._plugins.parameters(SessionAffinity, plugin)
        if told is None:
            return
        path = f"{plugin.path}.parameters"
        if told.strategy == "session_id":
            sources = (told.session_id_config or SessionId()).sources or [
                IdSource(header=ID_HEADER)
            ]
            for i, each in enumerate(sources):
                self._ids += self._source(each, f"{path}.sessionIdConfig.sources.{i}")
        elif told.algorithm == "session_id_header":
            self._ids.append(told.header_name or TOKEN_HEADER)
        else:
            known = told.encoded_endpoint_header_config or EndpointHeader()
            self._token(told.header_name or known.header or TOKEN_HEADER, path)

    def _token(self, header: str, path: str) -> None:
        if self._headers and header not in self._headers:
            self._faults.append(
                f"{path}: conversations have one header, not {self._headers[0]} too"
            )
        self._headers.append(header)

    def _source(self, source: IdSource, path: str) -> list[str]:
        """Give the headers behind a source of ids."""
        if source.header:
            return [source.header]
        named = self._plugins.get(source.producer or source.attribute)
        if named is not None and named.type == "session-id-producer":
            told = self._plugins.parameters(SessionIdProducer, named) or SessionIdProducer()
            if not told.cookie_name:
                return [told.header_name or ID_HEADER]
        elif source.attribute == "agent-identity":
            return [*AGENT_HEADERS, *self._additional()]
        self._faults.append(f"{path}.attribute: is not a header that requests have")
        return []

    def _additional(self) -> list[str]:
        found: list[str] = []
        for each in self._plugins.of("agent-identity"):
            told = self._plugins.parameters(AgentIdentity, each)
            found += (told.additional_session_headers or []) if told else []
        return found

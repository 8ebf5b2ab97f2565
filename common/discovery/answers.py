"""What engines say of what they serve and where their events are. Pure.

They are trusted with nothing: an address that cannot be subscribed to is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from kvatlas.common import limits
from kvatlas.common.setting_sections import EventStream

_ADDRESS: Final = re.compile(
    r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:*/\[\]]+|\*):(?P<port>\d{1,5})"
)
_EVERYWHERE: Final = frozenset({"*", "0.0.0.0", "[::]"})  # noqa: S104 - what engines say
"""Hosts that an engine binds on and nobody can connect to."""


@dataclass(frozen=True, slots=True)
class EventSource:
    """Where an engine says that the events of a rank are, as it says it."""

    events: str | None
    replay: str | None

    def seen_from(self, host: str) -> EventStream | None:
        """Give the addresses to connect to; None where there are none.

        Args:
            host: that the engine is reached by, in brackets if it is an address of IPv6.
        """
        events = _reached(self.events, host)
        return None if events is None else EventStream(events, _reached(self.replay, host))


EventSources = Mapping[int, EventSource]
"""By rank of data parallelism."""


def read_event_sources(content: bytes) -> EventSources | None:
    """Read the answer of `/kv_event_sources`; None where it is none."""
    answer = _json(content)
    if not isinstance(answer, dict) or len(answer) > limits.DATA_PARALLEL_MAX:
        return None
    if not all(rank.isascii() and rank.isdigit() and len(rank) < 6 for rank in answer):
        return None
    return {
        int(rank): EventSource(_text(told.get("endpoint")), _text(told.get("replay_endpoint")))
        for rank, told in answer.items()
        if isinstance(told, dict)
    }


def read_model_names(content: bytes) -> tuple[str, ...] | None:
    """Read the names of models in the answer of `/v1/models`, without adapters; None for none."""
    answer = _json(content)
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list):
        return None
    return tuple(
        card["id"]
        for card in cards
        if isinstance(card, dict) and _text(card.get("id")) and card.get("parent") is None
    )


def _reached(address: str | None, host: str) -> str | None:
    parts = None if address is None else _ADDRESS.fullmatch(address)
    if parts is None or not 0 < int(parts["port"]) < 65_536:
        return None
    there = host if parts["host"] in _EVERYWHERE else parts["host"]
    return f"tcp://{there}:{parts['port']}"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None

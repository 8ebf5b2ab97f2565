"""What routers tell each other of their flights: entries of a Redis stream, as JSON. Pure.

    router    who tells it
    launched  [[number, endpoint, tokens, is_silent, session, root, hashes], ...]
    began     [number, ...]
    ended     [[number, endpoint], ...]
    state     {"awaiting": [[number, endpoint, tokens, is_silent], ...], "running": {endpoint: n}}

Hashes are written as 16 hex digits each. A state is told once a second and stands alone.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.router.flights import Board, Launch, RouterId
from kvatlas.router.predictions import Sketch

_Launched = tuple[int, str, int, bool, str | None, str, str]
_HASH_BYTES: Final = 8


class _State(msgspec.Struct):
    awaiting: list[tuple[int, str, int, bool]]
    running: dict[str, int]


_encode: Final = msgspec.json.encode
_LAUNCHED: Final = msgspec.json.Decoder(list[_Launched])
_BEGAN: Final = msgspec.json.Decoder(list[int])
_ENDED: Final = msgspec.json.Decoder(list[tuple[int, str]])
_STATE: Final = msgspec.json.Decoder(_State)

Fields = list[bytes | str]
"""Names and values by turns, as XADD takes them."""


@dataclass(slots=True)
class Outbox:
    """What has changed with own flights since it was last told."""

    launched: list[Launch] = field(default_factory=list)
    began: list[int] = field(default_factory=list)
    ended: list[tuple[int, str]] = field(default_factory=list)

    def take(self, router: RouterId) -> Fields:
        """Hand over what there is to tell; nothing where there is nothing."""
        fields: Fields = ["router", router]
        if self.launched:
            fields += ["launched", _encode([_told(launch) for launch in self.launched])]
            self.launched = []
        if self.began:
            fields += ["began", _encode(self.began)]
            self.began = []
        if self.ended:
            fields += ["ended", _encode(self.ended)]
            self.ended = []
        return fields if len(fields) > 2 else []


def _told(launch: Launch) -> _Launched:
    root = hashes = ""
    if launch.sketch is not None:
        root = f"{launch.sketch.root:016x}"
        hashes = _packed(launch.sketch.hashes)
    session = None if launch.session is None else f"{launch.session:016x}"
    name, tokens = launch.endpoint, launch.tokens
    return (launch.number, name, tokens, launch.is_silent, session, root, hashes)


def state_fields(
    router: RouterId, awaiting: Sequence[Launch], running: Mapping[EndpointName, int]
) -> Fields:
    """Write everything that a router has under way."""
    told = [(one.number, str(one.endpoint), one.tokens, one.is_silent) for one in awaiting]
    return ["router", router, "state", _encode({"awaiting": told, "running": running})]


def apply_entry(board: Board, fields: Sequence[bytes], redis_s: float, now_s: float) -> bool | None:
    """Take an entry of the stream over to a board; own entries only count as read.

    Args:
        board: of the reader.
        fields: names and values by turns.
        redis_s: when it was written, by Redis' clock.
        now_s: when, by the clock of the board's owner.

    Returns:
        Whether another router has launched anything; None for what cannot be read and is left out.
    """
    try:
        entry: dict[bytes, bytes] = dict(zip(fields[::2], fields[1::2], strict=True))
        router = RouterId(entry[b"router"].decode())
        if router == board.me:
            return False
        if len(router) > limits.ROUTER_ID_CHARS_MAX:
            return None
        board.heard(router, redis_s)
        _apply(board, router, entry, now_s)
    except (ValueError, KeyError, msgspec.MsgspecError):
        return None
    return b"launched" in entry


def _apply(board: Board, router: RouterId, entry: Mapping[bytes, bytes], now_s: float) -> None:
    if (text := entry.get(b"launched")) is not None:
        for number, endpoint, tokens, is_silent, session, root, hashes in _LAUNCHED.decode(text):
            sketch = _sketch(root, hashes)
            digest = None if session is None else int(session, 16)
            name = EndpointName(endpoint)
            launch = Launch(number, name, tokens, is_silent, sketch, digest)
            board.launched(router, launch, now_s)
    if (text := entry.get(b"began")) is not None:
        for number in _BEGAN.decode(text):
            board.began(router, number, now_s)
    if (text := entry.get(b"ended")) is not None:
        for number, endpoint in _ENDED.decode(text):
            board.ended(router, number, EndpointName(endpoint))
    if (text := entry.get(b"state")) is not None:
        state = _STATE.decode(text)
        launches = [
            Launch(number, EndpointName(endpoint), tokens, is_silent)
            for number, endpoint, tokens, is_silent in state.awaiting
        ]
        running = {EndpointName(name): count for name, count in state.running.items()}
        board.restated(router, launches, running, now_s)


def _sketch(root: str, hashes: str) -> Sketch | None:
    if not hashes:
        return None
    raw = bytes.fromhex(hashes)[: _HASH_BYTES * limits.SKETCH_HASHES_MAX]
    found: tuple[Any, ...] = struct.unpack(f">{len(raw) // _HASH_BYTES}Q", raw)
    return Sketch(BlockHash(int(root, 16)), found)


def _packed(hashes: Sequence[BlockHash]) -> str:
    return struct.pack(f">{len(hashes)}Q", *hashes).hex()

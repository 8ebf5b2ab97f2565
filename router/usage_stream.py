"""Read the usage at the end of a stream, and take it out where the client did not ask. Pure.

vLLM sends one chunk more when it is asked for the usage: with no choices, behind the last one that
has any, and with the `system_fingerprint` that otherwise stands on that last one. So the chunk
that ends the choice is held until the next one comes (they leave the engine together), gets the
fingerprint back, and the chunk with the usage is dropped. Nothing else is delayed but events of
which only a part has come, and those only where there is something to take out.

No chunk is parsed but those that hold the bytes of a usage, of an end or of [DONE]. These cannot
occur in a text that was generated: there, quotes are escaped.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from kvatlas.common import limits
from kvatlas.router.usage import Usage, usage_from

DONE: Final = b"[DONE]"
_EVENT_END: Final = re.compile(rb"\n\r?\n|\r\r")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_MARKS: Final = (b'"usage"', b'"finish_reason":"', b'"finish_reason": "', DONE)
_OVERLAP: Final = 2
"""Bytes before a piece that may be part of the end of an event."""


class UsageStream:
    """Watch one stream.

    Args:
        takes_out: whether the usage was asked for by us alone, so that the client must not see it.
        stamps: whether the engine puts a fingerprint on the last chunk of a choice when it is not
            asked for the usage.

    Attributes:
        takes_out: as given.
        usage: as reported, or None.
        has_usage_chunk: whether a chunk of its own brought it.
        is_forced: whether chunks with choices carry a usage, too.
        is_stamped: whether the last chunk of a choice came with a fingerprint.
        is_ended: whether a choice has come to its end.
        is_done: whether [DONE] was seen.

    Cost: 0.5 us per ordinary chunk.
    """

    __slots__ = (
        "_held", "_is_skipping", "_partial", "_stamps", "has_usage_chunk", "is_done", "is_ended",
        "is_forced", "is_stamped", "takes_out", "usage",
    )  # fmt: skip

    def __init__(self, *, takes_out: bool, stamps: bool) -> None:
        self.takes_out = takes_out
        self._stamps = stamps
        self._partial = b""
        self._is_skipping = False
        self._held: list[bytes] = []
        self.usage: Usage | None = None
        self.has_usage_chunk = False
        self.is_forced = False
        self.is_stamped = False
        self.is_ended = False
        self.is_done = False

    def feed(self, piece: bytes) -> bytes:
        """Take a piece as it was read.

        Returns:
            What the client gets at once; may be empty.
        """
        if (
            not (self._partial or self._held or self._is_skipping)
            and piece.endswith(b"\n\n")
            and not _is_worth_a_look(piece)
        ):
            return piece
        passed = self._events(piece)
        return passed if self.takes_out else piece

    def end(self) -> bytes:
        """Give what was held back, when nothing more comes, whole or torn."""
        rest = b"" if self._is_skipping else self._partial
        kept = b"".join((*self._held, rest))
        self._held, self._partial = [], b""
        return kept if self.takes_out else b""

    def _events(self, piece: bytes) -> bytes:
        """Go through the events that a piece completes."""
        passed: list[bytes] = []
        data, at = self._partial + piece, 0
        # Of what was looked through before only the last bytes can belong to an end.
        look_from = max(0, len(self._partial) - _OVERLAP)
        if self._is_skipping:
            at = len(self._partial)
        while found := _EVENT_END.search(data, look_from):
            end = look_from = found.end()
            if self._is_skipping:
                passed.append(data[at:end])
                self._is_skipping = False
            else:
                passed.append(self._event(data[at:end]))
            at = end
        self._partial = data[at:]
        if self._is_skipping or len(self._partial) > limits.STREAM_EVENT_BYTES_MAX:
            passed.extend((*self._held, self._partial))
            self._held = []
            self._is_skipping = True
            self._partial = data[-_OVERLAP:]
        return b"".join(passed)

    def _event(self, event: bytes) -> bytes:
        """Decide on one whole event."""
        payload = _payload(event)
        if payload is None and self._held:
            # A comment in between: it stays behind what it came behind.
            self._held.append(event)
            return b""
        chunk: Any = None
        if payload is not None and _is_worth_a_look(payload):
            self.is_done = self.is_done or payload == DONE
            chunk = _parsed(payload)
        if not isinstance(chunk, dict):
            return self._release() + event
        return self._chunk(event, chunk)

    def _chunk(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        usage, choices = chunk.get("usage"), chunk.get("choices")
        fingerprint = chunk.get("system_fingerprint")
        if choices == [] and isinstance(usage, dict):
            self.usage, self.has_usage_chunk = usage_from(usage), True
            if self.is_forced:
                return self._release() + event
            return self._release(fingerprint if isinstance(fingerprint, str) else None)
        before = self._release()
        ends = _ends(choices)
        self.is_ended = self.is_ended or ends
        if isinstance(usage, dict):
            # Asked for at the end only: so this engine does it for everybody, and our asking
            # changes nothing for the client.
            self.is_forced = True
        elif ends:
            self.is_stamped = self.is_stamped or isinstance(fingerprint, str)
            if self._stamps and "system_fingerprint" not in chunk and not self.is_forced:
                self._held = [event]
                return before
        return before + event

    def _release(self, fingerprint: str | None = None) -> bytes:
        """Give the chunk that was held, with its fingerprint if there is one."""
        if not self._held:
            return b""
        last, *comments = self._held
        self._held = []
        if fingerprint is not None:
            at = last.rindex(b"}")
            stamp = b',"system_fingerprint":' + orjson.dumps(fingerprint)
            last = last[:at] + stamp + last[at:]
        return b"".join((last, *comments))


def _is_worth_a_look(piece: bytes) -> bool:
    usage, end, spaced_end, done = _MARKS
    # Written out: this is the whole cost of an ordinary chunk.
    return usage in piece or end in piece or spaced_end in piece or done in piece


def _payload(event: bytes) -> bytes | None:
    """Give the data of an event whose data is one line; None for other events."""
    lines = [line for line in _LINE_END.split(event) if line and not line.startswith(b":")]
    if len(lines) != 1 or not lines[0].startswith(b"data:"):
        return None
    return lines[0].removeprefix(b"data:").strip()


def _parsed(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None


def _ends(choices: Any) -> bool:
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and isinstance(choice.get("finish_reason"), str)
        for choice in choices
    )

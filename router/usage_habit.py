"""What is known of one engine's way to report usage, learned from its answers. Pure.

Whether usage comes by itself (`--enable-force-include-usage`) or never with the cached tokens
(without `--enable-prompt-tokens-details`) is no engine's answer to any question, so the first
stream goes as its client sent it and is watched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from kvatlas.router.usage import Usage
from kvatlas.router.usage_stream import UsageStream

SILENT_ANSWERS: Final = 3
"""Complete answers in a row without cached tokens after which an engine is not asked again."""

State = Literal["unknown", "on_request", "by_itself", "never"]
Asked = Literal["nobody", "client", "us"]
"""Who asked for the usage of a stream."""


@dataclass(slots=True)
class UsageHabit:
    """How an engine reports.

    Attributes:
        state: "unknown" before its first whole stream; usage comes "on_request", "by_itself",
            or "never" with the cached tokens.
        stamps: whether the last chunk of a choice has a fingerprint when usage is not asked for.
    """

    state: State = "unknown"
    stamps: bool = False
    _silent: int = 0

    @property
    def is_worth_asking(self) -> bool:
        """Tell whether asking brings what would not come without."""
        return self.state == "on_request"

    def note_stream(self, stream: UsageStream, asked: Asked) -> None:
        """Learn from a stream that has ended."""
        if not (stream.is_done and stream.is_ended):
            return
        comes_by_itself = stream.has_usage_chunk if asked == "nobody" else stream.is_forced
        if asked != "client" and comes_by_itself:
            self.state = "by_itself"
        elif asked == "nobody":
            if self.state == "unknown":
                self.state, self.stamps = "on_request", stream.is_stamped
            return
        self.note_usage(stream.usage)

    def note_usage(self, usage: Usage | None) -> None:
        """Learn from the usage of an answer that should have had one."""
        if usage is not None and usage.cached_tokens is not None:
            self._silent = 0
            if self.state == "never":
                self.state = "unknown"
            return
        self._silent += 1
        if self._silent >= SILENT_ANSWERS and self.state == "on_request":
            self.state = "never"

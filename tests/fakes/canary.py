"""A text that must turn up nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from redis import Redis

READ_KEYS = 1_000
"""Read in one round trip."""


@dataclass
class Canary:
    """A text that goes into whatever a client or an engine may send, and where it was looked for.

    Attributes:
        seen_in: what was found to hold it.
    """

    text: str
    seen_in: list[str] = field(default_factory=list)

    def look(self, where: str, content: str | bytes) -> None:
        """Look for it."""
        text = content.decode(errors="replace") if isinstance(content, bytes) else content
        if self.text in text:
            self.seen_in.append(where)

    def look_at_metrics(self, registry: CollectorRegistry) -> None:
        """Look for it on a page of metrics."""
        self.look("metrics", generate_latest(registry))

    def look_into(self, client: Redis) -> None:
        """Look for it in every key and value of a Redis."""
        keys = list(client.scan_iter("*", count=READ_KEYS))
        self.look("keys", b"\n".join(keys))
        for start in range(0, len(keys), READ_KEYS):
            pipe = client.pipeline(transaction=False)
            for key in keys[start : start + READ_KEYS]:
                pipe.dump(key)
                pipe.hgetall(key)
            for value in pipe.execute(raise_on_error=False):
                self.look("values", value if isinstance(value, bytes) else repr(value))

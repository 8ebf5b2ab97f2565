"""What an endpoint's stand with all routers says of its load. Pure."""

from __future__ import annotations

from kvatlas.router.flights import Stand


class StandLoad:
    """The part of `scheduling.Load` that is read off a stand."""

    __slots__ = ()
    stand: Stand

    @property
    def requests(self) -> int:
        """Count the requests that all routers have under way there."""
        return self.stand.requests

    @property
    def awaiting(self) -> int:
        """Count those of them whose prompts are not known to be computed."""
        return self.stand.awaiting

    @property
    def queued_tokens(self) -> int:
        """Sum the uncached prompt tokens of those that await their first byte."""
        return self.stand.tokens

    @property
    def token_s(self) -> float:
        """Give the seconds that it takes to prefill a token."""
        return self.stand.speed.line.token_s

    @property
    def base_s(self) -> float:
        """Give the seconds that a request takes there beside its tokens."""
        return self.stand.speed.line.base_s

    def wait_s(self, now_s: float) -> float:
        """Estimate how long a prompt would wait until its turn."""
        return self.stand.wait_s(now_s)

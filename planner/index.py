"""Which engine has how much of each run cached: as it is, and as routers see it, late. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from kvatlas.planner.jobs import Job, Run

Blocks = Mapping[int, int]
"""Leading blocks of a prompt by endpoint; who has none is left out."""


class Holders:
    """How many leading blocks of each run each endpoint has."""

    def __init__(self) -> None:
        self._of: dict[int, dict[int, int]] = {}

    def put(self, endpoint: int, run: Run, count: int) -> None:
        """Note that an endpoint has so many leading blocks of a run."""
        holders = self._of.get(run.number)
        if holders is None:
            holders = self._of[run.number] = {}
        if count:
            holders[endpoint] = count
        else:
            holders.pop(endpoint, None)

    def of(self, run: Run) -> Blocks:
        """Give who has how many leading blocks of a run."""
        return self._of.get(run.number, {})

    def match(self, job: Job) -> dict[int, int]:
        """Find the match of every endpoint.

        Who has a block of a run has all blocks before it, since caches lose tails first.
        """
        found: dict[int, int] = {}
        for run in job.runs:
            holders = self._of.get(run.number)
            if not holders:
                break
            start = run.start
            for endpoint, count in holders.items():
                found[endpoint] = start + count
        return found


class Index:
    """What routers see: changes come at the end of a step, and later by a delay.

    Args:
        delay_s: from the end of a step until its events are in the index.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._seen = Holders()
        self._stepping: dict[int, dict[int, tuple[Run, int]]] = {}
        self._coming: deque[tuple[float, int, list[tuple[Run, int]]]] = deque()

    def changed(self, endpoint: int, run: Run, count: int) -> None:
        """Note a change that the step which is being planned makes."""
        changes = self._stepping.get(endpoint)
        if changes is None:
            changes = self._stepping[endpoint] = {}
        changes[run.number] = (run, count)

    def stepped(self, endpoint: int, now_s: float) -> None:
        """Send the events of a step that is over; times never fall from call to call."""
        changes = self._stepping.pop(endpoint, None)
        if changes:
            self._coming.append((now_s + self._delay_s, endpoint, list(changes.values())))

    def match(self, job: Job, now_s: float) -> dict[int, int]:
        """Find the match of every endpoint as the index has it at a moment."""
        coming, put = self._coming, self._seen.put
        while coming and coming[0][0] <= now_s:
            _, endpoint, changes = coming.popleft()
            for run, count in changes:
                put(endpoint, run, count)
        return self._seen.match(job)

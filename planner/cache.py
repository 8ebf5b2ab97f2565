"""The block cache of one model engine, as vLLM keeps it, held in runs. Pure.

A run's blocks are cached from its start, never with a hole: whoever uses a run uses all of it, and
blocks are freed tail first. What nobody uses waits in one queue, least recently freed first, and
is taken from there, a run's last block first.

Where it is coarser than vLLM: room for the whole answer is taken at the start, so nobody is ever
preempted; a prompt that is cached whole computes its last block in place, not in a second copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from kvatlas.planner.jobs import Job, Run

Changed = Callable[[Run, int], None]
"""Told how many leading blocks of a run are cached, each time that it changes."""
_OUTPUT: Final = -1


class RunCache:
    """Blocks of one engine.

    Args:
        capacity: blocks that there are, at least one.
        changed: told of every change of what is cached.
    """

    def __init__(self, capacity: int, changed: Changed) -> None:
        self.capacity = capacity
        self.pinned = 0
        """Blocks of running jobs, with those that they will still fill."""
        self.idle = 0
        """Cached blocks that nobody uses."""
        self._changed = changed
        self._held: dict[int, int] = {}
        self._users: dict[int, int] = {}
        # A run with its idle blocks, or the output of a job that has ended under its number < 0.
        self._queue: OrderedDict[int, tuple[Run | None, int]] = OrderedDict()

    @property
    def usage(self) -> float:
        """Give the share of blocks that running jobs hold, as vLLM's gauge does."""
        return self.pinned / self.capacity

    def held(self, run: Run) -> int:
        """Count the leading blocks of a run that are cached."""
        return self._held.get(run.number, 0)

    def match(self, job: Job) -> int:
        """Count the leading blocks of a prompt that are cached and can be used."""
        held = self._held
        total = 0
        for run in job.runs:
            count = held.get(run.number, 0)
            total += count
            if count < run.length:
                break
        return min(total, job.usable_blocks)

    def admit(self, job: Job) -> bool:
        """Take all blocks that a job needs, its match among them.

        Returns:
            False, and nothing is changed, when too few blocks are free.
        """
        users = self._users
        fresh = [run for run in job.runs if not users.get(run.number)]
        need = job.room_blocks - job.blocks + sum(run.length for run in fresh)
        if self.pinned + need > self.capacity:
            return False
        for run in fresh:
            if self._queue.pop(run.number, None) is not None:
                self.idle -= self._held[run.number]
        for run in job.runs:
            users[run.number] = users.get(run.number, 0) + 1
        self.pinned += need
        self._evict(self.pinned + self.idle - self.capacity)
        return True

    def fill(self, job: Job, first: int, end: int) -> None:
        """Make the blocks [first, end) of a prompt findable; its job is admitted."""
        for run in job.runs:
            if run.start + run.length <= first:
                continue
            if run.start >= end:
                return
            count = min(run.length, end - run.start)
            if count > self._held.get(run.number, 0):
                self._held[run.number] = count
                self._changed(run, count)

    def release(self, job: Job) -> None:
        """Give back what a job that is done has used; what is cached of it waits in the queue."""
        self.pinned -= job.room_blocks - job.blocks
        self._wait(_OUTPUT - job.number, None, job.output_blocks)
        for run in reversed(job.runs):
            self._users[run.number] -= 1
            if self._users[run.number]:
                continue
            del self._users[run.number]
            self.pinned -= run.length
            self._wait(run.number, run, self._held[run.number])

    def _wait(self, key: int, run: Run | None, count: int) -> None:
        if count:
            self._queue[key] = (run, count)
            self.idle += count

    def _evict(self, blocks: int) -> None:
        while blocks > 0:
            key, (run, count) = self._queue.popitem(last=False)
            taken = min(count, blocks)
            blocks -= taken
            self.idle -= taken
            left = count - taken
            if left:
                self._queue[key] = (run, left)
                self._queue.move_to_end(key, last=False)
            if run is not None:
                self._forget(run, left)

    def _forget(self, run: Run, left: int) -> None:
        if left:
            self._held[run.number] = left
        else:
            del self._held[run.number]
        self._changed(run, left)

"""The cache of runs against one that holds every block by itself."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from kvatlas.planner.cache import RunCache
from kvatlas.planner.jobs import Job, make_jobs
from kvatlas.planner.trace import Record

CAPACITY = 150
Block = tuple[int, int]


@dataclass
class BlockCache:
    """Blocks with counts of users, and a queue of those that nobody uses."""

    users: Counter[Block] = field(default_factory=Counter)
    cached: set[Block] = field(default_factory=set)
    queue: OrderedDict[Block, None] = field(default_factory=OrderedDict)
    outputs: Counter[int] = field(default_factory=Counter)
    pinned: int = 0

    @staticmethod
    def blocks(job: Job) -> list[Block]:
        """List a prompt's blocks."""
        return [(run.number, at) for run in job.runs for at in range(run.length)]

    def match(self, job: Job) -> int:
        """Count its leading blocks that are cached and can be used."""
        found = 0
        for block in self.blocks(job):
            if block not in self.cached:
                break
            found += 1
        return min(found, job.usable_blocks)

    def admit(self, job: Job) -> bool:
        """Take all blocks that it needs."""
        blocks = self.blocks(job)
        need = job.room_blocks - job.blocks + sum(1 for each in blocks if not self.users[each])
        if self.pinned + need > CAPACITY:
            return False
        for each in blocks:
            self.queue.pop(each, None)
            self.users[each] += 1
        self.pinned += need
        while self.pinned + len(self.queue) > CAPACITY:
            gone, _ = self.queue.popitem(last=False)
            self.cached.discard(gone)
        return True

    def release(self, job: Job) -> None:
        """Give them back, the output first, then the prompt from its end."""
        self.pinned -= job.room_blocks - job.blocks
        for at in reversed(range(job.output_blocks)):
            self.queue[-1 - job.number, at] = None
        for each in reversed(self.blocks(job)):
            self.users[each] -= 1
            if not self.users[each]:
                self.pinned -= 1
                self.queue[each] = None


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=3),
        st.integers(1, 512),
        st.integers(1, 300),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(REQUESTS)
def test_runs_hold_what_blocks_would(
    requests: list[tuple[list[int], int, int, bool]],
) -> None:
    """Whatever comes and goes: the same matches, the same room, never over the capacity."""
    records = [
        Record(0.0, 512 * (len(ids) - 1) + rest, output, tuple(ids))
        for ids, rest, output, _ in requests
    ]
    jobs = make_jobs(records, 16, [0.0] * len(records))
    runs, blocks = RunCache(CAPACITY, lambda _run, _count: None), BlockCache()
    running: list[Job] = []
    for job, (_, _, _, stays) in zip(jobs, requests, strict=True):
        assert runs.match(job) == blocks.match(job)
        admitted = runs.admit(job)
        assert admitted == blocks.admit(job)
        if admitted:
            runs.fill(job, 0, job.blocks)
            blocks.cached.update(blocks.blocks(job))
            running.append(job)
        if not stays:
            while running:
                done = running.pop(0)
                runs.release(done)
                blocks.release(done)
        assert runs.pinned == blocks.pinned
        assert runs.idle == len(blocks.queue)
        assert runs.pinned + runs.idle <= CAPACITY
        assert [runs.match(each) for each in jobs] == [blocks.match(each) for each in jobs]

"""The planner's cache in runs against one that holds every block."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from kvatlas.planner.cache import RunCache
from kvatlas.planner.index import Holders
from kvatlas.planner.jobs import Job, make_jobs
from kvatlas.planner.trace import ID_TOKENS, Record

CAPACITY = 90
BLOCK = 128
"""Tokens per block: 4 to an id, so that small caches hold a few prompts."""

Block = tuple[int, int]
"""A run, or a job's output as a number below 0, and the place in it."""


class Naive:
    """A cache that keeps every block: users, and a queue of those that have none."""

    def __init__(self) -> None:
        self.users: dict[Block, int] = {}
        self.idle: OrderedDict[Block, None] = OrderedDict()
        self.reserved = 0

    def match(self, job: Job) -> int:
        """Count leading blocks that are there."""
        count = 0
        for block in blocks(job):
            if block not in self.users and block not in self.idle:
                break
            count += 1
        return min(count, job.usable_blocks)

    def admit(self, job: Job) -> bool:
        """Take the blocks of a job."""
        fresh = [block for block in blocks(job) if not self.users.get(block)]
        private = job.room_blocks - job.blocks
        if len(self.users) + self.reserved + len(fresh) + private > CAPACITY:
            return False
        for block in fresh:
            self.idle.pop(block, None)
        for block in blocks(job):
            self.users[block] = self.users.get(block, 0) + 1
        self.reserved += private
        while len(self.users) + self.reserved + len(self.idle) > CAPACITY:
            self.idle.popitem(last=False)
        return True

    def release(self, job: Job) -> None:
        """Give them back, tail first."""
        self.reserved -= job.room_blocks - job.blocks
        for place in reversed(range(job.output_blocks)):
            self.idle[-1 - job.number, place] = None
        for block in reversed(blocks(job)):
            self.users[block] -= 1
            if not self.users[block]:
                del self.users[block]
                self.idle[block] = None


def blocks(job: Job) -> list[Block]:
    """List the blocks of a prompt."""
    return [(run.number, place) for run in job.runs for place in range(run.length)]


prompts = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=5),
        st.integers(1, ID_TOKENS),
        st.integers(1, 900),
    ),
    min_size=1,
    max_size=25,
)


@given(prompts=prompts, order=st.lists(st.integers(0, 5), max_size=60))
def test_runs_are_cached_as_blocks_are(
    prompts: list[tuple[list[int], int, int]], order: list[int]
) -> None:
    """Expect the same matches, refusals and counts, and what was told to be what is there."""
    records = [
        Record(0.0, (len(ids) - 1) * ID_TOKENS + rest, output, tuple(ids))
        for ids, rest, output in prompts
    ]
    jobs = make_jobs(records, BLOCK, [0.0] * len(records))
    told, naive = Holders(), Naive()
    cache = RunCache(CAPACITY, lambda run, count: told.put(0, run, count))
    running: list[Job] = []
    steps = iter(order)
    for job in jobs:
        assert cache.match(job) == naive.match(job)
        done = cache.match(job)
        admitted = cache.admit(job)
        assert admitted == naive.admit(job)
        if admitted:
            cache.fill(job, done, job.blocks)
            running.append(job)
        for _ in range(next(steps, 0)):
            if running:
                gone = running.pop(0)
                cache.release(gone)
                naive.release(gone)
        assert cache.idle == len(naive.idle)
        assert cache.pinned == len(naive.users) + naive.reserved
        assert cache.pinned + cache.idle <= CAPACITY
        for each in jobs:
            held = told.match(each).get(0, 0)
            assert min(held, each.usable_blocks) == cache.match(each) == naive.match(each)

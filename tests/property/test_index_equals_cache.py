"""Whatever happens between engine and index: after it has settled, the index is the cache.

A state machine drives a simulated engine on real sockets, a real Redis and a real indexer. At all
times the index must name no holder of a former epoch; when all is quiet it must be what the engine
holds, or a part of it where the engine can no longer tell the rest. A failure comes again with
`--hypothesis-seed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from kvatlas.cli.redis_server import RedisServer
from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import ended
from kvatlas.indexer import app, chores, mirror
from kvatlas.indexer.app import Indexer
from tests.fakes.publisher import FakePublisher
from tests.property.engine_model import MODEL, EngineModel, Held, Identity

NAME = EndpointName("127.0.0.1:8101")
BASE = f"kvatlas:{{{MODEL}/0}}:"
SETTLE_S = 10.0
LEASE_S = 0.4
STEP_S = 0.005

MALFORMED = (b"", b"\xc1", b"\x93\x01\x02", b"\x92\xcb?\xf0\0\0\0\0\0\0\x91\x91\x07")

prompts = st.integers(0, 5)
lengths = st.integers(1, 40)
rarely = st.sampled_from([False, False, False, True])
"""For what leaves the index incomplete, so that its equality is not compared for the rest."""
identities = st.sampled_from(
    [Identity(), Identity(), Identity(salt="s"), Identity(lora="s"), Identity("ad1", "ad1")]
)


class Reader:
    """Read the index as REDIS.md describes it, with none of the product's code."""

    def __init__(self, url: str) -> None:
        self.client: Any = Redis.from_url(url, decode_responses=True)

    async def state(self) -> dict[str, str]:
        """Read the endpoint's state."""
        fields: dict[str, str] = await self.client.hgetall(f"{BASE}endpoint:{NAME}")
        return fields

    async def holders(self) -> tuple[str | None, dict[str, dict[str, str]]]:
        """Read, at one moment, the endpoint's epoch and its live holders."""
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hget(f"{BASE}endpoint:{NAME}", "epoch")
            pipe.hgetall(f"{BASE}holders")
            epoch, texts = await pipe.execute()
        parsed = {
            number: dict(part.split("=", 1) for part in text.split())
            for number, text in texts.items()
            if number != "version"
        }
        return epoch, {n: each for n, each in parsed.items() if each["endpoint"] == NAME}

    async def indexed(self) -> Held:
        """Read every entry of the endpoint."""
        _, holders = await self.holders()
        found = set()
        async for key in self.client.scan_iter(f"{BASE}b:*"):
            for name, value in (await self.client.hgetall(key)).items():
                for number in set(value.split()) & set(holders):
                    found.add((holders[number]["medium"], BlockHash(int(key[-4:] + name, 16))))
        return found


class IndexMachine(RuleBasedStateMachine):
    """An engine, an indexer, a Redis, and everything that can go wrong between them."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.indexers: list[tuple[Indexer, asyncio.Event, asyncio.Task[None]]] = []

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        """Do a step, and let the others run for a moment."""

        async def stepped() -> Any:
            result = await step
            await asyncio.sleep(STEP_S)
            return result

        return self.loop.run_until_complete(stepped())

    @initialize()
    def begin(self) -> None:
        """Start everything on an empty Redis."""

        async def start() -> None:
            self.reader = Reader(self.url)
            await self.reader.client.flushall()
            self.publisher = await self.stack.enter_async_context(FakePublisher())
            self.engine = EngineModel(self.publisher)
            await self.start_indexer()

        self.run(start())

    async def start_indexer(self) -> None:
        """Start an indexer for the engine; there may be another one."""
        endpoint = {
            "url": f"http://{NAME}",
            "model": MODEL,
            "events": self.publisher.events,
            "replay": self.publisher.replay,
        }
        configuration = {
            "redis": {"url": self.url},
            "models": [{"name": MODEL, "tokenizer": "-"}],
            "endpoints": [endpoint],
            "indexer": {"admin_port": 0, "lease_s": LEASE_S},
        }
        settings = Settings.model_validate(configuration)
        indexer, stop = Indexer(settings), asyncio.Event()
        task = asyncio.create_task(indexer.serve(stop))
        self.indexers.append((indexer, stop, task))

    async def stop_indexer(self, number: int, *, clean: bool) -> None:
        """Stop an indexer, or let it end in the middle of whatever it does."""
        indexer, stop, task = self.indexers.pop(number)
        if clean:
            stop.set()
            await asyncio.wait_for(task, 5)
        else:
            await killed(indexer, task)

    async def publish(self, events: list[Any], *, lost: bool = False) -> None:
        """Send a batch, unless it is empty or gets lost on its way."""
        if events:
            seq = self.publisher.record(*events)
            if not lost:
                await self.publisher.resend(seq)

    # --- what engines do ----------------------------------------------------------------------

    @rule(prompt=prompts, length=lengths, identity=identities)
    def serve(self, prompt: int, length: int, identity: Identity) -> None:
        """Compute a prompt: hits, stores, evictions, copies."""
        self.run(self.publish(self.engine.serve(prompt, length, identity)))

    @rule(prompt=prompts, blocks=st.integers(1, 9), others=st.integers(0, 4))
    def serve_whole_blocks(self, prompt: int, blocks: int, others: int) -> None:
        """Compute a prompt that ends with a block: sent again, its last block is stored twice.

        Other prompts then evict one copy, or both.
        """

        async def copied() -> None:
            for _ in range(2):
                await self.publish(self.engine.serve(prompt, 4 * blocks))
            for _ in range(others):
                events, _ = self.engine.serve_fresh()
                await self.publish(events)

        self.run(copied())

    @rule(asked=st.lists(st.tuples(prompts, lengths), min_size=2, max_size=12))
    def serve_many(self, asked: list[tuple[int, int]]) -> None:
        """Compute prompts in a row, faster than the index follows."""

        async def burst() -> None:
            for prompt, length in asked:
                await self.publish(self.engine.serve(prompt, length))

        self.run(burst())

    @rule(count=st.integers(1, 6))
    def offload(self, count: int) -> None:
        """Copy blocks to the host's memory, named by hash alone."""
        self.run(self.publish(self.engine.offload(count)))

    @rule(count=st.integers(1, 6))
    def drop_offloaded(self, count: int) -> None:
        """Take blocks out of the host's memory."""
        self.run(self.publish(self.engine.drop_offloaded(count)))

    @rule()
    def reset(self) -> None:
        """Forget everything; it is announced with the next batch only."""
        self.engine.pool.reset()

    @rule()
    def restart(self) -> None:
        """Die and come back."""
        self.run(self.publisher.restart())
        self.engine.restart()

    @rule(batches=st.integers(1, 12))
    def restart_and_run_ahead(self, batches: int) -> None:
        """Die, come back, and be beyond the old sequence before anybody listens."""

        async def ahead() -> None:
            last = self.publisher.next_seq
            await self.publisher.restart()
            self.engine.restart()
            while self.publisher.next_seq < last + batches and self.publisher.next_seq < 200:
                events, _ = self.engine.serve_fresh()
                await self.publish(events, lost=True)

        self.run(ahead())

    # --- what happens on the way --------------------------------------------------------------

    @rule(prompt=prompts, length=lengths)
    def lose(self, prompt: int, length: int) -> None:
        """A batch gets lost."""
        self.run(self.publish(self.engine.serve(prompt, length), lost=True))

    @rule(back=st.integers(1, 6))
    def repeat(self, back: int) -> None:
        """A former batch comes again."""
        seq = self.publisher.next_seq - back
        if seq in self.publisher.replay_log:
            self.engine.learned_anew()
            self.run(self.publisher.resend(seq))

    @rule(back=st.lists(st.integers(1, 8), min_size=1, max_size=3))
    def hole(self, back: list[int]) -> None:
        """The next replay leaves batches out and says END all the same.

        Never the oldest one: what engines lose is what no longer fits into the socket's queue.
        """
        oldest = min(self.publisher.replay_log, default=0)
        holes = {self.publisher.next_seq - number for number in back}
        self.publisher.lose_once |= {seq for seq in holes if seq > oldest}

    @rule(happens=rarely)
    def silence(self, happens: bool) -> None:  # noqa: FBT001 - drawn
        """Replays get no answer from here on, or one again."""
        if not happens:
            return
        self.publisher.silent = not self.publisher.silent
        self.engine.partial = self.engine.partial or self.publisher.silent

    @rule(kept=st.integers(3, 10), happens=rarely)
    def truncate(self, kept: int, happens: bool) -> None:  # noqa: FBT001 - drawn
        """The replay buffer is full: its oldest batches are gone, perhaps before they were read."""
        if not happens:
            return
        log = self.publisher.replay_log
        for seq in sorted(log)[:-kept]:
            del log[seq]
            self.engine.truncated = self.engine.partial = True

    @rule(prompt=prompts, length=lengths)
    def reconnect(self, prompt: int, length: int) -> None:
        """The connection breaks; a batch is sent meanwhile."""

        async def broken() -> None:
            self.publisher.close()
            await self.publish(self.engine.serve(prompt, length), lost=True)
            await self.publisher.open()

        self.run(broken())

    @rule(payload=st.sampled_from(MALFORMED))
    def malformed(self, payload: bytes) -> None:
        """A batch that cannot be read."""
        self.engine.learned_anew()
        self.run(self.publisher.publish(payload=payload))

    # --- what happens behind it ---------------------------------------------------------------

    @rule()
    def doubt(self) -> None:
        """A router finds that predictions of the current epoch run over."""

        async def note() -> None:
            epoch = (await self.reader.state()).get("epoch", "1")
            await self.reader.client.hset(f"{BASE}doubts", NAME, f"{epoch} over")

        self.engine.learned_anew()
        self.run(note())

    @rule()
    def flush(self) -> None:
        """Redis loses everything."""
        self.run(self.reader.client.flushall())

    @rule(clean=st.booleans(), moments=st.floats(0.0, 0.02), load=st.integers(0, 6))
    def restart_indexer(self, clean: bool, moments: float, load: int) -> None:  # noqa: FBT001 - drawn
        """An indexer ends, cleanly or at any moment of its work; another begins with nothing."""

        async def anew() -> None:
            for number in range(load):
                await self.publish(self.engine.serve(number % 6, 4 * number + 5))
            await asyncio.sleep(moments)
            await self.stop_indexer(0, clean=clean)
            await self.start_indexer()

        self.taken_over()
        self.run(anew())

    @rule()
    @precondition(lambda self: len(self.indexers) < 3)
    def join(self) -> None:
        """One more indexer begins; the endpoint may move to it."""
        self.taken_over()
        self.run(self.start_indexer())

    @rule(clean=st.booleans())
    @precondition(lambda self: len(self.indexers) > 1)
    def leave(self, clean: bool) -> None:  # noqa: FBT001 - drawn
        """One indexer ends, and the endpoint may move."""
        self.taken_over()
        self.run(self.stop_indexer(-1, clean=clean))

    def taken_over(self) -> None:
        """Note that an endpoint moves: exactly, unless replays are silent or cut short."""
        if self.publisher.silent or self.engine.truncated:
            self.engine.partial = True

    @rule(seconds=st.floats(0.0, 0.3))
    def pause(self, seconds: float) -> None:
        """Time passes."""
        self.run(asyncio.sleep(seconds))

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def no_former_epoch(self) -> None:
        """Every holder that readers know is of the endpoint's current epoch."""
        epoch, holders = self.run(self.reader.holders())
        assert {each["epoch"] for each in holders.values()} <= {epoch}

    @rule()
    @precondition(lambda self: self.publisher.next_seq > 0)
    def settle(self) -> None:
        """When all is quiet the index is the cache, as far as it can be known."""
        self.run(self.settled())

    async def settled(self) -> None:
        """Wait until the index is what it must be."""
        if self.publisher.silent:
            self.publisher.silent = False
        events, fresh = self.engine.serve_fresh()
        await self.publish(events)
        held = self.engine.holds()
        deadline = self.loop.time() + SETTLE_S
        while True:
            found = await self.reader.indexed()
            seq = (await self.reader.state()).get("seq")
            if self.engine.partial:
                known = seq == str(self.publisher.next_seq - 1) and fresh <= found <= held
            else:
                known = found == held
            if known:
                return
            assert self.loop.time() < deadline, (
                f"{len(found - held)} too many, {len(held - found)} missing of {len(held)}, "
                f"partial: {self.engine.partial}, fresh: {fresh <= found}, seq {seq}"
            )
            await asyncio.sleep(0.02)

    async def work_off(self) -> None:
        """Store copies, evict them one by one, and compare: wrong counts show only then."""
        for prompt, blocks in ((0, 6), (1, 9)):
            for _ in range(2):
                await self.publish(self.engine.serve(prompt, 4 * blocks))
            for _ in range(3):
                await self.settled()

    def teardown(self) -> None:
        """Settle a last time and stop everything."""

        async def stop() -> None:
            try:
                await self.settled()
                await self.work_off()
            finally:
                while self.indexers:
                    await self.stop_indexer(0, clean=True)
                await self.stack.aclose()
                await self.reader.client.aclose()

        try:
            if hasattr(self, "engine"):
                self.loop.run_until_complete(stop())
        finally:
            self.loop.close()


async def killed(indexer: Indexer, task: asyncio.Task[None]) -> None:
    """End an indexer as kill -9 does: nothing more reaches Redis, nothing is given back."""
    indexer.ownership.leave = nothing  # type: ignore[method-assign]  # what a dead one does
    await indexer._store.aclose()
    await ended(task)


async def nothing() -> None:
    """Do nothing."""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the product's pauses short; what it does in them stays the same."""
    pauses = {
        "AUDIT_S": 0.3,
        "SETTLE_S": 0.05,
        "DOUBT_BACKOFF_S": 0.05,
        "DOUBT_BACKOFF_MAX_S": 0.4,
        "REPLAY_IDLE_S": 0.15,
        "RECONNECT_S": 0.02,
        "RECONNECT_MAX_S": 0.1,
        "SWEEP_BUCKETS_PER_CALL": 8_192,
    }
    for name, value in pauses.items():
        monkeypatch.setattr(limits, name, value)
    monkeypatch.setattr(app, "WATCH_S", 0.05)
    monkeypatch.setattr(mirror, "RETRY_S", 0.01)
    monkeypatch.setattr(chores, "LOOK_S", 0.1)


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("hasty")
def test_the_index_equals_the_cache(redis_server: RedisServer) -> None:
    """Everything that engines, networks and Redis do, in any order, settles into the truth."""
    IndexMachine.url = redis_server.url
    run_state_machine_as_test(
        IndexMachine,
        settings=settings(
            max_examples=35,
            stateful_step_count=30,
            deadline=None,
            # To shrink a case of many seconds takes minutes; the seed brings it back.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )

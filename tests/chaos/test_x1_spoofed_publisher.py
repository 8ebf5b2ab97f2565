"""X1, a publisher lies: what it may claim is its own, bounded, and found out by answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from kvatlas.common import limits
from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report, epochs_of
from tests.chaos.test_e5_silent_clear import Usage
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import CHAT_HASHES, ChaosEngine
from tests.fakes.chaos_place import ChaosPlace, Options, Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.publisher import batch, removed, stored

LIE = 1 << 50
"""Engine hashes of what is claimed begin here."""


def claim_of(victim: ChaosEngine) -> dict[str, object]:
    """Write an event that claims another engine's chat, in its name as far as events have one."""
    event = victim.chat_event()
    names = {"endpoint": victim.name, "data_parallel_rank": 0, "engine": victim.name}
    hashes = [LIE + each - CHAT_HASHES for each in event["block_hashes"]]
    return {**event, **names, "block_hashes": hashes}


async def holders(place: ChaosPlace, engine: ChaosEngine) -> set[str]:
    """List who holds an engine's chat, by the index."""
    indexed = await place.indexed()
    wanted = set(engine.chat_chain())
    return {str(name) for name, blocks in indexed.items() if wanted <= blocks}


async def test_x1_a_claim_is_the_claimants_own(scale: Scale, canary: Canary) -> None:
    """Who is meant is decided by the socket: neither topic nor payload takes or gives anything."""
    async with chaos_place(scale, canary) as place:
        liar, victim = place.engines[0], place.engines[1]
        assert await holders(place, victim) == {victim.name}
        topic = f"kv@{victim.name}@m".encode()
        seq = liar.publisher.record(payload=batch(claim_of(victim)))
        payload = liar.publisher.replay_log[seq]
        frames = [topic, seq.to_bytes(8, "big"), payload]
        await liar.publisher._pub.send_multipart(frames)
        await until(lambda: place.feed(liar).sequencer.last_seq == seq)
        await until(lambda: place.feed(liar).mirror.is_current)
        assert await holders(place, victim) == {victim.name, liar.name}
        # It cannot take away what is another's either.
        hashes = [number + CHAT_HASHES for number in range(len(victim.chat_chain()))]
        await liar.publisher.publish(removed(*hashes))
        await until(lambda: place.feed(liar).mirror.is_current)
        assert victim.name in await holders(place, victim)
        assert epochs_of(place, victim, "gap") == 0
    Report("X1", "events in another endpoint's name", "they count as the claimant's own").tell()


async def test_x1_claims_are_bounded(
    scale: Scale, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its bound nothing that an endpoint claims is kept, and it is counted."""
    monkeypatch.setattr(limits, "PRESENT_HASHES_MAX", 2_000)
    async with chaos_place(scale, canary) as place:
        liar, other = place.engines[0], place.engines[1]
        size = len(liar.chat_tokens) // len(liar.chat_chain())
        for start in range(0, 6_000, 1_000):
            hashes = [LIE + start + number for number in range(1_000)]
            tokens = [number % 900 for number in range(start, start + 1_000 * size)]
            await liar.publisher.publish(stored(hashes, tokens, block_size=size))
        feed = place.feed(liar)
        await until(lambda: feed.sequencer.last_seq == liar.publisher.next_seq - 1)
        assert feed.cache.held <= limits.PRESENT_HASHES_MAX
        over = place.count("kvatlas_indexer_blocks_over_limit_total", endpoint=liar.name)
        assert over >= 4_000 - 1_000
        assert (await place.ask(other)).match_tokens > 0
        assert place.count("kvatlas_indexer_blocks_over_limit_total", endpoint=other.name) == 0
    Report("X1", "an endpoint that claims three times its bound", "kept up to the bound").tell()


async def test_x1_a_liar_is_found_out_by_its_answers(
    scale: Scale, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions that its answers belie put it into doubt: its claims are gone."""
    monkeypatch.setattr(limits, "DOUBT_SPAN_S", 0.3)
    usage = Usage()
    async with chaos_place(scale, canary, Options(answer=usage.answer)) as place:
        liar = place.engines[0]
        prompt = place.builder.tokenize(place.builder.prepare(CHAT_PATH, liar.chat))
        usage.prompt_tokens = len(prompt.sequences[0])
        began, asked = time.monotonic(), 0
        while not epochs_of(place, liar, "overpredicted"):
            assert (await place.ask(liar)).status == 200
            asked += 1
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 20.0
        await place.settled()
    Report("X1", "claims that its answers belie", f"doubted after {asked} answers").tell()

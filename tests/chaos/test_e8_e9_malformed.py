"""E8, messages that cannot be read; E9, messages that mean nothing: a doubt, and never a crash."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from typing import Any

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report, epochs_of, loop_stalls
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import ChaosPlace, Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.publisher import batch, stored

STALL_MAX_S = 0.25
MUTATED = 200

FRAMES: list[list[bytes]] = [
    [b"kv"],
    [b"kv", bytes(8)],
    [b"kv", bytes(8), b"", b""],
    [b"kv", b"", batch()],
    [b"kv", bytes(7), batch()],
    [b"kv", bytes(9), batch()],
]
"""Not topic, sequence of 8 bytes, payload."""

UNREADABLE = {
    "empty": b"",
    "no msgpack": b"\xc1",
    "truncated": batch(stored([1], [1, 2, 3, 4]))[:-7],
    "trailing": batch() + b"\x00",
    "nested": b"\x91" * 100_000,
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "map of 2^32": b"\xdf\xff\xff\xff\xff",
    "text of 2^32": b"\xdb\xff\xff\xff\xff",
    "ext": b"\x93" + b"\xc7\x04\x63spam" + b"\x90\x00",
    "bad UTF-8": b"\x93\xcb" + struct.pack(">d", 1.0) + b"\x91\x91\xa4\xff\xfe\xfd\xfc\x00",
}


def meaningless() -> dict[str, Any]:
    """Write stores that a reader must not believe."""
    good = {"hashes": [1, 2], "tokens": list(range(8))}
    return {
        "negative block size": [stored(good["hashes"], good["tokens"], block_size=-1)],
        "hash of a wrong type": [stored(good["hashes"], good["tokens"]) | {"block_hashes": [1.5]}],
        "hashes no list": [stored(good["hashes"], good["tokens"]) | {"block_hashes": "ab"}],
        "block size 0": [stored(good["hashes"], good["tokens"], block_size=0)],
        "block size 1e9": [stored(good["hashes"], good["tokens"], block_size=10**9)],
        "too few tokens": [stored(good["hashes"], good["tokens"][:4])],
        "half a block": [stored(good["hashes"], good["tokens"][:7])],
        "negative token": [stored(good["hashes"], [-1] * 8)],
        "text for tokens": [stored(good["hashes"], good["tokens"]) | {"token_ids": "abcdefgh"}],
        "no event": [17],
        "no tag": [{"hashes": [1]}],
        "group of a wrong type": [stored(good["hashes"], good["tokens"], group_idx="zero")],
    }


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let doubts follow each other quickly; how they wait longer is tested elsewhere."""
    monkeypatch.setattr(limits, "DOUBT_BACKOFF_S", 0.05)
    monkeypatch.setattr(limits, "DOUBT_BACKOFF_MAX_S", 0.05)


async def test_e8_what_cannot_be_read_is_a_doubt(scale: Scale, canary: Canary, turn: int) -> None:
    """Each is rejected with its reason and taken for a hole; other endpoints notice nothing."""
    del turn
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        async with loop_stalls() as stalls:
            for number, frames in enumerate(FRAMES):
                await engine.publisher.send_frames(frames)
                await until(lambda n=number: rejected(place, engine, "frames") == n + 1)  # type: ignore[misc]
                await live(place, engine)
            for payload in UNREADABLE.values():
                await doubted(place, engine, payload)
        took_s = await place.recovered(time.monotonic())
        stall_s = max(stalls)
        assert stall_s < STALL_MAX_S
        assert rejected(place, place.engines[1], "frames") == 0
        assert place.feed(engine).sequencer.counts["skipped"] > 0, "in the replay they are skipped"
    Report(
        "E8",
        f"{len(FRAMES)} wrong sets of frames, {len(UNREADABLE)} payloads: {', '.join(UNREADABLE)}",
        f"each rejected and a doubt (`malformed`); longest stall {1e3 * stall_s:.0f} ms",
        [took_s],
    ).tell()


async def test_e8_mutated_batches_crash_nothing(scale: Scale, canary: Canary, turn: int) -> None:
    """Some of them are readable by chance; after a restart all that is known is true again."""
    source = random.Random(turn)
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        good = [batch(engine.chat_event()), batch(stored([5, 6], list(range(8)), parent=4))]
        for _ in range(MUTATED):
            payload = bytearray(source.choice(good))
            for _ in range(source.randint(1, 4)):
                payload[source.randrange(len(payload))] = source.randrange(256)
            await engine.publisher.publish(payload=bytes(payload))
            await asyncio.sleep(0)
        await until(lambda: unreadable(place, engine) > 0)
        await engine.publisher.restart()
        engine.lose_all()
        began = time.monotonic()
        await engine.step()
        took_s = await place.recovered(began)
    Report("E8", f"{MUTATED} batches with bytes changed at random", "no crash", [took_s]).tell()


async def test_e9_what_means_nothing_is_a_doubt(scale: Scale, canary: Canary, turn: int) -> None:
    """A batch is right as a whole or rejected; unknown tags and more fields are let pass."""
    del turn
    async with chaos_place(scale, canary) as place:
        engine = place.engines[0]
        for events in meaningless().values():
            await doubted(place, engine, batch(*events))
        assert rejected(place, engine, "msgpack") == 0
        before = epochs_of(place, engine, "malformed")
        await engine.publisher.publish({"type": "BlockMoved", "block_hashes": [1]})
        tokens = list(range(500, 508))
        engine.prompts.append((list(tokens), [701, 702]))
        await engine.publisher.publish(stored([701, 702], tokens, brand_new_field={"a": 1}))
        took_s = await place.recovered(time.monotonic())
        assert epochs_of(place, engine, "malformed") == before == len(meaningless())
        assert place.count("kvatlas_indexer_unknown_events_total") >= 1
    Report(
        "E9",
        f"readable batches that mean nothing: {', '.join(meaningless())}",
        "each rejected (`schema`) and a doubt; unknown tags counted, more fields accepted",
        [took_s],
    ).tell()


def rejected(place: ChaosPlace, engine: ChaosEngine, reason: str) -> float:
    """Count what was rejected of an endpoint for a reason."""
    return place.count(
        "kvatlas_indexer_batches_rejected_total", endpoint=engine.name, reason=reason
    )


def unreadable(place: ChaosPlace, engine: ChaosEngine) -> float:
    """Count the payloads that were rejected."""
    return rejected(place, engine, "msgpack") + rejected(place, engine, "schema")


async def doubted(place: ChaosPlace, engine: ChaosEngine, payload: bytes) -> None:
    """Have a payload sent, and wait until it has brought the endpoint into doubt, once."""
    before = epochs_of(place, engine, "malformed")
    await engine.publisher.publish(payload=payload)
    await until(lambda: epochs_of(place, engine, "malformed") == before + 1)
    await live(place, engine)


async def live(place: ChaosPlace, engine: ChaosEngine) -> None:
    """Wait until a doubt is over."""
    await until(lambda: place.feed(engine).sequencer.phase == "live")

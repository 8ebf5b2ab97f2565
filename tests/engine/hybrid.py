"""A real engine of a hybrid model, small cache: is every predicted hit what the engine reports?

The model has sliding windows in some layers and full attention in others, so a hit is what all of
its KV-cache groups can serve. Prompts share beginnings, grow, and stop in the middle of others.
Exits 1 when one prediction is wrong, or when the run did not show what it is for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import yaml
import zmq
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from kvatlas.cli.processes import free_port
from kvatlas.cli.redis_server import running_redis
from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.router.lookup import BlockIndex
from tests.engine.fleet import (
    BLOCK_SIZE,
    ENGINE_START_S,
    MAX_MODEL_LEN,
    SERVICE_START_S,
    Engine,
    await_ok,
    child,
    vllm_command,
    vllm_environment,
    write_config,
)

MODEL = ModelName("tiny")
SHARD = Shard(MODEL, 0)
CACHE_BLOCKS = 129
SEEN_MIN = 10
QUIET_S = 0.2
WORDS_MAX = 300
"""Token ids are drawn below it; the model has more."""


@dataclass(slots=True)
class Tally:
    """What was seen."""

    exact: int = 0
    over: int = 0
    under: int = 0
    hits: int = 0
    cut: int = 0
    cached: int = 0
    prompt: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Count all."""
        return self.exact + self.over + self.under


class Prompts:
    """Prompts that share beginnings: new ones, longer ones, and cuts of former ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._bases = [self._tokens(self._random.randint(40, 260)) for _ in range(4)]
        self._sent: list[list[int]] = []

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(5, WORDS_MAX) for _ in range(count)]

    def draw(self) -> list[int]:
        """Make the next prompt."""
        kind = self._random.random()
        if not self._sent or kind < 0.25:
            prompt = self._random.choice(self._bases) + self._tokens(self._random.randint(1, 200))
        else:
            former = self._random.choice(self._sent[-8:])
            cut = len(former) if kind < 0.7 else self._random.randint(1, len(former))
            prompt = former[:cut] + self._tokens(self._random.choice((0, 1, 17, 64, 150)))
        prompt = prompt[: MAX_MODEL_LEN - 100]
        self._sent.append(prompt)
        return prompt


@contextlib.contextmanager
def running(vllm: str, model: Path) -> Iterator[tuple[Engine, str]]:
    """Run one engine, Redis and an indexer until the context ends; give where Redis is, too."""
    engine = Engine(free_port(), f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}")
    folder = Path(tempfile.mkdtemp(prefix="kva-hybrid-"))
    Console(stderr=True).print(f"logs in {folder}")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(running_redis(folder))
        command = vllm_command(vllm, model, engine, CACHE_BLOCKS)
        server = stack.enter_context(child(command, folder / "engine.log", vllm_environment()))
        await_ok(f"{engine.url}/health", server, ENGINE_START_S)
        config = write_config(folder, redis.url, model, (engine,))
        admin = yaml.safe_load(config.read_text())["indexer"]["admin_port"]
        line = [sys.executable, "-m", "kvatlas.cli.main", "indexer", "--config", str(config)]
        indexer = stack.enter_context(child(line, folder / "indexer.log", dict(os.environ)))
        await_ok(f"http://127.0.0.1:{admin}/readyz", indexer, SERVICE_START_S)
        yield engine, redis.url


class Removals(threading.Thread):
    """Count the removals that the engine announces, beside the product."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.connect(engine.events)

    def run(self) -> None:
        """Receive for ever."""
        while True:
            events = msgpack.unpackb(self._socket.recv_multipart()[-1])[1]
            self.count += sum(event["type"] == "BlockRemoved" for event in events)


async def full_match(redis_url: str, prompt: list[int]) -> int:
    """Scan the full-attention group alone, block by block, in tokens."""
    blocks = 0
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        live = set(await client.hkeys(SHARD.holders))
        for block in hashes_of(prompt):
            value = await client.hget(*SHARD.entry(block))
            if not value or not live & set(value.split()):
                break
            blocks += 1
    return blocks * BLOCK_SIZE


def hashes_of(prompt: list[int]) -> list[BlockHash]:
    """Hash the blocks of a prompt that may be hit."""
    hashes = chain(root_hash(MODEL, BLOCK_SIZE), prompt, BLOCK_SIZE)
    return hashes[: (len(prompt) - 1) // BLOCK_SIZE]


async def predicted(index: BlockIndex, prompt: list[int]) -> int:
    """Look up what the product says the engine would hit, in tokens."""
    found = await index.match([SHARD], hashes_of(prompt))
    return sum(match.blocks for match in found.values()) * BLOCK_SIZE


async def ask(client: httpx2.AsyncClient, engine: Engine, prompt: list[int], answer: int) -> int:
    """Send a prompt as token ids; give the tokens that the engine found cached."""
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": answer,
        "ignore_eos": True,
        "temperature": 0.0,
    }
    reply = await client.post(f"{engine.url}/v1/completions", json=body)
    reply.raise_for_status()
    details = reply.json()["usage"]["prompt_tokens_details"]
    return int(details["cached_tokens"]) if details else 0


async def talk(engine: Engine, redis_url: str, requests: int, seed: int) -> Tally:
    """Send one request after the other, each with nothing in flight."""
    tally, prompts, source = Tally(), Prompts(seed), random.Random(seed)
    index = BlockIndex.connect(redis_url)
    async with httpx2.AsyncClient(timeout=60.0) as client:
        for number in range(requests):
            prompt = prompts.draw()
            await asyncio.sleep(QUIET_S)
            hit = await predicted(index, prompt)
            tally.cut += hit < await full_match(redis_url, prompt)
            cached = await ask(client, engine, prompt, source.choice((1, 4, 40)))
            note(tally, number, len(prompt), hit, cached)
    await index.aclose()
    return tally


def note(tally: Tally, number: int, tokens: int, hit: int, cached: int) -> None:
    """Compare."""
    tally.prompt += tokens
    tally.cached += cached
    tally.hits += cached > 0
    if hit == cached:
        tally.exact += 1
        return
    if hit > cached:
        tally.over += 1
    else:
        tally.under += 1
    tally.wrong.append(f"request {number}: {tokens} tokens, predicted {hit}, cached {cached}")


def report(tally: Tally, evictions: int, groups: str) -> Table:
    """Write the table."""
    table = Table(title=f"hybrid model, groups {groups}")
    for name in (
        "requests",
        "exact",
        "over",
        "under",
        "hits",
        "cut by windows",
        "cached",
        "evicted",
    ):
        table.add_column(name, justify="right")
    share = f"{100 * tally.cached / max(1, tally.prompt):.0f} %"
    counts = (tally.requests, tally.exact, tally.over, tally.under, tally.hits, tally.cut)
    table.add_row(*map(str, counts), share, str(evictions))
    return table


async def groups_of(redis_url: str, engine: Engine) -> str:
    """Read what the index says of the engine's groups."""
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        found = await client.hget(SHARD.endpoint(EndpointName(engine.name)), "groups")
    return str(found)


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=90)
    parser.add_argument("--seed", type=int, default=20_261_125)
    options = parser.parse_args()
    limits.LOOKUP_S = 2.0  # type: ignore[misc]  # what is found matters here, not how soon
    console = Console(width=100)
    with running(options.vllm, options.model) as (engine, redis_url):
        removals = Removals(engine)
        removals.start()
        tally = asyncio.run(talk(engine, redis_url, options.requests, options.seed))
        groups = asyncio.run(groups_of(redis_url, engine))
    console.print(report(tally, removals.count, groups))
    for line in tally.wrong:
        console.print(line)
    # The run must have shown hits, hits cut by windows, and evictions, to mean something.
    shown = min(tally.hits, tally.cut, removals.count) >= SEEN_MIN
    return 0 if shown and tally.exact == tally.requests else 1


if __name__ == "__main__":
    raise SystemExit(main())

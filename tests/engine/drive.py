"""Two real engines with small caches, an indexer, two routers: does the index know what they know?

In turn, each with its verdict in a table; exits 1 when one does not hold:

1. sequential: nothing in flight, 200 ms after the previous answer. The predicted hit is the
   engine's `cached_tokens` for every request, by the product's lookup and by a full scan of the
   chain beside it, and both routers say the same.
2. concurrent: 8 clients. Reported: the share that is exact, and the error in tokens.
3. the index holds what a counter of the same events holds that shares no code with the product.
4. 50 probe prompts get `cached_tokens` equal to their match.
5. adapter and salt: requests with and without do not match each other, and do match themselves.
6. after /reset_prefix_cache, and after `kill -9` and restart of an engine, the index is right
   again within 5 s of its next event.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import zmq
from rich.console import Console
from rich.table import Table

from tests.engine.counter import EngineCounter, RawIndex, chain
from tests.engine.fleet import ADAPTER, BLOCK_SIZE, Engine, Fleet, Server, running_fleet
from tests.engine.users import CHAT, COMPLETIONS, Conversation, Seen, Users, ask, completion

QUIET_S = 0.2
CACHE_BLOCKS = 65
CLIENTS = 8
PROBES = 50
HEAL_S = 5.0
EXPLAIN_TRIES = 3
MODEL = "tiny"


@dataclass(slots=True)
class Report:
    """What was seen, and what did not hold."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def count(self, what: str, count: int, of: int, *, required: bool) -> None:
        """Note a share, which must be all of it if required."""
        self.rows.append((what, f"{count:,} of {of:,}", f"{count / max(of, 1):.1%}"))
        if required and count != of:
            self.faults.append(f"{what}: {count} of {of}")

    def say(self, what: str, value: str) -> None:
        """Note a figure."""
        self.rows.append((what, value, ""))

    def demand(self, what: str, seconds: float | None) -> None:
        """Note how long something took; None is never."""
        self.rows.append((what, "never" if seconds is None else f"{seconds:.2f} s", ""))
        if seconds is None:
            self.faults.append(what)

    def table(self) -> Table:
        """Write it all."""
        table = Table(title="Two real vLLM 0.32 engines, an indexer, two routers")
        table.add_column("what")
        table.add_column("count", justify="right")
        table.add_column("share", justify="right")
        for row in self.rows:
            table.add_row(*row)
        return table


class Drive:
    """All phases over one fleet."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.seed = seed
        self.report = Report()
        self.client = httpx2.Client(timeout=60.0)
        self.index = RawIndex(fleet.redis_url, MODEL)
        context = zmq.Context()
        self.counters = {
            engine.name: EngineCounter(context, engine.events, MODEL) for engine in fleet.engines
        }
        for counter in self.counters.values():
            counter.start()

    # --- what the phases ask ------------------------------------------------------------------

    def explain(self, number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask a router; again when its 20 ms for Redis ran out on this busy machine."""
        url = f"http://127.0.0.1:{self.fleet.routers[number].admin_port}/explain"
        for _ in range(EXPLAIN_TRIES):
            reply = self.client.post(url, json={"path": path, "body": body})
            reply.raise_for_status()
            content: dict[str, Any] = reply.json()
            if content["fallback"] is None:
                break
        return content

    def tokens(self, body: dict[str, Any]) -> list[int]:
        """Ask an engine itself for the token ids of a prompt."""
        names = ("messages", "tools", "prompt")
        asked = {"model": MODEL} | {name: body[name] for name in names if name in body}
        reply = self.client.post(f"{self.fleet.engines[0].url}/tokenize", json=asked)
        reply.raise_for_status()
        found: list[int] = reply.json()["tokens"]
        return found

    def scanned(self, body: dict[str, Any]) -> dict[str, int]:
        """Scan the whole chain of a prompt: leading blocks per endpoint that can be hit."""
        ids = self.tokens(body)
        lora = ADAPTER if body["model"] == ADAPTER else None
        hashes = chain(MODEL, BLOCK_SIZE, ids, salt=body.get("cache_salt"), lora=lora)
        usable = hashes[: (len(ids) - 1) // BLOCK_SIZE]
        found = self.index.scan(usable)
        return {engine.name: found.get(engine.name, 0) for engine in self.fleet.engines}

    def settled(self, names: list[str], limit_s: float) -> float | None:
        """Wait until the index holds what the counters hold; None when it does not."""
        begun = time.monotonic()
        while (spent := time.monotonic() - begun) <= limit_s:
            found = self.index.present()
            if all(found.get(name, set()) == self.counters[name].present() for name in names):
                return spent
            time.sleep(0.05)
        return None

    # --- phases -------------------------------------------------------------------------------

    def sequential(self, requests: int) -> None:
        """Compare every prediction with nothing else going on."""
        users = Users(self.seed, 16, 40)
        source = random.Random(self.seed)
        tally: Counter[str] = Counter()
        for number, talk in islice(users.turns_of(0), requests):
            if number % 8 == 5:
                self._one(COMPLETIONS, completion(source, number), number, tally)
            else:
                talk.answered(self._one(CHAT, talk.question(number), number, tally))
        self.report.count(
            "sequential: predicted = cached_tokens",
            tally["exact"],
            tally["compared"],
            required=True,
        )
        self.report.count("  by a full scan of the chain", tally["scan"], requests, required=True)
        self.report.count("  both routers say the same", tally["agreed"], requests, required=True)
        self.report.count("  longest prefix chosen", tally["longest"], requests, required=False)
        self.report.count("  tokens cached", tally["cached"], tally["tokens"], required=False)
        self._own_word(tally)

    def _own_word(self, tally: Counter[str]) -> None:
        """Compare with what the routers count of their own predictions."""
        page = ""
        for router in self.fleet.routers:
            page += self.client.get(f"http://127.0.0.1:{router.admin_port}/metrics").text
        told: Counter[str] = Counter()
        pattern = r'^kvatlas_router_predictions_total{.*outcome="(\w+)".*} (\S+)$'
        for outcome, value in re.findall(pattern, page, re.MULTILINE):
            told[outcome] += int(float(value))
        # An engine's first stream goes unasked, the others all count.
        self.report.say("  routers' own count of exact", f"{told['exact']:,}")
        if told["over"] or told["under"] or told["exact"] < tally["exact"] - len(self.counters) * 2:
            self.report.faults.append(f"the routers count {dict(told)}, seen {tally['exact']}")

    def _one(self, path: str, body: dict[str, Any], number: int, tally: Counter[str]) -> Seen:
        time.sleep(QUIET_S)
        explained = [self.explain(n, path, body) for n in range(len(self.fleet.routers))]
        scan = self.scanned(body)
        router = self.fleet.routers[number % len(self.fleet.routers)]
        seen = ask(self.client, router, path, body)
        matches = [
            {c["endpoint"]: c["match_blocks"] for c in one["candidates"]} for one in explained
        ]
        # Of two answers to a prompt the engine tells the hit of the second, on blocks of the first.
        comparable = body.get("n", 1) == 1
        tally["compared"] += comparable
        tally["exact"] += seen.is_exact and comparable
        tally["scan"] += scan == matches[0]
        tally["agreed"] += matches[0] == matches[1]
        tally["longest"] += matches[0][seen.endpoint] == max(matches[0].values())
        tally["cached"] += seen.cached
        tally["tokens"] += seen.prompt_tokens
        if (comparable and not seen.is_exact) or scan != matches[0] or matches[0] != matches[1]:
            self.report.faults.append(
                f"request {number} {path}: predicted {seen.predicted}, cached {seen.cached}, "
                f"{seen.counted} of {seen.prompt_tokens} tokens, scan {scan}, routers {matches}, "
                f"fallbacks {[one['fallback'] for one in explained]} {seen.fallback}"
            )
        return seen

    def concurrent(self, requests: int) -> None:
        """Let 8 clients talk at once, and report how far predictions are off."""
        share = requests // CLIENTS
        with ThreadPoolExecutor(CLIENTS) as pool:
            parts = list(pool.map(lambda n: self._client_talks(n, share), range(CLIENTS)))
        seen = [one for part in parts for one in part]
        exact = sum(one.is_exact for one in seen)
        error = sum(abs(one.predicted - one.cached) for one in seen)
        over = sum(max(0, one.predicted - one.cached) for one in seen)
        prompt = sum(one.prompt_tokens for one in seen)
        self.report.count(
            f"{CLIENTS} at once: predicted = cached_tokens", exact, len(seen), required=False
        )
        self.report.count("  tokens predicted wrongly", error, prompt, required=False)
        self.report.count("  of these too many", over, error, required=False)

    def _client_talks(self, number: int, requests: int) -> list[Seen]:
        users = Users(self.seed + 100 + number, 2, requests)
        talks: list[tuple[int, Conversation]] = list(
            islice(users.turns_of(1_000 * number), requests)
        )
        seen = []
        with httpx2.Client(timeout=60.0) as client:
            for turn, talk in talks:
                router = self.fleet.routers[turn % len(self.fleet.routers)]
                seen.append(ask(client, router, CHAT, talk.question(turn)))
                talk.answered(seen[-1])
        return seen

    def compare(self, when: str) -> None:
        """Demand that the index is what the counters say."""
        names = [engine.name for engine in self.fleet.engines]
        self.report.demand(f"{when}: index = independent counter", self.settled(names, HEAL_S))
        held = sum(len(self.counters[name].present()) for name in names)
        self.report.say("  blocks held", f"{held:,}")

    def probes(self) -> None:
        """Ask for what may be cached, straight at each engine, and compare with the match."""
        users = Users(self.seed, 16, 40)
        source = random.Random(self.seed + 7)
        bodies = [completion(source, n) | {"n": 1} for n in range(PROBES // 2)]
        bodies += [talk.question(n) for n, talk in islice(users.turns_of(0), PROBES - len(bodies))]
        exact = 0
        for number, asked in enumerate(bodies):
            time.sleep(QUIET_S)
            engine = self.fleet.engines[number % len(self.fleet.engines)]
            path = CHAT if "messages" in asked else COMPLETIONS
            body = {**asked, "stream": False, "max_tokens": 1}
            body.pop("stream_options", None)
            match = self.explain(0, path, body)
            blocks = next(
                c["match_blocks"] for c in match["candidates"] if c["endpoint"] == engine.name
            )
            cached = self._cached(engine, path, body)
            exact += blocks * BLOCK_SIZE == cached
            if blocks * BLOCK_SIZE != cached:
                self.report.faults.append(f"probe {number}: match {blocks} blocks, cached {cached}")
        self.report.count("probe prompts: match = cached_tokens", exact, len(bodies), required=True)

    def _cached(self, engine: Engine, path: str, body: dict[str, Any]) -> int:
        reply = self.client.post(engine.url + path, json=body)
        reply.raise_for_status()
        return (reply.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    def identities(self) -> None:
        """Send one prompt plain, with a salt, another salt, the adapter, and adapter and salt."""
        source = random.Random(self.seed + 13)
        words = " ".join(source.choices(["atlas", "salt", "adapter", "plain"], k=160))
        kinds: list[dict[str, Any]] = [
            {"model": MODEL},
            {"model": MODEL, "cache_salt": "tenant-a"},
            {"model": MODEL, "cache_salt": "tenant-b"},
            {"model": ADAPTER},
            {"model": ADAPTER, "cache_salt": "tenant-a"},
            {"model": MODEL, "cache_salt": ADAPTER},
        ]
        first, again, total = 0, 0, 0
        for number, kind in enumerate(kinds):
            body = {**kind, "prompt": words, "max_tokens": 1, "temperature": 0.0}
            for attempt in range(2):
                time.sleep(QUIET_S)
                seen = ask(self.client, self.fleet.routers[attempt], COMPLETIONS, body)
                total = (seen.prompt_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE
                expected = total if attempt else 0
                fine = seen.is_exact and seen.cached == expected
                first, again = first + (fine and not attempt), again + (fine and attempt)
                if not fine:
                    self.report.faults.append(
                        f"identity {number}, time {attempt + 1}: predicted {seen.predicted}, "
                        f"cached {seen.cached}, expected {expected}"
                    )
        self.report.count(
            "adapter, salts: no match with the others", first, len(kinds), required=True
        )
        self.report.count("  a match with itself", again, len(kinds), required=True)

    def reset(self, engine: Engine) -> None:
        """Reset a cache; the index is right again soon after the next event."""
        reply = self.client.post(f"{engine.url}/reset_prefix_cache")
        reply.raise_for_status()
        self._next_event(engine, "after /reset_prefix_cache")

    def restart(self, server: Server) -> None:
        """Kill an engine and start it again."""
        server.kill()
        server.start()
        server.await_ready()
        self._next_event(server.engine, "after kill -9 and restart")

    def _next_event(self, engine: Engine, when: str) -> None:
        counter = self.counters[engine.name]
        before = counter.batches
        self._cached(engine, COMPLETIONS, {"model": MODEL, "prompt": "one " * 80, "max_tokens": 1})
        deadline = time.monotonic() + HEAL_S
        while counter.batches == before and time.monotonic() < deadline:
            time.sleep(0.01)
        self.report.demand(f"{when}: index = counter", self.settled([engine.name], HEAL_S))
        held = counter.present()
        self.report.say("  blocks held", f"{len(held):,}")
        if len(held) > CACHE_BLOCKS // 4:
            self.report.faults.append(
                f"{when}: the counter holds {len(held)} blocks of an old life"
            )


def main() -> int:
    """Run all phases and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sequential", type=int, default=320)
    parser.add_argument("--concurrent", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with running_fleet(options.vllm, options.model, CACHE_BLOCKS, sys.stderr) as fleet:
        drive = Drive(fleet, options.seed)
        drive.sequential(options.sequential)
        drive.concurrent(options.concurrent)
        drive.compare("at the end")
        drive.probes()
        drive.identities()
        drive.reset(fleet.engines[0])
        drive.restart(fleet.servers[1])
        drive.compare("after all")
    totals = sum((counter.totals for counter in drive.counters.values()), Counter[str]())
    drive.report.say("blocks stored", f"{totals['BlockStored']:,}")
    drive.report.say("blocks evicted", f"{totals['BlockRemoved']:,}")
    console = Console(width=100)
    console.print(drive.report.table())
    for fault in drive.report.faults:
        console.print(fault, markup=False)
    fine = not drive.report.faults and totals["BlockRemoved"] > BLOCK_SIZE
    console.print("everything held" if fine else "NOT everything held")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

"""Users talk to two real engines through two routers: is every prediction exact?

For each request, sent with nothing in flight and 200 ms after the previous answer: the match that
the router predicted against the `cached_tokens` that the engine reports; whether the endpoint with
the longest prefix was chosen; whether both routers say the same. Exits 1 when one does not hold.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import zmq
from rich.console import Console
from rich.table import Table

from tests.engine.fleet import BLOCK_SIZE, Engine, Fleet, running_fleet

QUIET_S = 0.2
CACHE_BLOCKS = 65
ANSWER_TOKENS = 40
PROMPT_TOKENS_MAX = 900
EXPLAIN_TRIES = 3
AGREED = ("model", "prompt_tokens", "blocks")
TEXT = (
    "block cache prefix router engine token epoch index holder replay batch event chain shard "
    "salt lease queue score match load Wien Zürich 東京 café naïve 3.14159 {'a': [1, 2]} // ok ?"
)
WORDS = TEXT.split()


@dataclass(slots=True)
class Tally:
    """What was seen."""

    requests: int = 0
    follow_ups: int = 0
    exact: int = 0
    exact_follow_ups: int = 0
    longest: int = 0
    warm: int = 0
    agreed: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    cached: int = 0
    prompt: int = 0
    engines: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class EventCounter(threading.Thread):
    """Count what the engines announce, beside the product and with none of its code."""

    def __init__(self, engines: tuple[Engine, ...]) -> None:
        super().__init__(daemon=True)
        self.counts: Counter[str] = Counter()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.subscribe(b"")
        for engine in engines:
            self._socket.connect(engine.events)

    def run(self) -> None:
        """Receive until the socket is closed."""
        while True:
            try:
                payload = self._socket.recv_multipart()[-1]
            except zmq.ZMQError:
                return
            for event in msgpack.unpackb(payload)[1]:
                self.counts[event["type"]] += len(event.get("block_hashes", [0]))


class Users:
    """Conversations over a few shared system prompts, one request at a time."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._random = random.Random(seed)
        self._client = httpx2.Client(timeout=60.0)
        self._systems = [self._words(90) for _ in range(3)]
        self.tally = Tally()

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(WORDS, k=count))

    def talk(self, users: int, turns: int) -> None:
        """Let users take turns in random order; each begins again when the context is full."""
        histories: list[list[dict[str, str]]] = [self._opening() for _ in range(users)]
        order = [user for user in range(users) for _ in range(turns)]
        self._random.shuffle(order)
        for number, user in enumerate(order):
            history = histories[user]
            history.append({"role": "user", "content": self._words(self._random.randint(4, 40))})
            answer, prompt_tokens = self._ask(number, history)
            history.append({"role": "assistant", "content": answer})
            if prompt_tokens > PROMPT_TOKENS_MAX - 2 * ANSWER_TOKENS:
                histories[user] = self._opening()

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self._random.choice(self._systems)}]

    def _ask(self, number: int, history: list[dict[str, str]]) -> tuple[str, int]:
        time.sleep(QUIET_S)
        body: dict[str, Any] = {
            "model": "tiny",
            "messages": history,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0.8,
            "seed": number,
        }
        explained = [self._explain(router.admin_port, body) for router in self._fleet.routers]
        router = self._fleet.routers[number % len(self._fleet.routers)]
        reply = self._client.post(f"http://127.0.0.1:{router.port}/v1/chat/completions", json=body)
        reply.raise_for_status()
        content = reply.json()
        self._note(explained, reply, follow_up=len(history) > 2)
        return content["choices"][0]["message"]["content"] or "", content["usage"]["prompt_tokens"]

    def _explain(self, port: int, body: dict[str, Any]) -> dict[str, Any]:
        """Ask a router; again when its 20 ms for Redis ran out on this busy machine."""
        request = {"path": "/v1/chat/completions", "body": body}
        for _ in range(EXPLAIN_TRIES):
            reply = self._client.post(f"http://127.0.0.1:{port}/explain", json=request)
            reply.raise_for_status()
            content: dict[str, Any] = reply.json()
            if content["fallback"] is None:
                break
            self.tally.fallbacks[content["fallback"]] += 1
        return content

    def _note(self, explained: list[dict[str, Any]], reply: Any, *, follow_up: bool) -> None:
        usage = reply.json()["usage"]
        cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0
        predicted = int(reply.headers["x-kvatlas-match-tokens"])
        chosen = reply.headers["x-kvatlas-endpoint"]
        matches = {c["endpoint"]: c["match_blocks"] for c in explained[0]["candidates"]}
        tally = self.tally
        tally.requests += 1
        tally.follow_ups += follow_up
        tally.engines[chosen] += 1
        tally.cached += cached
        tally.prompt += usage["prompt_tokens"]
        exact = predicted == cached
        exact = exact and int(reply.headers["x-kvatlas-prompt-tokens"]) == usage["prompt_tokens"]
        tally.exact += exact
        tally.exact_follow_ups += exact and follow_up
        if follow_up:
            tally.warm += max(matches.values()) > 0
            tally.longest += matches[chosen] == max(matches.values())
        agreed = _agreement(explained[0]) == _agreement(explained[1])
        tally.agreed += agreed
        if not exact or not agreed:
            tally.wrong.append(
                f"request {tally.requests}: predicted {predicted}, cached {cached}, "
                f"{matches}, chosen {chosen}, agreed {agreed}"
            )


def _agreement(explained: dict[str, Any]) -> dict[str, Any]:
    """Pick what two routers must say alike."""
    return {
        **{name: explained[name] for name in AGREED},
        "matches": {c["endpoint"]: c["match_blocks"] for c in explained["candidates"]},
    }


def report(tally: Tally, events: Counter[str]) -> Table:
    """Write the table of the README."""
    table = Table(title="Two real vLLM 0.32 engines, an indexer, two routers")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    rows = (
        ("requests", tally.requests, tally.requests),
        ("predicted match = cached_tokens", tally.exact, tally.requests),
        ("follow-up turns", tally.follow_ups, tally.requests),
        ("  predicted match = cached_tokens", tally.exact_follow_ups, tally.follow_ups),
        ("  longest prefix chosen", tally.longest, tally.follow_ups),
        ("  some engine held a prefix", tally.warm, tally.follow_ups),
        ("both routers say the same", tally.agreed, tally.requests),
        ("prompt tokens that were cached", tally.cached, tally.prompt),
    )
    for name, count, of in rows:
        table.add_row(name, f"{count:,}", f"{count / max(of, 1):.1%}")
    for reason, count in sorted(tally.fallbacks.items()):
        table.add_row(f"explanations asked again: {reason}", f"{count:,}", "")
    table.add_row("blocks stored", f"{events['BlockStored']:,}", "")
    table.add_row("blocks evicted", f"{events['BlockRemoved']:,}", "")
    for name, count in sorted(tally.engines.items()):
        table.add_row(f"requests to {name}", f"{count:,}", f"{count / tally.requests:.1%}")
    return table


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with running_fleet(options.vllm, options.model, CACHE_BLOCKS, sys.stderr) as fleet:
        counter = EventCounter(fleet.engines)
        counter.start()
        users = Users(fleet, options.seed)
        users.talk(options.users, options.turns)
        time.sleep(QUIET_S)
        tally, events = users.tally, counter.counts.copy()
    console = Console(width=90)
    console.print(report(tally, events))
    for line in tally.wrong:
        console.print(line)
    complete = (
        tally.exact == tally.agreed == tally.requests
        and tally.longest == tally.follow_ups
        and events["BlockRemoved"] > BLOCK_SIZE
    )
    console.print("every prediction was exact" if complete else "NOT every prediction was exact")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())

"""Run a router under load for minutes, break one thing after the other, and see what is left (S9).

    python -m tests.soak.router [--minutes M] [--tokenizer FOLDER] [--json FILE]

Chats of varied text, so that caches fill; some that engines hold; whole answers and streams;
clients that leave early, and that read slowly. The rate follows the router: 70 % of a core. Every
minute Redis is stopped for three seconds (R1), and an engine restarts under all that it answers
(E3, U5). Answers fail only where an engine broke them off; memory, files and threads must be flat,
and memory below 700 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import string
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings, Settings
from tests.fakes.indexer_process import indexer_processes
from tests.fakes.publisher import FakePublisher
from tests.fakes.redis_servers import Server, plain_options
from tests.fakes.redis_servers import running as run_servers
from tests.fakes.router_process import RouterProcess, router_processes
from tests.soak.chat_engine import BLOCK_SIZE, ChatEngine
from tests.soak.run import SLOPE_MAX, _fields, _slope

CYCLE_S = 60.0
ENGINES = 3
SHARE_OF_CORE = 0.7
STEER_S = 2.0
RATE_FIRST, RATE_MAX = 100.0, 3_000.0
UNDER_WAY_MAX = 2_000
FROZEN_S = 3.0
BROKEN_S = 2.0
"""From a restart on, in which answers may break off: streams that had begun, and retries."""
MEMORY_MAX_MB = 700
WARM_SHARE = 0.4
"""Of the cycles: in these caches fill."""
COUNTED_SLOPE_MAX = 1.0
"""Files and threads per cycle: connections come and go with the load."""
QWEN3 = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "models" / "qwen3"
WORDS = 1_000_000
LENGTHS = (200, 1_000, 1_000, 4_000, 16_000)


@dataclass(frozen=True)
class Sample:
    """What a cycle leaves behind."""

    router_mb: float
    router_files: int
    router_threads: int
    redis_keys: int
    core_share: float
    requests: int


@dataclass
class Soak:
    """Everything that runs."""

    router: RouterProcess
    redis: Server
    engines: list[ChatEngine]
    held: list[str]
    session: aiohttp.ClientSession
    source: random.Random
    words: str
    chinese: str
    rate: float = RATE_FIRST
    under_way: int = 0
    broken_until: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    async def load(self, group: asyncio.TaskGroup) -> None:
        """Begin chats at the rate, for ever."""
        due = time.monotonic()
        while True:
            now = time.monotonic()
            due = max(due, now - 0.1)
            while due <= now:
                due += 1 / self.rate
                if self.under_way < UNDER_WAY_MAX:
                    self.under_way += 1
                    group.create_task(self._chat())
            await asyncio.sleep(0.002)

    async def steer(self) -> None:
        """Keep the router at its share of a core, for ever."""
        before, at = _cpu_s(self.router.pid), time.monotonic()
        while True:
            await asyncio.sleep(STEER_S)
            used, now = _cpu_s(self.router.pid), time.monotonic()
            share = (used - before) / (now - at)
            before, at = used, now
            self.rate = min(RATE_MAX, self.rate * min(1.3, SHARE_OF_CORE / max(share, 0.05)))

    async def _chat(self) -> None:
        kind = self.source.choices(("whole", "stream", "leaves", "slow"), (75, 17, 5, 3))[0]
        body = {"model": "m", "messages": [{"role": "user", "content": self._text()}]}
        began = time.monotonic()
        try:
            told = await self._ask(kind, body | ({} if kind == "whole" else {"stream": True}))
        except (aiohttp.ClientError, TimeoutError) as error:
            told = type(error).__name__
        finally:
            self.under_way -= 1
        self.seen[f"{kind} {told}"] += 1
        is_well = told == "ok"
        if not is_well and not (began - 1.5 < self.broken_until and self.broken_until > 0):
            self.wrong.append(f"{kind} {told}")

    async def _ask(self, kind: str, body: dict[str, object]) -> str:
        url = self.router.url + CHAT_PATH
        # What must not change on the way is how the engines look for streams.
        data = json.dumps(body).encode()
        async with asyncio.timeout(30), self.session.post(url, data=data) as reply:
            if reply.status != 200:
                return str(reply.status)
            if kind == "leaves":
                await reply.content.readany()
                return "ok"
            if kind == "slow":
                await asyncio.sleep(self.source.random() * 3)
            read = await reply.read()
        is_whole = read.endswith(b"}") if kind == "whole" else read.endswith(b"[DONE]\n\n")
        return "ok" if is_whole else "cut"

    def _text(self) -> str:
        if self.source.random() < 0.2:
            return self.source.choice(self.held)
        length = self.source.choice(LENGTHS)
        text = self.chinese if self.source.random() < 0.1 else self.words
        start = self.source.randrange(len(text) - length)
        return text[start : start + length]

    async def break_things(self, seconds: float) -> None:
        """Stop Redis for a while, and restart an engine, within so many seconds."""
        began = time.monotonic()
        await asyncio.sleep(seconds * 0.2)
        os.kill(self.redis.pid, signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        os.kill(self.redis.pid, signal.SIGCONT)
        await asyncio.sleep(seconds * 0.2)
        self.broken_until = time.monotonic() + BROKEN_S
        await self.source.choice(self.engines).restart()
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))

    def sample(self, share: float) -> None:
        """Read what the router and Redis have."""
        process = Path(f"/proc/{self.router.pid}")
        status = dict(_fields(process / "status"))
        with self.redis.client() as client:
            keys = int(client.dbsize())
        self.samples.append(
            Sample(
                router_mb=int(status["VmRSS"].split()[0]) / 1_024,
                router_files=len(list((process / "fd").iterdir())),
                router_threads=int(status["Threads"]),
                redis_keys=keys,
                core_share=share,
                requests=sum(self.seen.values()),
            )
        )


def _cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def main() -> int:
    """Run; 0 when nothing failed but what was broken, and nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--tokenizer", type=Path, default=QWEN3 if QWEN3.exists() else demo_model_path()
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    return uvloop.run(_soak(parser.parse_args()))


async def _soak(options: argparse.Namespace) -> int:
    source = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kva-soak-") as name, ExitStack() as stack:
        folder = Path(name)
        redis = Server(folder / "redis", plain_options())
        stack.enter_context(run_servers([redis]))
        async with AsyncExitStack() as running:
            held, ids = _held(options.tokenizer, source)
            engines = []
            for number in range(ENGINES):
                publisher = await running.enter_async_context(FakePublisher())
                engine = ChatEngine(publisher, ids[number::ENGINES])
                await engine.start()
                running.push_async_callback(engine.stop)
                engines.append(engine)
            settings = _settings(redis, engines, options.tokenizer)
            stack.enter_context(indexer_processes(folder, settings, 1))
            (router,) = stack.enter_context(router_processes(folder, settings))
            await router.ready()
            connector = aiohttp.TCPConnector(limit=0)
            session = await running.enter_async_context(aiohttp.ClientSession(connector=connector))
            soak = Soak(router, redis, engines, held, session, source, *_texts(source))
            await _run(soak, options.minutes * 60)
    return _report(soak, options)


async def _run(soak: Soak, seconds: float) -> None:
    cycles = max(2, round(seconds / CYCLE_S))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(soak.load(group)), group.create_task(soak.steer())]
        for number in range(cycles):
            before, at = _cpu_s(soak.router.pid), time.monotonic()
            await soak.break_things(seconds / cycles)
            soak.sample((_cpu_s(soak.router.pid) - before) / (time.monotonic() - at))
            print(f"cycle {number + 1}: {soak.samples[-1]}", flush=True)
        for task in tasks:
            task.cancel()


def _held(tokenizer: Path, source: random.Random) -> tuple[list[str], list[list[int]]]:
    """Make prompts that engines hold, as texts and as token ids."""
    builder = PromptBuilder.load(ModelSettings(name="m", tokenizer=str(tokenizer)))
    letters = string.ascii_lowercase
    texts = [" ".join("".join(source.choices(letters, k=5)) for _ in range(400)) for _ in range(60)]
    found = []
    for text in texts:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        prompt = builder.tokenize(builder.prepare(CHAT_PATH, body))
        found.append(list(prompt.sequences[0]))
    return texts, found


def _texts(source: random.Random) -> tuple[str, str]:
    """Make texts to cut chats out of: words that are hardly ever met again, and Chinese."""
    letters = string.ascii_lowercase
    words = ("".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(WORDS))
    return " ".join(words), "".join(map(chr, source.choices(range(0x4E00, 0x9FFF), k=WORDS)))


def _settings(redis: Server, engines: list[ChatEngine], tokenizer: Path) -> Settings:
    return Settings.model_validate({
        "redis": {"url": redis.url},
        "models": [{"name": "m", "tokenizer": str(tokenizer), "block_size": BLOCK_SIZE}],
        "endpoints": [
            {
                "url": f"http://127.0.0.1:{engine.port}",
                "model": "m",
                "events": engine.publisher.events,
                "replay": engine.publisher.replay,
            }
            for engine in engines
        ],
        "router": {"requests_max": UNDER_WAY_MAX * 2, "shed_lag_s": 0},
        "indexer": {"admin_port": 0},
    })  # fmt: skip


def _report(soak: Soak, options: argparse.Namespace) -> int:
    """Print what the cycles left behind."""
    warm = soak.samples[round(len(soak.samples) * WARM_SHARE) :]
    table = Table("after each cycle", "median", "slope per cycle", "flat", title="soak of a router")
    faults = []
    for name in ("router_mb", "router_files", "router_threads", "redis_keys"):
        values = [float(getattr(sample, name)) for sample in warm]
        median, slope = statistics.median(values), _slope(values)
        most = SLOPE_MAX * median if name in {"router_mb", "redis_keys"} else COUNTED_SLOPE_MAX
        is_flat = slope <= max(most, COUNTED_SLOPE_MAX)
        faults += [] if is_flat else [f"grew: {name}"]
        table.add_row(name, f"{median:,.1f}", f"{slope:+.3f}", "yes" if is_flat else "no")
    Console().print(table)
    highest = max(sample.router_mb for sample in soak.samples)
    share = statistics.median(sample.core_share for sample in soak.samples)
    faults += [f"{highest:.0f} MB"] if highest > MEMORY_MAX_MB else []
    faults += [f"failed outside of faults: {Counter(soak.wrong)}"] if soak.wrong else []
    print(f"{sum(soak.seen.values()):,} chats at {share:.0%} of a core, {highest:.0f} MB at most")
    print(", ".join(f"{kind}: {count:,}" for kind, count in sorted(soak.seen.items())))
    if options.json:
        figures = {"cycles": [asdict(sample) for sample in soak.samples], "seen": dict(soak.seen)}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

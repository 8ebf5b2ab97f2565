"""What it costs to read engines' gauges and share them: CPU per look, and stalls of the loop.

    python -m bench.gauges --engines 200 --seconds 10

A process serves many pages of vLLM's size; another runs the indexer's scraping over a real Redis;
this one asks how long its loop keeps others waiting and what a reading costs a router.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import uvloop

from kvatlas.cli.redis_server import running_redis
from kvatlas.common import limits
from kvatlas.common.discovery.merging import Fleet
from kvatlas.common.gauge_board import GaugeReader
from kvatlas.common.gauges import SharedSample
from kvatlas.common.ids import IndexerId, ModelName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import connect
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.scraping import Scraping

PAGE_BYTES: Final = 56_000
MODEL: Final = ModelName("m")
SAMPLE: Final = b"""vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0
process_start_time_seconds 1.79e+09
"""
LINE: Final = b'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 12.0\n'


class Owner:
    """All engines are its own."""

    me = IndexerId("me")

    def does(self, chore: str) -> bool:
        """Take every chore."""
        del chore
        return True


def serve(engines: int, pipe: Connection) -> None:
    """Serve pages until the process ends."""
    page = SAMPLE + LINE * ((PAGE_BYTES - len(SAMPLE)) // len(LINE))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        servers = [await asyncio.start_server(one, "127.0.0.1", 0) for _ in range(engines)]
        pipe.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    uvloop.run(main())


async def measure(redis_url: str, ports: list[int], seconds: float) -> None:
    """Scrape for a while and print what it cost."""
    settings = Settings.model_validate({
        "redis": {"url": redis_url},
        "models": [{"name": MODEL, "tokenizer": "-"}],
        "endpoints": [{"url": f"http://127.0.0.1:{port}", "model": MODEL} for port in ports],
    })  # fmt: skip
    metrics, ready = IndexerMetrics(), asyncio.Event()
    ready.set()
    owner: Any = Owner()
    scraping = Scraping.connect(settings.redis, owner, metrics)
    scraping.configure(settings)
    scraping.follow(Fleet(settings.endpoints))
    stalls: list[float] = []
    async with Supervisor() as tasks:
        running = tasks.start(scraping.run(tasks, ready), "scraping")
        await asyncio.sleep(3.0)
        looks, cpu_s, began = _looks(metrics), time.process_time(), time.monotonic()
        while (now := time.monotonic()) - began < seconds:
            await asyncio.sleep(0.001)
            stalls.append(time.monotonic() - now - 0.001)
        looks, cpu_s = _looks(metrics) - looks, time.process_time() - cpu_s
        took_s = time.monotonic() - began
        stalls.sort()
        print(f"engines {len(ports)}: {looks / took_s:.0f} looks/s, CPU {cpu_s / took_s:.1%},")
        print(f"  {1e3 * cpu_s / looks:.2f} ms a look (with 1,000 wake-ups/s of this measurement),")
        print(f"  loop late p50 {1e3 * statistics.median(stalls):.2f} ms,", end=" ")
        print(f"p99 {1e3 * stalls[len(stalls) * 99 // 100]:.2f} ms, most {1e3 * stalls[-1]:.1f} ms")
        await _read(redis_url)
        running.cancel()
    await scraping.aclose()


async def _read(redis_url: str) -> None:
    client = connect(redis_url, timeout_s=1.0, connections_max=None)
    reader, cpu_s, began = GaugeReader(client), time.process_time(), time.monotonic()
    found = await reader.read(LoadKeys(MODEL))
    read_s = time.monotonic() - began
    ages = [
        found.now_ms - SharedSample.from_text(text.decode()).at_ms for text in found.texts.values()
    ]
    cpu_s = time.process_time() - cpu_s
    print(f"a reading: {found.size:,} bytes in {1e3 * read_s:.1f} ms,", end=" ")
    print(f"{1e6 * cpu_s / len(ages):.1f} us of CPU per endpoint with its parsing;", end=" ")
    print(f"ages p50 {statistics.median(ages):.0f} ms, most {max(ages)} ms")
    await client.aclose()


def _looks(metrics: IndexerMetrics) -> float:
    return float(metrics.scrapes.labels("answered").value)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(asked.engines, theirs), daemon=True)
    process.start()
    print(f"at most {limits.SCRAPES_PER_S_MAX} looks/s of one indexer")
    with tempfile.TemporaryDirectory(prefix="kva-") as folder, running_redis(Path(folder)) as redis:
        uvloop.run(measure(redis.url, ours.recv(), asked.seconds))
    process.terminate()


if __name__ == "__main__":
    main()

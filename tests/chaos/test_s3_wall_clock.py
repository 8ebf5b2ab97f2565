"""S3, the wall clock jumps by an hour: only the log's timestamps show it."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import ANSWER, chat
from tests.fakes.engines import router_settings
from tests.fakes.router_process import router_processes
from tests.fakes.upstream import plain, upstream

HOUR_S = 3_600
JUMPING = """
import os, time
_real = time.time
def _jumped():
    with open(os.environ["TEST_CLOCK_FILE"]) as file:
        return _real() + float(file.read() or 0)
time.time = _jumped
"""


@pytest.mark.timeout(60)
async def test_s3_the_wall_clock_decides_nothing(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """No request fails, no endpoint is ejected, and it stays ready."""
    del canary
    offset, site = tmp_path / "offset", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(JUMPING)
    offset.write_text("0")
    environment = {
        "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}",
        "TEST_CLOCK_FILE": str(offset),
    }
    async with upstream(plain(ANSWER)) as engine, aiohttp.ClientSession() as session:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        with router_processes(tmp_path, settings) as [router]:
            router.stop()
            router.start(environment)
            await router.ready()
            for jump in (0, HOUR_S, -HOUR_S):
                beside = tmp_path / "offset.new"
                beside.write_text(str(jump))
                beside.replace(offset)
                for _ in range(5):
                    async with session.post(router.url + CHAT_PATH, json=chat("x")) as reply:
                        assert reply.status == 200
                        await reply.read()
                async with session.get(router.url + "/readyz") as reply:
                    assert reply.status == 200
            router.process.terminate()  # type: ignore[union-attr]  # it runs
            assert router.wait() == 0
            lines = router.events("request.finished")
            times = [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]
            assert max(times) - min(times) > 2 * HOUR_S - 60, "the clock did jump"
            assert not router.events("endpoint.ejected")
    Report("S3", "the wall clock jumps by +-1 h", "no request notices").tell()

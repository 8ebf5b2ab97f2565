"""R14, Redis refuses user, password or command: routers go by load, the indexer says it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import EX_CONFIG, run_service
from kvatlas.indexer.app import REFUSED, Indexer
from kvatlas.router.app import router
from tests.chaos.conftest import Report
from tests.fakes.engines import until
from tests.fakes.indexed_fleet import indexed_fleet
from tests.fakes.redis_servers import Server, plain_options, running
from tests.fakes.upstream import plain, upstream

pytestmark = pytest.mark.usefixtures("patient")

ANSWER = b'{"id": "x", "choices": []}'
CANARY = "canary-of-a-password"


@pytest.fixture
def server() -> Iterator[Server]:
    """Run a Redis whose user `indexer` may do everything at first."""
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        made = Server(Path(folder), plain_options())
        with running([made]):
            rights(made, "resetkeys", "~kvatlas:*", "+@all", ">good")
            yield made


def rights(server: Server, *rules: str) -> None:
    """Change what the user may do."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "indexer", "on", *rules)


def login(server: Server, password: str) -> dict[str, Any]:
    """Configure kvatlas to log in."""
    return {"url": f"redis://indexer:{password}@{server.address}/0"}


async def fault(indexer: Indexer, wanted: str | None) -> None:
    """Wait until the indexer is not ready for a reason, or ready."""
    for _ in range(200):
        if indexer._fault == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(indexer._fault)


def test_r14_an_indexer_with_a_wrong_password_ends(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the start it is the configuration that is wrong: status 78, and no password in the log."""
    settings = Settings.model_validate(
        {"redis": login(server, CANARY), "indexer": {"admin_port": 0}}
    )
    assert run_service(lambda stop: Indexer(settings).serve(stop)) == EX_CONFIG
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("rule", ["-set", "-get", "-hset", "-info"])
def test_r14_an_indexer_without_a_right_ends(server: Server, rule: str) -> None:
    """Alike when a command is missing that every start needs."""
    rights(server, rule)
    redis = {"redis": login(server, "good"), "indexer": {"admin_port": 0}}
    models = [{"name": "m", "tokenizer": "-"}]
    settings = Settings.model_validate({**redis, "models": models})
    assert run_service(lambda stop: Indexer(settings).serve(stop)) == EX_CONFIG


async def test_r14_a_right_that_is_taken_away_makes_not_ready(server: Server, turn: int) -> None:
    """Later the indexer goes on, is not ready, and writes what it missed when it may again."""
    del turn
    async with indexed_fleet(login(server, "good"), lambda: [server], 1, seed=1) as fleet:
        await fault(fleet.indexer, None)
        rights(server, "-evalsha", "-eval")
        await fleet.fleet.steps(10)
        await fault(fleet.indexer, REFUSED)
        rights(server, "+evalsha", "+eval")
        began = time.monotonic()
        await fault(fleet.indexer, None)
        await fleet.settled()
        await fleet.finds_all()
    Report(
        "R14",
        "ACL SETUSER -evalsha -eval while the indexer runs",
        "not ready and says why, goes on when it may again",
        [time.monotonic() - began],
        None,
    ).tell()


async def test_r14_a_router_goes_by_load(server: Server) -> None:
    """With a wrong password requests are answered, the router stays ready, and counts why."""
    async with upstream(plain(ANSWER)) as engine:
        settings = Settings.model_validate(
            {
                "redis": login(server, CANARY),
                "models": [{"name": "m", "tokenizer": str(demo_model_path()), "block_size": 4}],
                "endpoints": [{"url": f"http://127.0.0.1:{engine.port}", "model": "m"}],
                "router": {"port": 0, "admin_port": 0},
            }
        )
        async with (
            router(settings) as running_router,
            aiohttp.ClientSession(f"http://127.0.0.1:{running_router.port}") as client,
        ):
            body = {"model": "m", "messages": [{"role": "user", "content": "a b c d e f g " * 9}]}
            async with client.post("/v1/chat/completions", json=body) as reply:
                assert reply.status == 200
                assert await reply.read() == ANSWER
            # Its engine is asked for its models and token ids meanwhile.
            await until(lambda: running_router.readiness() is None, 1.0)
            async with client.get("/readyz") as reply:
                assert reply.status == 200
            count = running_router.metrics.registry.get_sample_value(
                "kvatlas_router_fallbacks_total", {"stage": "lookup", "reason": "auth"}
            )
            assert count == 1
    Report(
        "R14",
        "a wrong password",
        "requests by load (`auth`), router ready; an indexer that starts so ends with status 78",
    ).tell()

"""What goes no further than the public port is told of, in closed words."""

from __future__ import annotations

import pytest
import structlog

from tests.contract.test_proxy import CHAT, one_engine
from tests.fakes.upstream import plain

SECRET = "secret-8d1f"  # noqa: S105 - a canary


@pytest.mark.parametrize(
    ("asked", "told", "status", "code"),
    [
        (("POST", f"/{SECRET}"), "other", 404, "not_found"),
        (("GET", f"/v1/models/{SECRET}"), "other", 404, "model_not_found"),
        (("GET", CHAT), CHAT, 405, "method_not_allowed"),
        (("DELETE", "/v1/models"), "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_a_request_that_is_refused_has_its_line(
    redis_url: str, asked: tuple[str, str], told: str, status: int, code: str
) -> None:
    """With an id, and a path that is served or none: what strangers write stands in no log."""
    async with one_engine(plain(b"{}"), redis_url) as (engine, running, client):
        with structlog.testing.capture_logs() as lines:
            async with client.request(*asked, headers={"X-Request-Id": "id-1"}) as reply:
                assert reply.status == status
                assert reply.headers["X-Request-Id"] == "id-1"
                assert reply.content_type == "application/json"
        (line,) = [line for line in lines if line["event"] == "request.refused"]
        assert (line["path"], line["status"], line["code"]) == (told, status, code)
        assert line["request_id"] == "id-1"
        assert SECRET not in str(lines)
        assert running.metrics.requests.labels("unknown", told, str(status)).value == 1
        assert running.metrics.errors.labels("unknown", code).value == 1
        assert not engine.requests

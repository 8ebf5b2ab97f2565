"""The OpenAPI description is true to what is served."""

from __future__ import annotations

import re
import shutil
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common.errors import HttpError, MethodNotAllowed, RequestError, UpstreamError
from kvatlas.router.openapi import DESCRIPTION
from tests.fakes.place import CHAT, faked, simulated
from tests.fakes.upstream import plain

SCHEMAS: dict[str, Any] = DESCRIPTION["components"]["schemas"]


def leaves(kind: type[HttpError]) -> set[type[HttpError]]:
    """List the errors that are raised: those without kinds of their own."""
    below = kind.__subclasses__()
    return set().union(*map(leaves, below)) if below else {kind}


async def test_each_path_is_served_and_each_served_path_is_described(redis_url: str) -> None:
    """With its methods; HEAD goes along with GET."""
    described = {
        (method.upper(), path)
        for path, methods in DESCRIPTION["paths"].items()
        for method in methods
    }
    async with faked(plain(b"{}"), redis_url) as (_, place):
        assert place.running.front.described() == described
        for method, path in described:
            async with place.session.request(method, place.url + path) as reply:
                assert reply.status not in {404, 405}
                responses = DESCRIPTION["paths"][path][method.lower()]["responses"]
                assert str(reply.status) in responses


async def test_it_is_served_as_it_is_written(redis_url: str) -> None:
    """Every reference leads somewhere, every operation has a name of its own."""
    async with (
        faked(plain(b"{}"), redis_url) as (_, place),
        place.session.get(place.url + "/openapi.json") as reply,
    ):
        assert reply.content_type == "application/json"
        served = await reply.json()
    assert served == DESCRIPTION
    references = set(re.findall(r"'#/components/schemas/(\w+)'", str(served)))
    assert references == SCHEMAS.keys()
    names = [one["operationId"] for path in served["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("error", sorted(leaves(RequestError) | leaves(UpstreamError), key=str))
def test_each_status_of_ours_is_described(error: type[HttpError]) -> None:
    """Whoever adds an error to the tree adds it here; 405 is no answer of a described method."""
    responses = DESCRIPTION["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert (str(error.status) in responses) == (error is not MethodNotAllowed)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nowhere"])
async def test_errors_have_the_shape_that_is_described(redis_url: str, path: str) -> None:
    """All members are there, and no other ones."""
    async with faked(plain(b"{}"), redis_url) as (_, place):
        body = {**CHAT, "model": "no such one"}
        async with place.session.post(place.url + path, json=body) as reply:
            assert reply.status == 404
            content = await reply.json()
    shape = SCHEMAS["Error"]["properties"]["error"]
    assert content.keys() == {"error"}
    assert content["error"].keys() == set(shape["required"]) == shape["properties"].keys()


@pytest.mark.timeout(120)
async def test_schemathesis_finds_nothing(redis_url: str) -> None:
    """No made-up request is answered with a fault of ours, or in a way that is not described."""
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("schemathesis is not installed")
    async with simulated(redis_url) as place:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance"
        arguments = ["run", f"{place.url}/openapi.json", "--checks", checks, "-n", "25"]
        process = await create_subprocess_exec(command, *arguments, stdout=PIPE, stderr=PIPE)
        written, _ = await process.communicate()
    assert process.returncode == 0, written.decode()

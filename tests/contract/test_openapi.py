"""The OpenAPI description is true to what is served."""

from __future__ import annotations

import json
import re
import shutil
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common.errors import HttpError, MethodNotAllowed, RequestError, UpstreamError
from kvatlas.common.settings import RouterSettings
from kvatlas.router.keys import hash_key
from kvatlas.router.openapi import description
from tests.fakes.place import CHAT, faked, simulated
from tests.fakes.upstream import plain

LOAD_PATHS = ["/v1/embeddings", "/v1/audio/transcriptions"]


def described(**options: Any) -> dict[str, Any]:
    """Describe a router with these options."""
    return description(RouterSettings(**options))


def leaves(kind: type[HttpError]) -> set[type[HttpError]]:
    """List the errors that are raised: those without kinds of their own."""
    below = kind.__subclasses__()
    return set().union(*map(leaves, below)) if below else {kind}


@pytest.mark.parametrize("options", [{}, {"tokenize_paths": True, "load_paths": LOAD_PATHS}])
async def test_each_path_is_served_and_each_served_path_is_described(
    redis_url: str, options: dict[str, Any]
) -> None:
    """With its methods, and its statuses where the body is none."""
    paths = described(**options)["paths"]
    found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    async with faked(plain(b"{}"), redis_url, **options) as (_, place):
        assert place.running.front.described() == found
        for method, path in found:
            url = place.url + path.replace("{id}", "m")
            async with place.session.request(method, url) as reply:
                assert reply.status in ({200} if method == "GET" else {400})
                assert str(reply.status) in paths[path][method.lower()]["responses"]


async def test_it_is_served_as_it_is_written(redis_url: str) -> None:
    """Every reference leads somewhere, every operation has a name of its own."""
    options: dict[str, Any] = {"tokenize_paths": True, "load_paths": LOAD_PATHS}
    async with (
        faked(plain(b"{}"), redis_url, **options) as (_, place),
        place.session.get(place.url + "/openapi.json") as reply,
    ):
        assert reply.content_type == "application/json"
        served = await reply.json()
    assert served == described(**options)
    references = set(re.findall(r"'#/components/schemas/(\w+)'", str(served)))
    assert references == served["components"]["schemas"].keys()
    operations = [one for path in served["paths"].values() for one in path.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    assert served["servers"] == [{"url": "/"}]


def test_keys_are_asked_for_where_there_are_some(tmp_path: Path) -> None:
    """In either header, by all but who asks for readiness."""
    plain_one, locked = described(), described(api_keys_file=tmp_path)
    schemes = locked["components"]["securitySchemes"]
    assert plain_one["security"] == []
    assert [name for each in locked["security"] for name in each] == list(schemes)
    assert locked["paths"]["/readyz"]["get"]["security"] == []


@pytest.mark.parametrize("error", sorted(leaves(RequestError) | leaves(UpstreamError), key=str))
def test_each_status_of_ours_is_described(error: type[HttpError]) -> None:
    """Whoever adds an error to the tree adds it here; 405 is no answer of a described method."""
    for operation in described(tokenize_paths=True, load_paths=LOAD_PATHS)["paths"].values():
        if "post" in operation:
            responses = operation["post"]["responses"]
            assert (str(error.status) in responses) == (error is not MethodNotAllowed)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nowhere"])
async def test_errors_have_the_shape_that_is_described(redis_url: str, path: str) -> None:
    """All members are there, and no other ones."""
    async with faked(plain(b"{}"), redis_url) as (_, place):
        body = {**CHAT, "model": "no such one"}
        async with place.session.post(place.url + path, json=body) as reply:
            assert reply.status == 404
            content = await reply.json()
    shape = described()["components"]["schemas"]["Error"]["properties"]["error"]
    assert content.keys() == {"error"}
    assert content["error"].keys() == set(shape["required"]) == shape["properties"].keys()


async def schemathesis(spec: dict[str, Any], url: str, folder: Path, *options: str) -> str:
    """Run it on a description of one model, so that it meets more than unknown ones."""
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert command is not None, "schemathesis is one of the packages of the tests"
    for schema in spec["components"]["schemas"].values():
        if "model" in schema["properties"]:
            schema["properties"]["model"] = {"enum": ["m"]}
    (folder / "openapi.json").write_text(json.dumps(spec))
    process = await create_subprocess_exec(
        command, "run", str(folder / "openapi.json"), "--url", url, "--checks", ",".join(CHECKS),
        "--seed", "1", "--no-color", *options, stdout=PIPE, stderr=PIPE, cwd=folder,
    )  # fmt: skip
    written, _ = await process.communicate()
    assert process.returncode == 0, written.decode()
    return written.decode()


CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance", "unsupported_method"),
)
"""What a body that is no good is answered with is for the engine to say."""


@pytest.mark.timeout(120)
async def test_schemathesis_finds_nothing(redis_url: str, tmp_path: Path) -> None:
    """No made-up request is answered with a fault of ours, or in a way that is not described."""
    options: dict[str, Any] = {"tokenize_paths": True, "load_paths": LOAD_PATHS}
    async with simulated(redis_url, **options) as place:
        async with place.session.get(place.url + "/openapi.json") as reply:
            spec = await reply.json()
        await schemathesis(spec, place.url, tmp_path, "-n", "15")


@pytest.mark.timeout(120)
async def test_schemathesis_finds_no_way_around_keys(redis_url: str, tmp_path: Path) -> None:
    """Requests without a key, or with a made-up one, are refused as it is described."""
    key = "a-key-of-the-tests"
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys:\n- {{hash: '{hash_key(key)}', tenant: a}}\n")
    async with simulated(redis_url, api_keys_file=str(keys)) as place:
        header = {"x-api-key": key}
        async with place.session.get(place.url + "/openapi.json", headers=header) as reply:
            spec = await reply.json()
        checks = ("--checks", "ignored_auth,status_code_conformance,response_schema_conformance")
        show = ("--header", f"x-api-key: {key}")
        # Beside a key that is good it would take one that is not for a way around.
        spec["security"] = [{"key": []}]
        del spec["components"]["securitySchemes"]["bearer"]
        await schemathesis(spec, place.url, tmp_path, "-n", "5", *checks, *show)

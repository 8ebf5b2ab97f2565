"""C7, bodies that are no request: 400 with what is wrong, or the engine decides; never a 500."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.common.prompt import CHAT_PATH, MESSAGES_PATH, RESPONSES_PATH
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.raw_client import post, raw
from tests.fakes.upstream import plain
from tests.fakes.upstream_fleet import UpstreamFleet, upstream_fleet

COMPLETION_PATH = "/v1/completions"
PATHS = [CHAT_PATH, COMPLETION_PATH, MESSAGES_PATH, RESPONSES_PATH]
START = b'{"model":"m","messages":[{"role":"user","content":"x"}],'
DEEP = 100_000

NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \r\n\t",
    "no JSON": b"hello",
    "half of it": b'{"model": "m", "messages": [',
    "something behind it": b'{"model": "m"} x',
    "an array": b"[]",
    "a string": b'"m"',
    "null": b"null",
    "NaN": START + b'"temperature":NaN}',
    "Infinity": START + b'"temperature":-Infinity}',
    "a comma too many": START + b'"n":1,}',
    "a comment": START + b'"n":1 /* one */}',
    "lists without end": b"[" * DEEP,
    "lists 100,000 deep": START + b'"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "objects 100,000 deep": START + b'"x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "UTF-16": '{"model":"m"}'.encode("utf-16"),
    "UTF-32": '{"model":"m"}'.encode("utf-32-le"),
    "a mark of order": b"\xef\xbb\xbf" + START + b'"n":1}',
    "no UTF-8": START + b'"x":"\xff"}',
    "an overlong letter": START + b'"x":"\xc0\x80"}',
    "half a surrogate pair": START + b'"x":"\\ud800"}',
    "a surrogate as bytes": START + b'"x":"\xed\xa0\x80"}',
    "a tab in a string": START + b'"x":"\t"}',
    "too many lists": START + b'"x":[' + b"[]," * limits.JSON_CONTAINERS_MAX + b"[]]}",
    "too many members": b"{"
    + b"".join(b'"%d":1,' % n for n in range(limits.JSON_MEMBERS_MAX + 1))
    + b'"model":"m"}',
    "no model": b'{"messages":[]}',
    "model null": b'{"model":null}',
    "a number as model": b'{"model":1}',
    "a list as model": b'{"model":["m"]}',
}
"""All 400."""

PASSED: dict[str, bytes] = {
    "no messages": b'{"model":"m","messages":[]}',
    "n of 16384": START + b'"n":16384}',
    "1e400 as text": START + b'"x":"1e400"}',
    "members twice": b'{"model":"x","model":"m","messages":1,"messages":[],"a":1,"a":2}',
    "escaped names": b'{"\\u006dodel":"m","messages":[]}',
    "white space": b' \r\n{ "model" : "m" ,\t"messages":[ ] }\n ',
    "unknown members": START + b'"zzz":{"a":[1,1.50,1E3,-0.0,"\\u00e9\\/"]},"":null}',
    "members that are all of another type": START
    + b'"stream":"yes","tools":1,"temperature":"hot","stop":{},"max_tokens":-1,"seed":1e99}',
    "a number of 4,000 digits": START + b'"n":' + b"1" * 300 + b"}",
    "brackets in a text": START + b'"x":"' + b"[" * (limits.JSON_CONTAINERS_MAX + 1) + b'"}',
}
"""All read, and the engine's to judge."""

JUDGED: dict[str, bytes] = {
    "messages of another type": b'{"model":"m","messages":{"role":"user"},"prompt":{},"input":0}',
    "no messages": b'{"model":"m","messages":[],"prompt":[],"input":[]}',
    "roles of another type": b'{"model":"m","messages":[{"role":[],"content":{}}, 1, null]}',
    "1,000,000 messages": b'{"model":"m","messages":[' + b"1," * 999_999 + b"1]}",
    "100,000 messages": b'{"model":"m","messages":[' + b"{}," * 99_999 + b"{}]}",
    "1,000,000 prompts": b'{"model":"m","prompt":[' + b'"",' * 999_999 + b'""]}',
    "negative token ids": b'{"model":"m","prompt":[-1,4294967296,1e400]}'.replace(
        b"1e400", b"1e30"
    ),
}
"""Refused by us with the member that is wrong, or by the engine."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from([
    "model", "messages", "prompt", "input", "system", "tools", "stream", "stream_options",
    "chat_template_kwargs", "documents", "cache_salt", "vllm_xargs", "kv_transfer_params",
    "max_tokens", "instructions", "previous_response_id", "reasoning", "functions",
])  # fmt: skip
BODIES = st.dictionaries(NAMES | st.text(max_size=8), JSON, max_size=5).map(
    lambda made: json.dumps({"model": "m", **made}).encode()
)
MANGLED = st.tuples(BODIES, st.integers(0, 200), st.binary(max_size=4)).map(
    lambda made: made[0][: made[1]] + made[2] + made[0][made[1] :]
)


@pytest.mark.parametrize("path", PATHS)
async def test_c7_what_is_no_request_is_400(canary: Canary, log: io.StringIO, path: str) -> None:
    """In the path's shape, told in our words; the connection goes on."""
    async with (
        upstream_fleet([plain(b"{}")], canary, log) as place,
        raw(place.running.port) as client,
    ):
        for name, body in NOT_JSON.items():
            await client.send(post(body, path=path))
            reply = await client.reply()
            assert reply.status == 400, name
            assert _shape(reply.body, path)["type"] == "invalid_request_error", name
            if "model" in name and path != MESSAGES_PATH:
                assert reply.error["param"] == "model", name
        await client.send(post({"model": canary.text}, path=path))
        reply = await client.reply()
        assert reply.status == 404
        assert canary.text.encode() not in reply.body
        assert place.engines[0].requests == []
        told = place.count("errors_total", model="unknown", reason="invalid_request_error")
        assert told == len(NOT_JSON)
    Report(
        "C7", f"{len(NOT_JSON)} bodies that are no request", "400, on the same connection"
    ).tell()


@pytest.mark.parametrize("path", PATHS)
async def test_c7_what_can_be_read_passes_byte_for_byte(
    canary: Canary, log: io.StringIO, path: str
) -> None:
    """What it means is the engine's to judge."""
    async with (
        upstream_fleet([plain(b"{}")], canary, log) as place,
        raw(place.running.port) as client,
    ):
        for name, body in PASSED.items():
            await client.send(post(body, path=path))
            reply = await client.reply()
            assert reply.status == 200, name
            passed = place.engines[0].requests[-1].body
            # A response's id is ours, and stands behind all that was sent.
            own = body.rstrip()[:-1] if path == RESPONSES_PATH else body
            assert passed.startswith(own), name
            assert path == RESPONSES_PATH or passed == body, name
    Report("C7", f"{len(PASSED)} bodies that are odd", "the engine gets them byte for byte").tell()


@pytest.mark.parametrize("path", PATHS)
async def test_c7_a_prompt_of_another_kind_is_refused_or_passed(
    canary: Canary, log: io.StringIO, path: str
) -> None:
    """With the member that is wrong, or byte for byte."""
    async with (
        upstream_fleet([plain(b"{}")], canary, log) as place,
        raw(place.running.port) as client,
    ):
        for name, body in JUDGED.items():
            place.engines[0].requests.clear()
            await client.send(post(body, path=path))
            reply = await client.reply()
            if reply.status == 200:
                assert place.engines[0].requests[0].body.startswith(body[:-1]), name
                continue
            assert reply.status == 400, name
            assert path == MESSAGES_PATH or reply.error["param"] in ("messages", "prompt", "input")
            assert place.engines[0].requests == []
    Report("C7", f"{len(JUDGED)} prompts of another kind", "400 with `param`, or the engine").tell()


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(BODIES | MANGLED, st.sampled_from(PATHS)), max_size=30))
@example([(b'{"model":"m","kv_transfer_params":' + b"[" * 990 + b"]" * 990 + b"}", CHAT_PATH)])
def test_c7_no_body_is_an_internal_error(
    canary: Canary, log: io.StringIO, bodies: list[tuple[bytes, str]]
) -> None:
    """Whatever is sent: the engine's answer or a client's error."""

    async def run() -> None:
        async with upstream_fleet([plain(b"{}")], canary, log) as place:
            for body, path in bodies:
                await _ask(place, body, path)

    asyncio.run(run())
    Report("C7", "bodies made by Hypothesis", "200, 400 or 404, never 500").tell()


async def _ask(place: UpstreamFleet, body: bytes, path: str) -> None:
    engine = place.engines[0]
    engine.requests.clear()
    async with raw(place.running.port) as client:
        await client.send(post(body, path=path))
        reply = await client.reply()
    assert reply.status in (200, 400, 404), (reply, body)
    if reply.status != 200:
        assert _shape(reply.body, path)
        assert engine.requests == []
    elif b"kv_" not in body:
        assert json.loads(engine.requests[-1].body) is not None


def _shape(body: bytes, path: str) -> dict[str, Any]:
    """Give an error, which must have its path's shape."""
    told = json.loads(body)
    if path == MESSAGES_PATH:
        assert (set(told), told["type"]) == ({"type", "error"}, "error")
    else:
        assert set(told) == {"error"}
    return dict(told["error"])

"""C8, C9 and C10: paths, hop-by-hop headers and headers that claim to be somebody else's."""

from __future__ import annotations

import io
import re

import pytest

from tests.chaos.conftest import Report
from tests.contract.test_load_paths import ADMINISTRATIVE, spellings, status_of
from tests.fakes.canary import Canary
from tests.fakes.raw_client import post, raw
from tests.fakes.upstream import Exchange, plain
from tests.fakes.upstream_fleet import upstream_fleet

CONNECTION_WIDE = [
    "TE: trailers", "Trailer: X-T", "Keep-Alive: timeout=5", "Upgrade: h2c",
    "Proxy-Authorization: Basic {}", "Proxy-Authenticate: {}", "Proxy-Connection: X-Other",
    "X-Other: {}",
    "HTTP2-Settings: {}", "X-Nominated: {}", "X-Also: {}", "Connection: x-nominated, Upgrade",
    "Connection: X-ALSO , close",
]  # fmt: skip
STEERING = [
    "X-Gateway-Destination-Endpoint: {}", "x-gateway-destination-endpoint-subset: {}",
    "x-gateway-destination-endpoint-scores: {}", "X-LLM-D-Endpoint: {}", "x-llm-d-anything: {}",
    "X-Kvatlas-Endpoint: {}", "x-kvatlas-match-tokens: {}", "X-Data-Parallel-Rank: 7",
    "x-prefiller-host-port: {}", "X-Data-Parallel-Host-Port: {}",
]  # fmt: skip
FORWARDED = ["Forwarded: for={}", "X-Forwarded-For: {}", "X-Forwarded-Host: {}",
             "x-forwarded-proto: https", "X-FORWARDED-ANYTHING: {}", "X-Real-IP: {}"]  # fmt: skip
BAD_IDS = ["{}" * 200, "a b", "a/{}", "ä", "", '"', "{}\t", "a,b", "a;b", "a" * 65]
MADE_ID = re.compile(rb"[0-9a-f]{32}")


def names(lines: list[str]) -> set[bytes]:
    """Give the names of header lines, in lower case."""
    return {line.partition(":")[0].lower().encode() for line in lines}


def names_in(exchange: Exchange) -> set[bytes]:
    """Give the names of the headers that an engine got, in lower case."""
    lines = exchange.head.rstrip().split(b"\r\n")[1:]
    return {line.partition(b":")[0].lower() for line in lines}


async def test_c8_no_spelling_of_an_engines_path_reaches_it(
    canary: Canary, log: io.StringIO
) -> None:
    """404 (405 where the list of models is asked, 400 where it is no target); told as `other`."""
    count = 0
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        for path in ADMINISTRATIVE:
            for target in spellings(path):
                marked = f"{target}?{canary.text}"
                told = await status_of(place.running.port, "POST", marked)
                assert told in (400, 404, 405), target
                count += 1
        assert place.engines[0].requests == []
        told_paths = {line["path"] for line in place.told("request.refused")}
        assert told_paths <= {"other", "/v1/models"}
        assert place.count("errors_total", model="unknown", reason="not_found") > count / 2
    Report("C8", f"{count} spellings of engines' own paths", "404, no engine hears of it").tell()


@pytest.mark.parametrize(
    "target", ["//v1/chat/completions", "/v1/chat%2fcompletions", "http://x/sleep"]
)
async def test_c8_what_looks_like_a_served_path_is_404(
    canary: Canary, log: io.StringIO, target: str
) -> None:
    """And no engine sees it."""
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        assert await status_of(place.running.port, "POST", target) == 404
        assert place.engines[0].requests == []
    Report("C8", f"POST {target}", "404; no engine sees it").tell()


async def test_c8_a_query_passes_byte_for_byte(canary: Canary, log: io.StringIO) -> None:
    """No escape is undone, none is added, on the way to the engine."""
    target = "/v1/chat/completions?a=%2F%2f&b=/+%20&a=%41~'&c"
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(post(path=target))
            assert (await client.reply()).status == 200
        (exchange,) = place.engines[0].requests
        assert exchange.head.split(b"\r\n")[0] == f"POST {target} HTTP/1.1".encode()
    Report("C8", "escapes in a query", "they reach the engine as they were sent").tell()


async def test_c9_what_describes_a_connection_stays_on_it(canary: Canary, log: io.StringIO) -> None:
    """In both directions, with what it nominates; framing is ours."""
    lines = [line.format(canary.text) for line in CONNECTION_WIDE]
    answered = [
        b"Connection: X-Engine, keep-alive", b"X-Engine: 1", b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: x", b"Trailer: X-T", b"Upgrade: h2c", b"X-Stays: 1",
    ]  # fmt: skip
    async with upstream_fleet([plain(b"{}", "200 OK", *answered)], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(post(None, "X-Stays: 1", *lines))
            reply = await client.reply()
            assert reply.status == 200
            assert await client.ended() == b""
        (exchange,) = place.engines[0].requests
        assert not names_in(exchange) & names(lines)
        assert canary.text.encode() not in exchange.head
        assert b"X-Stays: 1" in exchange.head
        assert exchange.head.lower().count(b"content-length:") == 1
        assert reply.headers["x-stays"] == "1"
        theirs = {"x-engine", "keep-alive", "proxy-authenticate", "trailer", "upgrade"}
        assert not theirs & set(reply.headers)
        assert reply.headers["connection"] == "close"
    Report("C9", "hop-by-hop headers, and nominated ones", "they pass in neither direction").tell()


async def test_c9_no_client_nominates_ours_away(canary: Canary, log: io.StringIO) -> None:
    """What we set is there, and said once."""
    nominated = "Connection: x-request-id, content-length, host, content-type"
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(post(None, nominated, "X-Request-Id: mine"))
            assert (await client.reply()).headers["x-request-id"] == "mine"
        head = place.engines[0].requests[0].head.lower()
        for name in (b"x-request-id: mine", b"content-length: ", b"host: 127.0.0.1:"):
            assert head.count(b"\r\n" + name) == 1
    Report("C9", "our own headers are nominated", "they are there all the same").tell()


@pytest.mark.parametrize("networks", [[], ["10.0.0.0/8", "::1/128"], ["127.0.0.0/8"]])
async def test_c10_headers_of_trust(canary: Canary, log: io.StringIO, networks: list[str]) -> None:
    """What steers passes from nobody; for whom a proxy asks, from those that are trusted."""
    steering = [each.format(canary.text) for line in STEERING for each in (line, line.upper())]
    forwarded = [line.format("192.0.2.1") for line in FORWARDED]
    is_trusted = networks == ["127.0.0.0/8"]
    async with upstream_fleet([plain(b"{}")] * 2, canary, log, trusted_proxies=networks) as place:
        second = f"X-Gateway-Destination-Endpoint: {place.endpoint(1).name}"
        rank = f"X-Kvatlas-Endpoint: {place.endpoint(1).name}"
        async with raw(place.running.port) as client:
            for _ in range(4):
                await client.send(post(None, *steering, *forwarded, second, rank))
                reply = await client.reply()
                assert reply.status == 200
                assert canary.text not in str(reply.headers)
        # Round robin, whatever was asked for.
        assert [len(each.requests) for each in place.engines] == [2, 2]
        for exchange in (each for engine in place.engines for each in engine.requests):
            assert not names_in(exchange) & names(steering)
            found = names_in(exchange) & names(forwarded)
            assert found == (names(forwarded) if is_trusted else set())
            assert canary.text.encode() not in exchange.head
    whose = "of a trusted proxy" if is_trusted else f"of a stranger ({len(networks)} networks)"
    passed = "only those that say for whom it asks pass" if is_trusted else "none passes"
    Report("C10", f"forged trust headers {whose}", f"{passed}; they choose no destination").tell()


async def test_c10_a_request_id_is_one_or_is_replaced(canary: Canary, log: io.StringIO) -> None:
    """By its letters and length; one with a line break is no header, and one of 1 MB no head."""
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        async with raw(place.running.port) as client:
            for told in BAD_IDS:
                asked = told.replace("{}", canary.text)
                await client.send(post(None, f"X-Request-Id: {asked}"))
                reply = await client.reply()
                made = reply.headers["x-request-id"].encode()
                assert MADE_ID.fullmatch(made)
                head = place.engines[0].requests[-1].head
                assert b"X-Request-Id: " + made in head
                assert head.lower().count(b"\r\nx-request-id:") == 1
                assert canary.text.encode() not in head
        for told in ("a\r\nX-Forwarded-For: 1", "a\nb"):
            async with raw(place.running.port) as client:
                await client.send(post(None, f"X-Request-Id: {told}"))
                reply = await client.reply()
                assert reply.status == (200 if "\r\n" in told else 400)
        assert b"X-Forwarded" not in place.engines[0].requests[-1].head
        async with raw(place.running.port) as client:
            client.writer.write(post(None, "X-Request-Id: " + "a" * 1_000_000))
            assert (await client.reply()).status == 400
    Report("C10", "request ids of other letters, of 1 MB", "replaced; 400").tell()

"""Headers: what passes between clients and engines, and what never does."""

from __future__ import annotations

import pytest

from kvatlas.router.headers import Header, nominated, request_id, to_client, to_engine

PASSED = [
    ("Content-Type", "application/json"),
    ("Authorization", "Bearer client"),
    ("Accept", "text/event-stream"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "openai/2"),
    ("traceparent", "00-1-2-01"),
    ("X-Session-Id", "s"),
    ("Cookie", "a=b"),
]
HOP_BY_HOP = [
    "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
    "TE", "Trailer", "Trailers", "Transfer-Encoding", "Upgrade", "Expect", "HTTP2-Settings",
]  # fmt: skip
STEERING = [
    "X-Data-Parallel-Rank", "X-Data-Parallel-Host-Port", "X-Prefiller-Host-Port",
    "X-Encoder-Hosts-Ports", "X-KV-Cache-Source-Host-Port",
]  # fmt: skip
GATEWAY = [
    "X-Gateway-Destination-Endpoint", "x-gateway-destination-endpoint-subset",
    "X-GATEWAY-DESTINATION-ENDPOINT-SERVED", "x-kvatlas-endpoint", "X-Kvatlas-Anything",
]  # fmt: skip


def test_ours_replace_an_engines_of_the_same_name_but_cookies_add_up() -> None:
    """A token of a session is ours alone; every cookie is a header of its own."""
    engine = [("X-Session-Token", "theirs"), ("Set-Cookie", "a=1"), ("B", "2")]
    ours = [("x-session-token", "ours"), ("Set-Cookie", "k=3")]
    assert to_client(engine, ours) == [("Set-Cookie", "a=1"), ("B", "2"), *ours]


def test_ordinary_headers_pass_in_order() -> None:
    """Expect end-to-end headers to reach the engine as they came, and ours behind them."""
    ours = [("X-Request-Id", "r1")]
    assert to_engine(PASSED, ours) == [*PASSED, *ours]


def test_answers_pass_in_order_with_repeated_names() -> None:
    """Expect both cookies, the encoding and the length of an answer."""
    answer = [
        ("Content-Type", "text/event-stream"),
        ("Content-Encoding", "gzip"),
        ("Content-Length", "12"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    ]
    assert to_client(answer, []) == answer


@pytest.mark.parametrize("name", HOP_BY_HOP)
@pytest.mark.parametrize("spelling", [str, str.upper, str.lower])
def test_what_describes_one_connection_stays_on_it(name: str, spelling: type[str]) -> None:
    """Expect hop-by-hop headers to pass in neither direction, however they are written."""
    header = (spelling(name), "x")
    assert to_engine([header, ("A", "1")], []) == [("A", "1")]
    assert to_client([header, ("A", "1")], []) == [("A", "1")]


@pytest.mark.parametrize("connection", ["Connection", "proxy-connection"])
def test_nominated_headers_stay_too(connection: str) -> None:
    """Expect a header that Connection names to be dropped with it, in both directions."""
    headers = [("X-Secret", "1"), (connection, "close, x-secret ,X-Other"), ("x-other", "2")]
    assert to_engine([*headers, ("A", "1")], []) == [("A", "1")]
    assert to_client([*headers, ("A", "1")], []) == [("A", "1")]


def test_a_client_cannot_take_our_headers_away() -> None:
    """Expect what we set to be there even if Connection nominates it."""
    headers = [("Connection", "X-Request-Id, Authorization")]
    ours = [("X-Request-Id", "r1"), ("Authorization", "Bearer engine")]
    assert to_engine(headers, ours) == ours


@pytest.mark.parametrize("name", [*STEERING, *GATEWAY])
def test_clients_choose_no_destination(name: str) -> None:
    """Expect headers that steer engines or claim to be ours to be dropped where they enter."""
    assert to_engine([(name, "10.0.0.1:80"), ("A", "1")], []) == [("A", "1")]


@pytest.mark.parametrize("name", GATEWAY)
def test_engines_do_not_speak_for_us(name: str) -> None:
    """Expect our own headers in an answer to come from us alone."""
    assert to_client([(name, "x")], [("x-kvatlas-endpoint", "a:1")]) == [
        ("x-kvatlas-endpoint", "a:1")
    ]


@pytest.mark.parametrize("name", ["Host", "Content-Length"])
def test_framing_of_requests_is_ours(name: str) -> None:
    """Expect the client's host and length not to reach the engine."""
    assert to_engine([(name, "x")], []) == []


def test_ours_replace_the_clients_of_the_same_name() -> None:
    """Expect the engine's key in place of the client's, once."""
    ours = [("Authorization", "Bearer engine")]
    assert to_engine([("authorization", "Bearer client")], ours) == ours


def test_the_rank_is_ours_to_set() -> None:
    """Expect our rank and not the client's."""
    ours = [("X-data-parallel-rank", "1")]
    assert to_engine([("x-data-parallel-rank", "7")], ours) == ours


@pytest.mark.parametrize("name", ["X-Request-Id", "Server", "Date"])
def test_what_we_say_in_answers_is_not_said_twice(name: str) -> None:
    """Expect the engine's request id, server and date to give way."""
    ours = [("X-Request-Id", "r1")]
    assert to_client([(name, "engine")], ours) == ours


def test_nominated_names_come_from_every_connection_header() -> None:
    """Expect names of all such headers in lower case, without blanks."""
    headers: list[Header] = [("Connection", "A, b"), ("X", "c"), ("CONNECTION", " D ")]
    assert nominated(headers) == {"a", "b", "d"}


@pytest.mark.parametrize("good", ["a", "A-b_c.9", "x" * 64])
def test_a_safe_request_id_is_kept(good: str) -> None:
    """Expect letters, digits, dots, dashes and underscores up to 64 to be repeated."""
    assert request_id(good) == good


@pytest.mark.parametrize(
    "bad", [None, "", "x" * 65, "a b", "a\n", "a\r\nX: y", "ä", "a/b", "٣", "a;b"]
)
def test_another_request_id_is_replaced(bad: str | None) -> None:
    """Expect none to be kept that could break a log line or a header."""
    assert request_id(bad) is None

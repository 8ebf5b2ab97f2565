"""The cases of llm-d's own tests, by a gRPC client: what it picks, and how it says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.ext_proc_client import BUFFERED, FULL_DUPLEX, Ask
from tests.fakes.picker_place import MODEL, PROFILE, Pod, pods, profile_of

T = "T"
"""The adapter that cases ask for."""
DROPPED = "x-llm-d-request-dropped-reason"
HEADERS = {"hi": "mom", "x-request-id": "test-request-id"}
NOBODY = (
    b"inference error: ServiceUnavailable - failed to find endpoint candidates for serving the"
    b" request"
)


def body(model: str = MODEL, prompt: str = "hello") -> dict[str, Any]:
    """Write the body that cases send."""
    return {"max_tokens": 100, "model": model, "prompt": prompt, "temperature": 0}


def ask(model: str = MODEL, **more: Any) -> Ask:
    """Ask as cases do."""
    return Ask.json(body(model), headers=HEADERS, **more)


@pytest.mark.parametrize("mode", [FULL_DUPLEX, BUFFERED])
@pytest.mark.parametrize(
    ("all_pods", "model", "picked"),
    [
        ((Pod(3, 0.2), Pod(0, 0.1), Pod(10, 0.2)), MODEL, 1),
        (
            (Pod(0, 0.2, ["foo", "bar"]), Pod(0, 0.1, ["foo", T]), Pod(10, 0.2, ["foo", "bar"])),
            T,
            1,
        ),
        ((Pod(10, 0.2, ["foo", "bar"]), Pod(10, 0.4, ["foo", T]), Pod(10, 0.3, ["foo"])), T, 1),
        ((Pod(6, 0.2, ["foo", "bar", T]), Pod(0, 0.85, ["foo"]), Pod(10, 0.9, ["foo"])), T, 0),
    ],
    ids=["lower queue and kv", "active adapter, low queue", "adapter over kv", "not shed"],
)
async def test_the_best_endpoint_is_picked(
    redis_url: str, all_pods: tuple[Pod, ...], model: str, picked: int, mode: int
) -> None:
    """By queue, cache and adapters; the body is the client's, whatever the mode."""
    async with pods(redis_url, *all_pods) as place:
        found = await place.pick(ask(model, mode=mode))
        assert place.number_of(found) == picked
        assert found.head.headers["x-request-id"] == "test-request-id"
        sent = json.dumps(body(model)).encode()
        assert found.body == (sent if mode == FULL_DUPLEX else b"")
        await place.quiet()


async def test_a_body_in_pieces_is_one(redis_url: str) -> None:
    """It is cut inside of a string, and routed, and comes out whole."""
    raw = json.dumps(body()).encode()
    at = raw.index(b"hello") + 2
    async with pods(redis_url, Pod()) as place:
        found = await place.pick(Ask([raw[:at], raw[at:]]))
        assert place.number_of(found) == 0
        assert found.body == raw
        assert [each.is_last for each in found.told] == [False, True]


async def test_a_long_body_leaves_in_pieces_that_gateways_take(redis_url: str) -> None:
    """Of at most 62,000 bytes, the last of which says so."""
    raw = json.dumps(body(prompt="word " * 40_000)).encode()
    async with pods(redis_url, Pod()) as place:
        found = await place.pick(Ask([raw[at : at + 65_536] for at in range(0, len(raw), 65_536)]))
        assert found.body == raw
        assert max(len(each.body or b"") for each in found.told) == 62_000
        assert found.head.headers["content-length"] == str(len(raw))


@pytest.mark.parametrize(
    ("content", "path", "text"),
    [
        (b"no healthy upstream", "/v1/completions", "the body is not JSON"),
        (b'{"prompt": "hello"}', "/v1/completions", "model not found in request body"),
        (b'{"model": 5, "prompt": "hello"}', "/v1/completions", "model is not a string"),
        (b"{}", "/v1/nothing", "unsupported path"),
        (b"", "/v1/completions", "the body is not JSON"),
    ],
)
@pytest.mark.parametrize("mode", [FULL_DUPLEX, BUFFERED])
async def test_what_is_no_request_is_400(
    redis_url: str, content: bytes, path: str, text: str, mode: int
) -> None:
    """In the words of llm-d's scheduler."""
    async with pods(redis_url, Pod()) as place:
        found = await place.pick(Ask([content], path=path, mode=mode))
        assert found.head.status == 400
        assert found.head.body == f"inference error: BadRequest - {text}".encode()
        assert DROPPED not in found.head.headers
        await place.quiet()


async def test_a_request_without_a_body_goes_to_any_endpoint(redis_url: str) -> None:
    """At once, at its headers."""
    async with pods(redis_url, Pod(), Pod()) as place:
        seen = {
            (await place.pick(Ask(method="GET", path="/v1/models"))).destination for _ in range(40)
        }
        assert seen == set(place.addresses)


async def test_an_empty_pool_is_503(redis_url: str) -> None:
    """For requests with a body, and without one."""
    async with pods(redis_url) as place:
        for each in (ask(), Ask(method="GET", path="/v1/models")):
            found = await place.pick(each)
            assert (found.head.status, found.head.body) == (503, NOBODY)
            assert found.head.headers[DROPPED] == "rejected-no-endpoints"


async def test_the_gateways_subset_is_kept_to(redis_url: str) -> None:
    """The best of it, a loaded one if it is alone, nobody where none is known."""
    async with pods(redis_url, Pod(3, 0.2), Pod(0, 0.1), Pod(10, 0.9)) as place:
        first, second, third = place.addresses
        for subset, picked in (([first, second, third], 1), ([third], 2), ([first, third], 0)):
            assert place.number_of(await place.pick(ask(subset=subset))) == picked
        for nobody in (["10.9.9.9:8000"], []):
            found = await place.pick(ask(subset=nobody))
            assert (found.head.status, found.head.body) == (503, NOBODY)
            assert found.head.headers[DROPPED] == "rejected-no-endpoints"
        # An address without a port stands for all that listen there.
        assert place.number_of(await place.pick(ask(subset=["127.0.0.1"]))) == 1
        get = Ask(method="GET", path="/v1/models", subset=[third])
        assert place.number_of(await place.pick(get)) == 2


async def test_a_hint_may_be_switched_off(redis_url: str) -> None:
    """As --disable-endpoint-subset-filter does."""
    async with pods(redis_url, Pod(3, 0.2), Pod(0, 0.1), picker={"subset_hint": False}) as place:
        assert place.number_of(await place.pick(ask(subset=[place.addresses[0]]))) == 1


async def test_bodies_that_are_no_json_pass_where_that_is_asked_for(redis_url: str) -> None:
    """By load, untouched, on any path."""
    async with pods(redis_url, Pod(3, 0.2), Pod(0, 0.1), picker={"passthrough": True}) as place:
        found = await place.pick(Ask([b"\x00\x01 no json"], path="/any/thing"))
        assert place.number_of(found) == 1
        assert found.body == b"\x00\x01 no json"
        await place.quiet()


async def test_a_path_may_have_a_prefix(redis_url: str) -> None:
    """The longest path that it ends with counts."""
    async with pods(redis_url, Pod()) as place:
        found = await place.pick(Ask.json(body(), path="/team/a/v1/completions?x=1"))
        assert place.number_of(found) == 0


async def test_scores_of_all_are_told_where_that_is_asked_for(redis_url: str) -> None:
    """In the metadata only, by endpoint."""
    name = "x-gateway-destination-endpoint-scores"
    async with pods(redis_url, Pod(5, 0.5), Pod(), picker={"emit_scores": True}) as place:
        found = await place.pick(ask())
        scores = found.head.metadata[name]
        assert set(scores) == set(place.addresses)
        assert scores[place.addresses[1]] > scores[place.addresses[0]]
    async with pods(redis_url, Pod()) as place:
        assert name not in (await place.pick(ask())).head.metadata


async def test_a_list_to_fall_back_on_is_told_where_that_is_asked_for(redis_url: str) -> None:
    """The best first."""
    all_pods = (Pod(3, 0.2), Pod(0, 0.1), Pod(10, 0.9))
    async with pods(redis_url, *all_pods, picker={"destinations": 2}) as place:
        found = await place.pick(ask())
        assert found.destination == f"{place.addresses[1]},{place.addresses[0]}"


STICKY = profile_of(["queue-scorer"], "session-affinity-filter")


async def test_a_session_stays_where_it_began(redis_url: str) -> None:
    """By the token that the first answer brings, or by an id of the client's own."""
    session = {"header": "x-session-token", "id_headers": ["x-session-id"]}
    router = {"profile": STICKY, "session": session}
    async with pods(redis_url, *[Pod()] * 4, router=router) as place:
        for told_by in ("token", "id"):
            headers = dict(HEADERS) if told_by == "token" else {"x-session-id": "mine"}
            call = place.call(Ask.json(body(), headers=headers))
            first = (await call.pick()).destination
            answer = await call.answer(200, {"content-type": "application/json"})
            call.cancel()
            if told_by == "token":
                headers["x-session-token"] = answer.headers["x-session-token"]
            for _ in range(12):
                again = await place.pick(Ask.json(body(prompt="other"), headers=headers))
                assert again.destination == first


async def test_answers_in_pieces_come_back_as_they_were(redis_url: str) -> None:
    """JSON in pieces, what is no JSON, and an empty piece at the end."""
    for pieces in ([b'{"a', b'": 1}'], [b"no json"], [b'{"a": 1}', b""]):
        async with pods(redis_url, Pod()) as place:
            call = place.call(ask(response_mode=FULL_DUPLEX))
            await call.pick()
            await call.answer(200, {"content-type": "application/json"})
            for number, piece in enumerate(pieces, 1):
                told = await call.piece(piece, is_last=number == len(pieces))
                assert (told.body, told.is_last) == (piece, number == len(pieces))
            await call.end()
            await place.quiet()


async def test_conformance_tests_are_told_who_served(redis_url: str) -> None:
    """Where the profile takes the endpoints that their requests name; nobody else is."""
    name = "x-conformance-test-served-endpoint"
    tested = profile_of(["queue-scorer"], "header-based-testing-filter")
    for profile, is_told in ((tested, True), (PROFILE, False)):
        async with pods(redis_url, Pod(), Pod(9), router={"profile": profile}) as place:
            headers = {"test-epp-endpoint-selection": place.addresses[1]}
            call = place.call(Ask.json(body(), headers=headers if is_told else {}))
            picked = await call.pick()
            assert place.number_of(picked) == int(is_told)
            answer = await call.answer(200, {"content-type": "application/json"})
            assert answer.headers.get(name) == (picked.destination if is_told else None)
            call.cancel()
            await place.quiet()

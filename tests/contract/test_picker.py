"""The picker beyond the choice: counting, answers, keys, steering, health, TLS, drain."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvatlas.common import limits
from tests.fakes.authority import LOCALHOST, Authority
from tests.fakes.ext_proc_client import BUFFERED, FULL_DUPLEX, Ask, Call, gateway
from tests.fakes.picker_place import MODEL, PickerPlace, Pod, picker_settings, picking, pods

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Which canal is the deepest?"}]
READY = "envoy.service.ext_proc.v3.ExternalProcessor"
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
)


def chat(model: str = MODEL, *, ask: dict[str, Any] | None = None, **fields: Any) -> Ask:
    """Ask with a chat."""
    return Ask.json({"model": model, "messages": MESSAGES, **fields}, path=CHAT, **(ask or {}))


async def in_flight(place: PickerPlace) -> list[int]:
    """Tell what is under way at each endpoint, as all routers are told."""
    return [each.requests for each in place.running.service.cores.current.endpoints.all()]


@pytest.mark.parametrize("mode", [FULL_DUPLEX, BUFFERED])
async def test_a_request_counts_until_its_exchange_ends(redis_url: str, mode: int) -> None:
    """From the decision through the head of the answer to the end, in every mode."""
    async with pods(redis_url, Pod()) as place:
        call = place.call(chat(ask={"mode": mode}))
        await call.pick()
        assert await in_flight(place) == [1]
        told = await call.answer(200, {"content-type": "application/json"})
        assert told.part == "response_headers"
        assert told.headers["x-request-id"]
        assert await in_flight(place) == [1]
        assert await call.end() is grpc.StatusCode.OK
        await place.quiet()
        assert place.value("requests_total", model=MODEL, path=CHAT, status="200") == 1


async def test_a_client_that_leaves_is_counted_as_such(redis_url: str) -> None:
    """Before the engine answered: 499; and nothing stays under way."""
    async with pods(redis_url, Pod()) as place:
        call = place.call(chat())
        await call.pick()
        call.cancel()
        await place.quiet()
        assert place.value("errors_total", model=MODEL, reason="client_closed") == 1


async def test_an_exchange_that_breaks_off_within_the_body_frees_everything(redis_url: str) -> None:
    """The gateway sent a part of the body, and left."""
    async with pods(redis_url, Pod()) as place:
        call = place.call(Ask([b'{"model": "m"'], path=CHAT))
        await call.begin()
        await call.send(request_body={"body": b'{"model": "m"', "end_of_stream": False})
        await asyncio.sleep(0.1)
        assert place.running.picker.open == 1
        call.cancel()
        await place.quiet()


async def test_a_body_that_does_not_come_is_408(redis_url: str) -> None:
    """After router.body_read_s, as in the proxy."""
    async with pods(redis_url, Pod(), router={"body_read_s": 0.2}) as place:
        call = place.call(Ask([b"{"], path=CHAT))
        await call.begin()
        told = await call.told()
        assert told is not None
        assert (told.status, told.body) == (
            408, b"inference error: RequestTimeout - the body did not arrive in time",
        )  # fmt: skip


@pytest.mark.parametrize("mode", [FULL_DUPLEX, BUFFERED])
async def test_a_body_that_is_too_long_is_413(redis_url: str, mode: int) -> None:
    """Whether its length was told or not."""
    async with pods(redis_url, Pod(), router={"body_bytes_max": 2_000}) as place:
        found = await place.pick(chat(padding="x" * 3_000, ask={"mode": mode}))
        assert found.head.status == 413


@pytest.mark.parametrize("response_mode", [FULL_DUPLEX, BUFFERED])
async def test_bodies_of_answers_pass_unchanged(redis_url: str, response_mode: int) -> None:
    """A gateway that sends them gets them back, piece by piece; a trailer is left."""
    pieces = [b'{"id": "x", ', b'"choices": []}', b""]
    async with pods(redis_url, Pod()) as place:
        call = place.call(chat(ask={"response_mode": response_mode}))
        await call.pick()
        await call.answer(200, {"content-type": "application/json"})
        if response_mode == BUFFERED:
            told = await call.piece(b"".join(pieces), is_last=True)
            assert (told.part, told.body) == ("response_body", None)
        else:
            for piece in pieces:
                told = await call.piece(piece, is_last=piece == b"")
                assert (told.part, told.body, told.is_last) == (
                    "response_body",
                    piece,
                    piece == b"",
                )
        await call.end()
        await place.quiet()


async def test_a_stream_is_read_where_the_gateway_sends_it(redis_url: str) -> None:
    """Three chunks in, three out; the usage is counted, the first byte, and gaps."""
    chunks = [b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n', USAGE,
              b"data: [DONE]\n\n"]  # fmt: skip
    options = {"reads_answers": True}
    async with pods(redis_url, Pod(), picker=options) as place:
        asked = {"response_mode": FULL_DUPLEX}
        call = place.call(chat(stream=True, stream_options={"include_usage": True}, ask=asked))
        await call.pick()
        endpoint = next(iter(place.running.service.cores.current.endpoints.all()))
        await call.answer(200, {"content-type": "text/event-stream; charset=utf-8"})
        assert endpoint.awaiting == 1
        seen = [await call.piece(each, is_last=each.endswith(b"[DONE]\n\n")) for each in chunks]
        assert [each.body for each in seen] == chunks
        assert endpoint.awaiting == 0
        await call.end()
        await place.quiet()
        assert place.value("input_tokens_total", model=MODEL) == 7
        assert place.value("inter_token_seconds_count", model=MODEL) == 2


async def test_what_cannot_be_taken_out_again_is_not_asked_for(redis_url: str) -> None:
    """With bodies of requests streamed a gateway grants no sight of the answer's."""
    async with pods(redis_url, Pod(), picker={"reads_answers": True}) as place:
        for _ in range(2):
            call = place.call(chat(stream=True))
            assert "stream_options" not in json.loads((await call.pick()).body)
            told = await call.answer(200, {"content-type": "text/event-stream"})
            assert told.response_body_mode is None
            await call.end()
            await place.quiet()


@pytest.mark.parametrize("response_mode", [FULL_DUPLEX, BUFFERED])
async def test_answers_to_requests_without_a_body_pass(redis_url: str, response_mode: int) -> None:
    """Back as they came, in the mode that they came in."""
    async with pods(redis_url, Pod()) as place:
        call = place.call(Ask(method="GET", path="/v1/models", response_mode=response_mode))
        await call.pick()
        await call.answer(200, {"content-type": "application/json"})
        told = await call.piece(b"{}", is_last=True)
        assert told.body == (b"{}" if response_mode == FULL_DUPLEX else None)
        await call.end()


async def test_usage_that_the_picker_asks_for_is_taken_out_again(redis_url: str) -> None:
    """Once it knows that the engine does not tell it unasked; the client did not ask."""
    done = b"data: [DONE]\n\n"
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    async with pods(redis_url, Pod(), picker={"reads_answers": True}) as place:
        asked = {"response_mode": FULL_DUPLEX}
        for number in range(2):
            call = place.call(chat(stream=True, ask=asked))
            body = json.loads((await call.pick()).body)
            await call.answer(200, {"content-type": "text/event-stream"})
            pieces = [last, USAGE, done] if number else [last, done]
            out = [await call.piece(each, is_last=each == done) for each in pieces]
            assert b"".join(each.body or b"" for each in out) == last + done
            await call.end()
            await place.quiet()
            assert ("stream_options" in body) is bool(number)


async def test_the_answer_names_the_model_as_the_client_did(redis_url: str) -> None:
    """A gateway that sends no bodies is asked for this one; the request has the engine's name."""
    options = {"model": {"aliases": ["nick"]}}
    async with pods(redis_url, Pod(), **options) as place:
        call = place.call(chat("nick", ask={"mode": BUFFERED}))
        picked = await call.pick()
        assert json.loads(picked.body)["model"] == MODEL
        assert picked.head.headers["accept-encoding"] == "identity"
        told = await call.answer(200, {"content-type": "application/json", "content-length": "17"})
        assert told.response_body_mode == FULL_DUPLEX
        assert told.removed == ["content-length"]
        piece = await call.piece(b'{"id":"x","model":"m","choices":[]}', is_last=True)
        assert piece.body == b'{"id":"x","model":"nick","choices":[]}'
        await call.end()
        # Where nothing is to be written anew, no body is asked for.
        call = place.call(chat(ask={"mode": BUFFERED}))
        await call.pick()
        told = await call.answer(200, {"content-type": "application/json"})
        assert told.response_body_mode is None
        call.cancel()
        await place.quiet()


async def test_who_served_is_followed(redis_url: str) -> None:
    """A gateway that went down the list says so; load, sessions and the log go by it."""
    async with pods(redis_url, Pod(), Pod(5), picker={"destinations": 2}) as place:
        call = place.call(chat())
        picked = await call.pick()
        first, second = picked.destination.split(",")
        assert (await in_flight(place))[place.addresses.index(first)] == 1
        await call.answer(200, {"content-type": "application/json"}, served=second)
        assert (await in_flight(place))[place.addresses.index(second)] == 1
        assert (await in_flight(place))[place.addresses.index(first)] == 0
        await call.end()
        await place.quiet()


async def test_client_bytes_choose_nothing(redis_url: str) -> None:
    """Headers that steer are taken out, whatever their spelling; others are left alone."""
    forged = {
        "x-gateway-destination-endpoint": "10.0.0.1:22",
        "x-gateway-destination-endpoint-served": "10.0.0.1:22",
        "x-data-parallel-rank": "3",
        "x-prefiller-host-port": "10.0.0.1:22",
        "x-kvatlas-model": "other",
        "x-llm-d-slo-ttft-ms": "1",
        "user-agent": "curl",
    }
    async with pods(redis_url, Pod()) as place:
        for ask in (chat(ask={"headers": forged}), Ask(method="GET", path="/x", headers=forged)):
            found = await place.pick(ask)
            # The destination is set anew, which takes the client's out as well.
            kept = {"user-agent", "x-gateway-destination-endpoint"}
            assert set(found.head.removed) == set(forged) - kept
            assert found.destination == place.addresses[0]
        kv = chat(kv_transfer_params={"do_remote_decode": True}, ask={"mode": BUFFERED})
        assert "kv_transfer_params" not in json.loads((await place.pick(kv)).body)


async def test_keys_are_asked_for_and_kept(redis_url: str, tmp_path: Path) -> None:
    """Without one 401; a known one is let in, and the engine does not see it."""
    keys = tmp_path / "keys.yaml"
    digest = hashlib.sha256(b"kv-secret-of-mine").hexdigest()
    keys.write_text(yaml.safe_dump({"keys": [{"hash": digest, "tenant": "t"}]}))
    async with pods(redis_url, Pod(), router={"api_keys_file": str(keys)}) as place:
        refused = await place.pick(chat())
        assert refused.head.status == 401
        found = await place.pick(
            chat(ask={"headers": {"authorization": "Bearer kv-secret-of-mine"}})
        )
        assert found.destination == place.addresses[0]
        assert "authorization" in found.head.removed


async def test_load_is_shared_with_other_pickers(redis_url: str) -> None:
    """What one has under way, another knows of at its next decision."""
    async with pods(redis_url, Pod(), Pod()) as place:
        urls = [f"http://{each}" for each in place.addresses]
        async with picking(picker_settings(urls, redis_url)) as other:
            calls = [place.call(chat(user=str(number))) for number in range(6)]
            for call in calls:
                await call.pick()
            for _ in range(200):
                if sum(await in_flight(other)) == 6:
                    break
                await asyncio.sleep(0.02)
            assert await in_flight(other) == await in_flight(place)
            for call in calls:
                call.cancel()
            await place.quiet()


async def test_gateways_that_cannot_be_served_are_told_why(redis_url: str) -> None:
    """STREAMED has no whole body to decide on; an exchange begins with headers."""
    async with pods(redis_url, Pod()) as place:
        call = place.call(chat(ask={"mode": 1}))
        await call.begin()
        assert await call.told() is None
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
        call = place.call(chat())
        await call.send(request_body={"body": b"{}", "end_of_stream": True})
        assert await call.told() is None
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_unknown_models_go_to_the_engine_or_are_refused(redis_url: str) -> None:
    """By default an engine says what it thinks of them; several models leave it no choice."""
    async with pods(redis_url, Pod()) as place:
        assert (await place.pick(chat("sql-lora-1"))).destination == place.addresses[0]
    async with pods(redis_url, Pod(), picker={"unknown_models": "refuse"}) as place:
        assert (await place.pick(chat("sql-lora-1"))).head.status == 404


# --- health, TLS, drain ---------------------------------------------------------------------------


async def health(port: int, service: str) -> str:
    """Ask for the health of a service."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        found = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)


async def test_health_is_told_on_both_ports(redis_url: str) -> None:
    """By service: alive, ready, or not known."""
    async with pods(redis_url, Pod()) as place:
        assert place.running.health_port is not None
        for port in (place.running.port, place.running.health_port):
            for service in ("", "liveness", "readiness", READY):
                assert await health(port, service) == "SERVING"
            assert await health(port, "nobody") == "SERVICE_UNKNOWN"


@asynccontextmanager
async def draining(place: PickerPlace) -> AsyncIterator[asyncio.Task[None]]:
    """Drain a picker."""
    task = asyncio.create_task(place.running.drain())
    await asyncio.sleep(0.1)
    yield task
    await task


async def test_a_drain_loses_nothing(redis_url: str) -> None:
    """It is not ready, takes what still comes for a while, and lets what is open finish."""
    async with pods(redis_url, Pod(), router={"pre_stop_s": 0.6, "drain_s": 5}) as place:
        call = place.call(chat())
        await call.pick()
        health_port = place.running.health_port
        assert health_port is not None
        async with draining(place) as task:
            assert await health(health_port, READY) == "NOT_SERVING"
            assert await health(health_port, "liveness") == "SERVING"
            late = place.call(chat())
            assert (await late.pick()).destination == place.addresses[0]
            await asyncio.sleep(0.8)
            assert not task.done()
            for each in (call, late):
                await each.answer(200, {"content-type": "application/json"})
                assert await each.end() is grpc.StatusCode.OK


async def test_who_comes_too_late_is_told(redis_url: str) -> None:
    """While what is open finishes, over a connection that stands, or not at all."""
    async with pods(redis_url, Pod(), router={"pre_stop_s": 0, "drain_s": 5}) as place:
        call = place.call(chat())
        await call.pick()
        place.running.is_closed = True
        refused = await place.pick(chat())
        assert refused.head.status == 503
        assert refused.head.headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
        call.cancel()


async def served_by(port: int, authority: Authority) -> str:
    """Pick over TLS, trusting one authority; give where a request without a body goes."""
    trusted = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{port}", trusted) as channel:
        call = Call(channel, Ask(method="GET", path="/x"))
        destination = (await call.pick()).destination
        call.cancel()
        return destination


async def test_certificates_are_read_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that changes is shown to whom comes next; who trusts another is not served."""
    monkeypatch.setattr(limits, "TLS_LOOK_S", 0.05)
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    made = [each.issue("localhost", f"{LOCALHOST},DNS:localhost") for each in (first, second)]
    shown = {"cert_file": tmp_path / "shown.crt", "key_file": tmp_path / "shown.key"}

    def show(pair: tuple[Path, Path]) -> None:
        for path, source in zip(shown.values(), pair, strict=True):
            path.write_bytes(source.read_bytes())

    show(made[0])
    tls = {name: str(path) for name, path in shown.items()}
    async with pods(redis_url, Pod(), picker={"secure_serving": True, "tls": tls}) as place:
        port, [address] = place.running.port, place.addresses
        assert await served_by(port, first) == address
        with pytest.raises(grpc.aio.AioRpcError):
            await served_by(port, second)
        async with gateway(port) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await Call(channel, Ask(method="GET", path="/x")).pick()
        show(made[1])
        for _ in range(100):
            with suppress(grpc.aio.AioRpcError):
                assert await served_by(port, second) == address
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("the other certificate was never shown")
        with pytest.raises(grpc.aio.AioRpcError):
            await served_by(port, first)

"""The simulated engine over real HTTP and ZMQ."""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgpack
import orjson
import pytest
import zmq
import zmq.asyncio
from prometheus_client.parser import text_string_to_metric_families

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.simulator.app import Running, engine

SIZE = 16
STORED_KEYS = [
    *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id"),
    *("medium", "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind"),
]
IDS = [100 + i for i in range(70)]


def settings(**changes: Any) -> Settings:
    """Configure an engine on ports of the system's choice that computes at once."""
    fast = {
        "port": 0,
        "events": "tcp://127.0.0.1:0",
        "replay": "tcp://127.0.0.1:0",
        "block_size": SIZE,
        "time_scale": 1_000.0,
    }
    return Settings(
        models=[{"name": "demo", "tokenizer": str(demo_model_path())}],  # type: ignore[list-item]  # as from a file
        engine={**fast, **changes},  # type: ignore[arg-type]  # as from a file
    )


@dataclass
class Client:
    """A client of a running engine."""

    session: aiohttp.ClientSession
    running: Running

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Send JSON and read JSON."""
        async with self.session.post(self.running.url + path, data=orjson.dumps(body)) as answer:
            return answer.status, await answer.json()

    async def complete(self, prompt: Any, **options: Any) -> Any:
        """Have a prompt completed, by one token if nothing else is said."""
        body = {"model": "demo", "prompt": prompt, "max_tokens": 1, **options}
        status, answer = await self.post("/v1/completions", body)
        assert status == 200
        return answer

    async def chat(self, *contents: str, **options: Any) -> Any:
        """Have a chat answered."""
        status, answer = await self.post("/v1/chat/completions", chat_body(*contents, **options))
        assert status == 200
        return answer

    async def stream(self, path: str, body: Any) -> list[Any]:
        """Read a stream to its end; [DONE] must be there."""
        async with self.session.post(self.running.url + path, data=orjson.dumps(body)) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            parts = (await answer.read()).split(b"\n\n")
        assert parts[-2:] == [b"data: [DONE]", b""]
        return [orjson.loads(part.removeprefix(b"data: ")) for part in parts[:-2]]

    async def metric(self, name: str) -> float:
        """Read the first sample of a metric."""
        async with self.session.get(self.running.url + "/metrics") as answer:
            text = await answer.text()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name:
                    return sample.value
        raise KeyError(name)

    async def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value; the test's timeout is the limit."""
        while await self.metric(name) != value:  # noqa: ASYNC110 - it is another side's state
            await asyncio.sleep(0.01)

    async def replay(self, start: int = 0) -> list[tuple[int, list[Any]]]:
        """Ask for a replay and read it to its END."""
        assert self.running.sources.replay is not None
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.connect(self.running.sources.replay)
            await dealer.send_multipart([b"", struct.pack(">Q", start)])
            batches: list[tuple[int, list[Any]]] = []
            while True:
                frames = await dealer.recv_multipart()
                if frames[-2] == b"\xff" * 8:
                    assert frames in ([b"", b"", frames[-2], b""], [b"", frames[-2], b""])
                    return batches
                assert len(frames) in (3, 4)
                batches.append((struct.unpack(">Q", frames[-2])[0], msgpack.unpackb(frames[-1])))

    async def events(self) -> list[dict[str, Any]]:
        """Give every event so far; a replay is complete and in order."""
        batches = await self.replay()
        assert [number for number, _ in batches] == list(range(len(batches)))
        return [event for _, batch in batches for event in batch[1]]


def chat_body(*contents: str, **options: Any) -> dict[str, Any]:
    """Write a chat whose turns alternate, the user's first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"model": "demo", "messages": messages, "max_tokens": 8, **options}


@asynccontextmanager
async def client(**changes: Any) -> AsyncIterator[Client]:
    """Run an engine and give a client of it."""
    async with engine(settings(**changes)) as running, aiohttp.ClientSession() as session:
        yield Client(session, running)


def cached(answer: Any) -> int:
    """Read how much of a prompt was cached."""
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def test_second_call_is_cached_but_for_its_last_token() -> None:
    """A prompt seen before is cached to the last full block that leaves a token to compute."""
    async with client() as c:
        assert cached(await c.complete(IDS[:64])) == 0
        assert cached(await c.complete(IDS[:64])) == 48
        assert cached(await c.complete(IDS[:65])) == 64
        assert cached(await c.complete(IDS[:70])) == 64


async def test_salt_separates_caches() -> None:
    """Equal prompts with different salts share nothing, and the salt is told with block 0."""
    async with client() as c:
        await c.complete(IDS, cache_salt="a")
        assert cached(await c.complete(IDS)) == 0
        assert cached(await c.complete(IDS, cache_salt="a")) == 64
        salted, plain = await c.events()
    assert salted["extra_keys"] == [["a"], None, None, None]
    assert plain["extra_keys"] == [None] * 4
    assert not set(salted["block_hashes"]) & set(plain["block_hashes"])


async def test_next_turn_continues_the_chain() -> None:
    """An answer put back into the chat is found in the cache, up to its last computed token."""
    async with client() as c:
        first = await c.chat("Tell me of rivers.", max_tokens=60, return_token_ids=True)
        said = first["choices"][0]
        assert len(said["token_ids"]) == 60
        known = len(first["prompt_token_ids"]) + 60 - 1
        second = await c.chat("Tell me of rivers.", said["message"]["content"], "And of hills?")
    assert cached(second) == known // SIZE * SIZE


async def test_answer_is_deterministic_and_as_long_as_asked() -> None:
    """The same prompt gets the same text, streamed or not, of exactly max_tokens."""
    body = chat_body("Hello", max_tokens=23, stream=True, stream_options={"include_usage": True})
    async with client() as c:
        whole = await c.chat("Hello", max_tokens=23)
        chunks = await c.stream("/v1/chat/completions", body)
    choice = whole["choices"][0]
    assert (choice["finish_reason"], whole["usage"]["completion_tokens"]) == ("length", 23)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = [part["choices"][0]["delta"]["content"] for part in chunks[1:-1]]
    assert (len(text), "".join(text)) == (23, choice["message"]["content"])
    reasons = [part["choices"][0]["finish_reason"] for part in chunks[:-1]]
    assert reasons == [None] * 23 + ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert {part["id"] for part in chunks} == {chunks[0]["id"]}


async def test_chat_without_limit_ends_by_itself() -> None:
    """Without max_tokens a chat ends where its answer does, a completion after 16 tokens."""
    async with client() as c:
        chat = await c.chat("Hello", max_tokens=None)
        completion = await c.complete("Hello", max_tokens=None)
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert 32 <= chat["usage"]["completion_tokens"] < 256
    assert completion["usage"]["completion_tokens"] == 16


async def test_completion_of_several_prompts_and_choices() -> None:
    """Choices are numbered over all prompts; each prompt is counted once."""
    async with client() as c:
        answer = await c.complete([IDS, IDS[:20]], n=2, max_tokens=3, return_token_ids=True)
        body = {"model": "demo", "prompt": [IDS, IDS[:20]], "n": 2, "max_tokens": 3}
        chunks = await c.stream("/v1/completions", {**body, "stream": True})
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["prompt_token_ids"] for choice in choices] == [IDS, IDS, IDS[:20], IDS[:20]]
    assert answer["usage"]["prompt_tokens"] == 90
    assert answer["usage"]["completion_tokens"] == 12
    for choice in choices:
        parts = [part["choices"][0] for part in chunks]
        texts = [part["text"] for part in parts if part["index"] == choice["index"]]
        assert "".join(texts) == choice["text"]


async def test_stop_text_ends_an_answer_before_it() -> None:
    """What comes from the stop text on is neither sent nor generated."""
    async with client() as c:
        whole = (await c.complete(IDS, max_tokens=40))["choices"][0]["text"]
        word = whole.split()[5]
        answer = await c.complete(IDS, max_tokens=40, stop=["never said", word])
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", word)
    assert choice["text"] == whole[: whole.index(word)]
    assert answer["usage"]["completion_tokens"] < 40


async def test_subscriber_and_replay_see_the_same_batches() -> None:
    """Batches come live and again on demand, numbered from 0, in vLLM's shape."""
    async with client(topic="kv@demo") as c:
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as sub:
            sub.subscribe(b"kv@demo")
            sub.connect(str(c.running.sources.events))
            live: list[list[bytes]] = []
            sent = 0
            while not live:  # a subscription takes effect some time after it is made
                await c.complete([sent + i for i in range(40)], max_tokens=10)
                sent += 1
                if await sub.poll(50):
                    live.append(await sub.recv_multipart())
        batches = await c.replay()
        late = await c.replay(len(batches) - 1)
        beyond = await c.replay(10_000)
    topic, number, payload = live[0]
    assert (topic, len(number)) == (b"kv@demo", 8)
    assert batches[int.from_bytes(number, "big")][1] == msgpack.unpackb(payload)
    assert [number for number, _ in batches] == list(range(len(batches)))
    assert (late, beyond) == (batches[-1:], [])
    timestamp, events, rank = batches[0][1]
    assert isinstance(timestamp, float)
    assert rank == 0
    (stored,) = events
    assert list(stored) == STORED_KEYS
    assert stored["token_ids"] == list(range(32))
    assert stored["parent_block_hash"] is None


async def test_old_format_is_written_as_arrays() -> None:
    """With event_format "array" events are arrays, tag first, and replays carry no topic."""
    async with client(event_format="array", topic="t") as c:
        await c.complete(IDS[:20])
        ((number, (_, events, _)),) = await c.replay()
    assert number == 0
    ((tag, hashes, parent, tokens, size, lora, medium, name, extra, group),) = events
    assert (tag, parent, tokens, size) == ("BlockStored", None, IDS[:16], SIZE)
    assert len(hashes) == 1
    assert (lora, medium, name, extra, group) == (None, "GPU", None, [None], 0)


async def test_replay_keeps_the_last_batches_and_survives_nonsense() -> None:
    """Only the last batches are kept; a request that is none is ignored."""
    async with client(replay_batches=3) as c:
        for start in range(5):
            await c.complete(IDS[start : start + 16])
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.connect(str(c.running.sources.replay))
            await dealer.send_multipart([b"no delimiter"])
            await dealer.send_multipart([b"", b"short"])
        batches = await c.replay()
    assert [number for number, _ in batches] == [2, 3, 4]


async def test_generated_blocks_are_announced_when_computed() -> None:
    """A block that an answer fills is stored with its parent; the last token never counts."""
    async with client() as c:
        answer = await c.complete(IDS[:20], max_tokens=13, return_token_ids=True)
        assert len(await c.events()) == 2
        await c.complete(IDS[:20], max_tokens=12)
        first, second, *rest = await c.events()
    said = answer["choices"][0]["token_ids"]
    assert second["parent_block_hash"] == first["block_hashes"][0]
    assert second["token_ids"] == [*IDS[16:20], *said[:12]]
    assert rest == []


async def test_full_cache_evicts_least_recent_tail_first() -> None:
    """Removals, one hash each, precede the store that caused them; tails go before heads."""
    async with client(num_blocks=8) as c:
        await c.complete(IDS[:64])
        await c.complete(IDS[1:65])
        first, removed, second = await c.events()
    assert removed["block_hashes"] == first["block_hashes"][-1:]
    assert list(removed) == ["type", "block_hashes", "medium", "group_idx"]
    assert second["token_ids"] == IDS[1:65]


async def test_reset_is_announced_with_the_next_step() -> None:
    """A reset forgets at once; its event waits for a step, even one that stores nothing."""
    async with client() as c:
        await c.complete(IDS)
        assert await c.post("/reset_prefix_cache", {}) == (200, {"success": True})
        assert len(await c.events()) == 1
        assert cached(await c.complete([1, 2, 3])) == 0
        assert (await c.events())[1:] == [{"type": "AllBlocksCleared"}]
        assert cached(await c.complete(IDS)) == 0


async def test_client_that_leaves_frees_its_blocks() -> None:
    """While a request runs a reset is refused; when its client leaves, its blocks are free."""
    async with client(decode_step_ms=200.0, time_scale=1.0) as c:
        body = {"model": "demo", "prompt": IDS, "max_tokens": 1_000, "stream": True}
        async with c.session.post(c.running.url + "/v1/completions", json=body) as answer:
            await answer.content.readline()
            assert await c.metric("vllm:num_requests_running") == 1
            assert 0 < await c.metric("vllm:kv_cache_usage_perc") < 0.01
            assert await c.post("/reset_prefix_cache", {}) == (200, {"success": False})
            answer.close()
        await c.until("vllm:num_requests_running", 0)
        assert await c.metric("vllm:kv_cache_usage_perc") == 0
        assert await c.post("/reset_prefix_cache", {}) == (200, {"success": True})


async def test_concurrent_equal_prompts_share_blocks() -> None:
    """Of two equal prompts in one step the second uses what the first registered."""
    async with client() as c:
        answer = await c.complete([IDS, IDS], max_tokens=2)
        both = await asyncio.gather(c.complete(IDS[1:]), c.complete(IDS[1:]))
        events = await c.events()
    assert cached(answer) == 64
    assert sorted(map(cached, both)) == [0, 64]
    hashes = [engine_hash for event in events for engine_hash in event["block_hashes"]]
    assert len(hashes) == len(set(hashes)) == 8


async def test_crowded_cache_preempts_and_finishes_all() -> None:
    """When blocks run out the youngest gives way, and everybody is served in the end."""
    async with client(num_blocks=8, max_num_batched_tokens=32) as c:
        prompts = [[start + i for i in range(30)] for start in range(4)]
        answers = await asyncio.gather(*(c.complete(p, max_tokens=60) for p in prompts))
        assert await c.metric("vllm:num_preemptions_total") > 0
        assert await c.metric("vllm:kv_cache_usage_perc") == 0
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [60] * 4


async def test_metrics_have_the_names_of_vllm() -> None:
    """Every number that a router reads is there, counted in tokens where vLLM does."""
    async with client() as c:
        await c.complete(IDS, max_tokens=5)
        await c.complete(IDS, max_tokens=5)
        values = {
            name: await c.metric(f"vllm:{name}")
            for name in (
                *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
                *("prefix_cache_queries_total", "prefix_cache_hits_total"),
                *("prompt_tokens_total", "generation_tokens_total"),
                *("time_to_first_token_seconds_count", "cache_config_info"),
            )
        }
        async with c.session.get(c.running.url + "/metrics") as answer:
            page = await answer.text()
    assert list(values.values()) == [0, 0, 0, 140, 64, 140, 10, 2, 1]
    assert 'request_success_total{engine="0",finished_reason="length",model_name="demo"} 2' in page
    assert 'block_size="16"' in page
    assert 'num_gpu_blocks="4096"' in page


async def test_tokenize_agrees_with_what_is_computed() -> None:
    """/tokenize gives the ids that the same request is computed from, /detokenize the text."""
    async with client() as c:
        said = chat_body("How are you?")
        chat = await c.chat("How are you?", return_token_ids=True)
        _, tokens = await c.post("/tokenize", said)
        _, text_tokens = await c.post("/tokenize", {"model": "demo", "prompt": "How are you?"})
        _, text = await c.post("/detokenize", {"model": "demo", "tokens": text_tokens["tokens"]})
    assert tokens["tokens"] == chat["prompt_token_ids"]
    assert tokens["count"] == len(tokens["tokens"])
    assert text == {"prompt": "How are you?"}


async def test_engine_describes_itself() -> None:
    """Models, version, health and the place of its events; a context fits into the cache."""
    async with client(num_blocks=8) as c:
        found = {}
        for path in ("/v1/models", "/version", "/kv_event_sources"):
            async with c.session.get(c.running.url + path) as answer:
                found[path] = await answer.json()
        async with c.session.get(c.running.url + "/health") as answer:
            assert answer.status == 200
    (model,) = found["/v1/models"]["data"]
    assert (model["id"], model["max_model_len"]) == ("demo", 7 * SIZE)
    assert found["/version"] == {"version": "0.32.0"}
    source = found["/kv_event_sources"]["0"]
    assert source["endpoint"] == c.running.sources.events
    assert source["replay_endpoint"] == c.running.sources.replay


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat/completions", b"{", 400),
        ("chat/completions", b"[1]", 400),
        ("chat/completions", {"model": "other", "messages": MESSAGES}, 404),
        ("chat/completions", {"model": 5, "messages": MESSAGES}, 400),
        ("chat/completions", {"model": "demo"}, 400),
        ("chat/completions", {"model": "demo", "messages": []}, 400),
        ("chat/completions", {"messages": MESSAGES, "stream_options": {}}, 400),
        ("chat/completions", {"messages": MESSAGES, "stream": "yes"}, 400),
        ("chat/completions", {"messages": MESSAGES, "stream": True, "stream_options": 1}, 400),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 0}, 400),
        ("chat/completions", {"messages": MESSAGES, "n": 1_000}, 400),
        ("chat/completions", {"messages": MESSAGES, "stop": 5}, 400),
        ("chat/completions", {"messages": MESSAGES, "stop": ["a"] * 17}, 400),
        ("completions", {"model": "demo"}, 400),
        ("completions", {"prompt": []}, 400),
        ("completions", {"prompt": [10**9]}, 400),
        ("completions", {"prompt": [1] * 200}, 400),
        ("completions", {"prompt": [1] * 50, "max_tokens": 100}, 400),
        ("embeddings", {}, 404),
    ],
)
async def test_bad_requests_get_errors_as_of_vllm(path: str, body: Any, status: int) -> None:
    """What cannot be served is refused in the OpenAI error shape, and nothing is left behind."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with client(num_blocks=8) as c:
        async with c.session.post(f"{c.running.url}/v1/{path}", data=data) as answer:
            error = (await answer.json())["error"]
            assert answer.status == status
        assert await c.metric("vllm:num_requests_running") == 0
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == status


async def test_too_large_body_is_refused() -> None:
    """A body over the limit gets 413."""
    body = io.BytesIO(b" " * (limits.BODY_BYTES_MAX + 1))
    async with client() as c, c.session.post(c.running.url + "/tokenize", data=body) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == 413


async def test_long_prompt_is_tokenized_and_cached() -> None:
    """A text that is tokenized off the loop gives the same tokens each time."""
    text = "a long story about a river " * 1_000
    async with client() as c:
        assert cached(await c.complete(text)) == 0
        again = await c.complete(text)
    assert cached(again) == (again["usage"]["prompt_tokens"] - 1) // SIZE * SIZE


async def test_streams_carry_token_ids_on_demand() -> None:
    """With return_token_ids the first chunk has the prompt's, each other one its token's."""
    async with client() as c:
        body = {"prompt": IDS, "max_tokens": 3, "stream": True, "return_token_ids": True}
        parts = await c.stream("/v1/completions", body)
        chat = await c.stream("/v1/chat/completions", chat_body("hi", **{**body, "prompt": None}))
        whole = await c.chat("hi", max_tokens=3, return_token_ids=True)
    choices = [part["choices"][0] for part in parts]
    assert choices[0]["prompt_token_ids"] == IDS
    assert [len(choice["token_ids"]) for choice in choices] == [1, 1, 1]
    assert chat[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    said = [part["choices"][0]["token_ids"][0] for part in chat[1:]]
    assert said == whole["choices"][0]["token_ids"]


async def test_reset_is_served_in_dev_mode_only() -> None:
    """Without dev_mode there is no reset."""
    async with client(dev_mode=False) as c:
        status, _ = await c.post("/reset_prefix_cache", {})
        assert status == 404


async def test_detokenize_refuses_what_is_no_token() -> None:
    """Ids outside the vocabulary have no text; what is no id is a bad request."""
    async with client() as c:
        assert await c.post("/detokenize", {"tokens": [10**9]}) == (200, {"prompt": ""})
        for tokens in ([-1], ["1"], [True], None):
            status, _ = await c.post("/detokenize", {"tokens": tokens})
            assert status == 400


async def test_engine_without_events_serves_all_the_same() -> None:
    """With events switched off there is no source, and requests are answered and cached."""
    async with client(events=None, replay=None) as c:
        await c.complete(IDS)
        assert cached(await c.complete(IDS)) == 64
        async with c.session.get(c.running.url + "/kv_event_sources") as answer:
            assert await answer.json() == {}


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"events": "tcp://nonsense"}, {"events": "tcp://192.0.2.1:1"}],
)
async def test_bad_configuration_is_named(changes: dict[str, Any]) -> None:
    """A model that is not there, or an address that cannot be bound, is a fault of a setting."""
    with pytest.raises(ConfigError, match=r"engine\."):
        async with client(**changes):
            pass


async def test_engine_needs_a_model() -> None:
    """Without models there is nothing to serve."""
    with pytest.raises(ConfigError, match="models"):
        async with engine(Settings()):
            pass


async def test_taken_port_is_a_configuration_error() -> None:
    """A second engine on the same addresses is refused, by the address."""
    async with client() as c:
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
            async with client(events=c.running.sources.events):
                pass

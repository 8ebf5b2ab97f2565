"""A real vLLM and the simulated engine side by side: messages, responses, tokens.

Both are sent the same requests in the same order. Their answers must have the same shape, event by
event, and count the same tokens, cached ones too; the prompts of responses must have the token ids
that our renderer gives. Exits 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml
from rich.console import Console

from kvatlas.cli.processes import free_port
from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.prompt import RESPONSES_PATH, PromptBuilder
from kvatlas.common.settings import ModelSettings
from tests.engine.fleet import (
    BLOCK_SIZE,
    ENGINE_START_S,
    MAX_MODEL_LEN,
    SERVICE_START_S,
    Engine,
    await_ok,
    child,
    vllm_command,
    vllm_environment,
)

NAME = "tiny"
BLOCKS = 64
SYSTEM = "You answer questions about the canals of the old town. " * 3
USER = {"role": "user", "content": "Which one is the deepest?"}
SCHEMA = {"type": "object", "properties": {"canal": {"type": "string"}}}
FUNCTION = {"name": "depth", "description": "How deep it is.", "parameters": SCHEMA}
CALL = {"type": "function_call", "call_id": "c1", "name": "depth", "arguments": '{"canal": "x"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "3 m"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "H"}]}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A."}]}
USED = {"type": "tool_use", "id": "c1", "name": "depth", "input": {"canal": "x"}}
GIVEN = {"type": "tool_result", "tool_use_id": "c1", "content": "3 m"}

INPUTS: list[Any] = [
    [USER, SAID, USER],
    [USER, CALL, RESULT],
    [USER, THOUGHT, SAID, CALL, {**CALL, "call_id": "c2"}, RESULT],
    [USER, SAID, THOUGHT, CALL, RESULT, SAID, USER],
    [USER, SAID, SAID, {"type": "reasoning", "summary": []}, USER],
    [{"role": "developer", "content": "Be brief."}, USER],
    [USER, {**RESULT, "output": [{"type": "input_text", "text": "3 m"}]}],
]
"""What responses are asked for; each with functions on offer and without."""


def message(*more: Any, **members: Any) -> dict[str, Any]:
    """Write a message's request."""
    said = {"system": SYSTEM, "messages": [USER, *more]}
    return {"model": NAME, "max_tokens": 4, "temperature": 0.0, **said, **members}


def response(given: Any, **members: Any) -> dict[str, Any]:
    """Write a response's request."""
    asked = {"instructions": SYSTEM, "input": given}
    return {"model": NAME, "max_output_tokens": 4, "temperature": 0.0, **asked, **members}


def requests() -> Iterator[tuple[str, Any]]:
    """List paths and bodies, in the order in which they fill the caches."""
    tool = {"name": "depth", "description": "How deep it is.", "input_schema": SCHEMA}
    turn = [
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, USED]},
        {"role": "user", "content": [GIVEN, {"type": "text", "text": "And now?"}]},
    ]
    for body in (message(), message(tools=[tool]), message(*turn, tools=[tool])):
        for is_stream in (False, True):
            yield "/v1/messages", {**body, "stream": is_stream}
        yield "/v1/messages/count_tokens", {k: v for k, v in body.items() if k != "max_tokens"}
    functions = [{"type": "function", **FUNCTION}]
    for given in ("Which one is the deepest?", *INPUTS):
        for members in ({}, {"tools": functions}, {"tools": functions, "stream": True}):
            yield RESPONSES_PATH, response(given, **members)
    yield RESPONSES_PATH, response("x", request_id="resp_first")
    for is_stream in (False, True):
        yield RESPONSES_PATH, response("y", previous_response_id="resp_first", stream=is_stream)
    yield "/tokenize", {"model": NAME, "prompt": SYSTEM}
    yield "/tokenize", {"model": NAME, "messages": [USER]}
    yield "/detokenize", {"model": NAME, "tokens": [300, 301, 10**8]}


def faults() -> Iterator[tuple[str, Any]]:
    """List requests that are refused."""
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        yield path, {**message(), "model": "no such one"}
        yield path, {"model": NAME}
    yield "/v1/messages", message(max_tokens=0)
    yield "/v1/messages", message(max_tokens=50_000)
    yield "/v1/messages", message(max_tokens=50_000, stream=True)
    yield RESPONSES_PATH, response("x", model="no such one")
    yield RESPONSES_PATH, {"model": NAME}
    yield RESPONSES_PATH, response("x", max_output_tokens=0)
    yield RESPONSES_PATH, response("x", max_output_tokens=50_000)
    yield RESPONSES_PATH, response("x", previous_response_id="resp_of_nobody")
    yield "/tokenize", {"model": "no such one", "prompt": "x"}
    yield "/detokenize", {"model": NAME, "tokens": [-1]}


def shape(value: Any) -> Any:
    """Reduce a value to its names and types, a list to its different shapes."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        shapes = [shape(each) for each in value]
        return [each for at, each in enumerate(shapes) if each not in shapes[:at]]
    return "number" if type(value) in (int, float) else type(value).__name__


def usages(value: Any) -> Iterator[Any]:
    """Find what is counted of tokens."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name in ("usage", "input_tokens", "count", "tokens", "stop_reason", "status"):
                yield name, each
            else:
                yield from usages(each)
    elif isinstance(value, list):
        for each in value:
            yield from usages(each)


def counts(body: Any, content: Any) -> list[Any]:
    """Find all that is counted, unless what an engine has said itself is part of the prompt."""
    return [] if "previous_response_id" in body else list(usages(content))


def events(text: str) -> list[tuple[str, Any]]:
    """Read a stream's named events."""
    told = []
    for event in text.split("\n\n")[:-1]:
        name, data = event.strip().split("\n")
        told.append((name, json.loads(data.removeprefix("data: "))))
    return told


@dataclass
class Judge:
    """Send to both, and remember what differs."""

    real: str
    simulated: str
    differences: list[str] = field(default_factory=list)
    compared: int = 0

    def compare(self, path: str, body: Any) -> None:
        """Compare statuses, types of content, shapes and counts."""
        one, other = (self._read(url, path, body) for url in (self.real, self.simulated))
        self.note(path, body, one, other)

    def compare_fault(self, path: str, body: Any) -> None:
        """Compare statuses and names of members: words are vLLM's own."""
        answers = [httpx2.post(url + path, json=body) for url in (self.real, self.simulated)]
        one, other = ((a.status_code, sorted(a.json()), sorted(a.json()["error"])) for a in answers)
        self.note(path, body, one, other)

    def _read(self, url: str, path: str, body: Any) -> Any:
        answer = httpx2.post(url + path, json=body, timeout=60.0)
        head = (answer.status_code, answer.headers["content-type"])
        if not body.get("stream"):
            content = answer.json()
            return head, shape(content), counts(body, content)
        told = events(answer.text)
        shapes = [(name, shape(data)) for name, data in told]
        different = [each for at, each in enumerate(shapes) if at == 0 or each != shapes[at - 1]]
        return head, different, counts(body, [data for _, data in told])

    def note(self, path: str, body: Any, one: Any, other: Any) -> None:
        """Count a comparison, and remember where the two first part."""
        self.compared += 1
        if one != other:
            words, others = (repr(each) for each in (one, other))
            parts = (
                at for at, pair in enumerate(zip(words, others, strict=False)) if len({*pair}) > 1
            )
            at = max(0, next(parts, 0) - 200)
            shown = f"  vLLM {words[at : at + 600]}\n  ours {others[at : at + 600]}"
            self.differences.append(f"{path} {json.dumps(body)}\n{shown}")


def compare_ids(url: str, builder: PromptBuilder, judge: Judge) -> None:
    """Compare the token ids of responses' prompts, which vLLM shows where it is asked to."""
    functions = [{"type": "function", **FUNCTION}]
    choices: list[dict[str, Any]] = [
        {},
        {"tools": functions, "tool_choice": "required"},
        {"tools": functions, "tool_choice": {"type": "function", "name": "depth"}},
        {"reasoning": {"effort": "none"}},
        {"reasoning": {"effort": "high"}, "chat_template_kwargs": {"enable_thinking": False}},
    ]
    for given in ("Which?", *INPUTS):
        for members in choices:
            body = response(given, **members)
            shown = {**body, "enable_response_messages": True}
            answer = httpx2.post(url + RESPONSES_PATH, json=shown, timeout=60.0).json()
            theirs = answer["input_messages"][0]["tokens"]
            ours: list[Any]
            try:
                ours = list(builder.tokenize(builder.prepare(RESPONSES_PATH, body)).sequences[0])
            except PromptUnavailable as error:
                ours = [error.reason]
            judge.note("token ids", body, theirs, ours)


@contextlib.contextmanager
def engines(vllm: str, model: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run both until the context ends; give their URLs."""
    ports = [free_port() for _ in range(4)]
    engine = Engine(ports[0], f"tcp://127.0.0.1:{ports[1]}", f"tcp://127.0.0.1:{ports[2]}")
    options = {
        "port": ports[3],
        "events": None,
        "replay": None,
        "block_size": BLOCK_SIZE,
        "num_blocks": BLOCKS,
        "max_model_len": MAX_MODEL_LEN,
        "time_scale": 1_000.0,
        "store_responses": True,
    }
    named = {"name": NAME, "tokenizer": str(model), "max_model_len": MAX_MODEL_LEN}
    config = folder / "engine.yaml"
    config.write_text(yaml.safe_dump({"models": [named], "engine": options}))
    ours = [sys.executable, "-m", "kvatlas.cli.main", "engine", "--config", str(config)]
    env = {**vllm_environment(), "VLLM_ENABLE_RESPONSES_API_STORE": "1"}
    real, simulated = engine.url, f"http://127.0.0.1:{ports[3]}"
    with (
        child(vllm_command(vllm, model, engine, BLOCKS), folder / "vllm.log", env) as theirs,
        child(ours, folder / "simulated.log", dict(os.environ)) as process,
    ):
        await_ok(f"{real}/health", theirs, ENGINE_START_S)
        await_ok(f"{simulated}/health", process, SERVICE_START_S)
        yield real, simulated


def main() -> int:
    """Compare; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kva-paths-"))
    settings = ModelSettings(name=NAME, tokenizer=str(options.model), max_model_len=MAX_MODEL_LEN)
    with engines(options.vllm, options.model, folder) as (real, simulated):
        judge = Judge(real, simulated)
        for path, body in requests():
            judge.compare(path, body)
        for path, body in faults():
            judge.compare_fault(path, body)
        compare_ids(real, PromptBuilder.load(settings), judge)
    console = Console(highlight=False)
    for difference in judge.differences:
        console.print(difference, markup=False)
    console.print(f"paths: {judge.compared} compared, {len(judge.differences)} differ")
    return 1 if judge.differences else 0


if __name__ == "__main__":
    sys.exit(main())

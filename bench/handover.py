"""What token handover saves an engine: CPU time of a real vLLM's API server per request.

    python bench/handover.py --url http://127.0.0.1:8000 --pid PID --tokenizer FOLDER

PID is that of `vllm serve`; its engine core, a process of its own, is not counted. Without
arguments it says so and does nothing. `make test-engine` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from kvatlas.common.prompt import CHAT_PATH, PromptBuilder
from kvatlas.common.settings import ModelSettings
from kvatlas.router import handover
from kvatlas.router.body import add

REQUESTS = 150
PROMPT_TOKENS = 1_500
ROUNDS = 3


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--tokenizer", type=Path)
    options = parser.parse_args()
    if not (options.url and options.pid and options.tokenizer):
        print("needs a running vLLM: --url, --pid and --tokenizer; make test-engine runs it")
        return 0
    builder = PromptBuilder.load(ModelSettings(name="bench", tokenizer=str(options.tokenizer)))
    name = _served(options.url)
    long, ids = _chat(builder, name)
    short = _body(name, "hello")
    kinds = {
        "rendered by the engine": long,
        "token ids handed over": add(long, handover.MEMBER, handover.params(ids)),
        "one word": short,
    }
    # The best of several rounds, taken in turns: other work on the machine only adds.
    costs = dict.fromkeys(kinds, float("inf"))
    for _ in range(ROUNDS):
        for kind, body in kinds.items():
            costs[kind] = min(costs[kind], _cost_ms(options.url, options.pid, body))
    Console().print(_table(costs, len(ids)))
    return 0


def _table(costs: dict[str, float], tokens: int) -> Table:
    rendered, handed, word = costs.values()
    table = Table(f"API server of vLLM, chat of {tokens:,} tokens", "CPU ms per request")
    for kind, cost in costs.items():
        table.add_row(kind, f"{cost:.2f}")
    share = (rendered - handed) / max(rendered - word, 1e-9)
    table.add_row("saved of what the prompt costs", f"{share:.0%}")
    return table


def _served(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models") as reply:  # noqa: S310 - given by the caller
        name: str = json.load(reply)["data"][0]["id"]
    return name


def _body(model: str, text: str) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 1,
        "temperature": 0,
    }
    return orjson.dumps(body)


def _chat(builder: PromptBuilder, model: str) -> tuple[bytes, list[int]]:
    """Make a chat of about so many tokens."""
    words = ("block", "cache", "prefix", "router", "engine", "token", "epoch", "index", "holder")
    text: list[str] = []
    ids: list[int] = []
    while len(ids) < PROMPT_TOKENS:
        text += [words[(len(text) + i * i) % len(words)] for i in range(20)]
        body = _body(model, " ".join(text))
        prompt = builder.tokenize(builder.prepare(CHAT_PATH, orjson.loads(body)))
        ids = list(prompt.sequences[0])
    return body, ids


def _cost_ms(url: str, pid: int, body: bytes) -> float:
    request = urllib.request.Request(  # noqa: S310 - given by the caller
        url + CHAT_PATH, data=body, headers={"Content-Type": "application/json"}
    )
    before = _cpu_s(pid)
    for _ in range(REQUESTS):
        with urllib.request.urlopen(request) as reply:  # noqa: S310 - given by the caller
            reply.read()
    return (_cpu_s(pid) - before) * 1e3 / REQUESTS


def _cpu_s(pid: int) -> float:
    """Give the CPU time of a process and its threads, without its children's."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())

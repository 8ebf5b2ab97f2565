"""T3, a template that explodes over a certain text: its process is killed, the router goes on."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report, loop_stalls
from tests.fakes.canary import Canary
from tests.fakes.door import Door, chat, demo_template, door, model_folder

TRIGGER = "{% if messages[0].content == 'boom' %}{{% BOMB %}}{% endif %}"
NEVER_ENDS = (
    "{% set t = 'x' * 99999 %}{% for a in t %}{% for b in t %}{% for c in t %}{% endfor %}"
    "{% endfor %}{% endfor %}"
)
EATS_MEMORY = (
    "{% set ns = namespace(x='0123456789abcdef') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)
RECURSES = "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}"
BY_LOAD = {
    "prompt:template_killed",
    "prompt:template_busy",
    "prompt:template_error",
    "prompt:deadline",
}
STALL_MAX_S = 0.1
"""Generous: the loop shares two cores with the bomb."""


def children() -> set[int]:
    """List the processes that this one has started."""
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for file in listed for pid in file.read_text().split()}


def resident_mb() -> float:
    """Tell the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def trapped(bomb: str) -> str:
    """Write a template that is the demo's until it meets a certain text."""
    return TRIGGER.replace("{{% BOMB %}}", bomb) + demo_template()


async def comes_back(place: Door) -> float:
    """Wait until chats are rendered again; give the seconds."""
    began = time.monotonic()
    while (await place.ask(chat("hello " * 20))).fallback is not None:
        assert time.monotonic() - began < 10.0
        await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("bomb", [NEVER_ENDS, EATS_MEMORY, RECURSES], ids=["cpu", "memory", "deep"])
async def test_t3_a_bomb_costs_a_process(
    redis_url: str, canary: Canary, tmp_path: Path, bomb: str
) -> None:
    """200 within the budget, counted; no memory of ours, no stall, nothing left; then as before."""
    folder = model_folder(tmp_path / "model", trapped(bomb))
    before = children()
    async with door(redis_url, canary, model={"tokenizer": str(folder)}) as place:
        processes = children() - before
        assert len(processes) == limits.TEMPLATE_WORKERS
        await comes_back(place)
        memory = resident_mb()
        async with loop_stalls() as stalls:
            seen = [await place.ask(chat("boom", user=canary.text)) for _ in range(6)]
        assert {each.status for each in seen} == {200}
        reasons = {each.fallback for each in seen}
        assert reasons <= BY_LOAD
        assert max(each.seconds for each in seen) < limits.TEMPLATE_RENDER_S + 0.3
        assert max(stalls) < STALL_MAX_S
        assert resident_mb() - memory < 20
        for reason in reasons:
            assert place.fallbacks(str(reason).removeprefix("prompt:")) > 0
        recovered = await comes_back(place)
        assert len(children() - before) <= limits.TEMPLATE_WORKERS
    assert children() == before
    Report(
        "T3",
        f"a text over which a template {'eats' if bomb is EATS_MEMORY else 'computes'} without end",
        f"by load after {1e3 * max(each.seconds for each in seen):.0f} ms at most, process killed",
        [recovered],
    ).tell()


async def test_t3_an_endless_bomb_is_killed(redis_url: str, canary: Canary, tmp_path: Path) -> None:
    """What computes for ever does not outlive its budget: the processes are others afterwards."""
    folder = model_folder(tmp_path / "model", trapped(NEVER_ENDS))
    before = children()
    async with door(redis_url, canary, model={"tokenizer": str(folder)}) as place:
        await comes_back(place)
        processes = children() - before
        while (seen := await place.ask(chat("boom"))).fallback != "prompt:template_killed":
            assert seen.status == 200
        assert processes - children()
        assert place.fallbacks("template_killed") == 1


async def test_t3_a_trusted_template_needs_no_process(
    redis_url: str, canary: Canary, tmp_path: Path
) -> None:
    """The operator vouches by hash, by name of a file, or for all; else two processes run."""
    source = demo_template("{# mine #}")
    folder = model_folder(tmp_path / "model", source)
    file = tmp_path / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    before = children()
    trusts: list[dict[str, Any]] = [
        {"trusted_templates": [hashlib.sha256(source.encode()).hexdigest()]},
        {"trusted_templates": "all"},
        {"chat_template": str(file)},
    ]
    for trust in trusts:
        model = {"tokenizer": str(folder), **trust}
        async with door(redis_url, canary, model=model) as place:
            assert children() == before
            assert (await place.ask(chat("hello " * 20))).fallback is None


async def test_t3_both_ways_give_the_same_prompt(
    redis_url: str, canary: Canary, tmp_path: Path
) -> None:
    """Token counts of a chat with tools, rendered here and in a process, are the same."""
    folder = model_folder(tmp_path / "model", demo_template("{# mine #}"))
    tool = {"type": "function", "function": {"name": "f", "description": "ü \U0001f600 </b>"}}
    body = chat("grüße \U0001f469\u200d\U0001f4bb " * 9, tools=[tool])
    counts = []
    trusts: list[Any] = ["all", []]
    for trust in trusts:
        model = {"tokenizer": str(folder), "trusted_templates": trust}
        async with door(redis_url, canary, model=model) as place:
            await comes_back(place)
            counts.append((await place.ask(body)).headers["x-kvatlas-prompt-tokens"])
    assert counts[0] == counts[1] != "0"

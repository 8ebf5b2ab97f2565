"""E5, a cache is emptied without a word: predictions run over, and the endpoint is doubted."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report, epochs_of
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Options, Scale, chaos_place
from tests.fakes.publisher import CLEARED
from tests.fakes.upstream import Exchange, plain

PAUSE_S = 0.05


@dataclass
class Usage:
    """What engines report of each request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request."""
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        await plain(json.dumps({"id": "x", "choices": [], "usage": usage}).encode())(exchange)


async def test_e5_a_silent_clear_is_noticed_by_its_answers(
    scale: Scale, canary: Canary, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """Wrong for as long as it takes to see it; what the engine says next is right at once."""
    del turn
    if not scale.is_full:
        monkeypatch.setattr(limits, "DOUBT_SPAN_S", 0.5)
    usage = Usage()
    async with chaos_place(scale, canary, Options(answer=usage.answer)) as place:
        engine = place.engines[0]
        ids = place.builder.tokenize(place.builder.prepare("/v1/chat/completions", engine.chat))
        usage.prompt_tokens = len(ids.sequences[0])
        usage.cached_tokens = (await place.ask(engine)).match_tokens
        assert usage.cached_tokens > 0
        for _ in range(2 * limits.DOUBT_ANSWERS_MIN):
            await place.ask(engine)
        assert (
            place.count("kvatlas_router_doubts_total", endpoint=engine.name, outcome="noted") == 0
        )
        usage.cached_tokens = 0
        engine.lose_all()
        began, asked = time.monotonic(), 0
        while not epochs_of(place, engine, "overpredicted"):
            assert (await place.ask(engine)).status == 200
            asked += 1
            assert time.monotonic() - began < 20.0
            await asyncio.sleep(PAUSE_S)
        took_s = time.monotonic() - began
        assert epochs_of(place, place.engines[1], "overpredicted") == 0
        predicted = place.count("kvatlas_router_predicted_hit_tokens_total", endpoint=engine.name)
        actual = place.count("kvatlas_router_actual_hit_tokens_total", endpoint=engine.name)
        assert predicted > actual
        # With its next step a real engine says it after all.
        await engine.publisher.publish(CLEARED)
        await place.recovered(time.monotonic())
    Report(
        "E5",
        "the engine forgets all, sends nothing, reports cached_tokens 0",
        f"doubt and new epoch (`overpredicted`) after {asked} wrong answers",
        [took_s],
        None,
    ).tell()

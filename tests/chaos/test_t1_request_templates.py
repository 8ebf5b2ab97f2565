"""T1, a template in the body: it is never rendered here, and reaches the engine as it was sent."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import chat, door

BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}"
SUM = "{{ 7 * 7777 }}"


@pytest.mark.parametrize(
    "members",
    [
        {"chat_template": BOMB},
        {"chat_template_kwargs": {"chat_template": BOMB}},
        {"chat_template_args": {"chat_template": BOMB}},
        {"chat_template": "", "chat_template_kwargs": {"chat_template": BOMB}},
    ],
)
async def test_t1_templates_of_clients_are_the_engines_business(
    redis_url: str, canary: Canary, members: dict[str, Any]
) -> None:
    """By load, counted, byte for byte what the client sent; a bomb costs nothing."""
    body = chat(canary.text, **members)
    async with door(redis_url, canary) as place:
        seen = await place.ask(body)
        assert (seen.status, seen.fallback) == (200, "prompt:request_template")
        assert seen.seconds < 1.0
        assert place.fallbacks("request_template") == 1
        assert BOMB.encode() in place.engine.requests[0].body
    Report("T1", f"a template in {' and '.join(members)}", "by load, never rendered").tell()


def test_t1_jinja_elsewhere_is_text() -> None:
    """In messages, tools, documents and variables a template is what it says, not what it does."""
    builder = PromptBuilder.load(ModelSettings(name="demo", tokenizer=str(demo_model_path())))
    tool = {"type": "function", "function": {"name": "f", "description": SUM}}
    body = chat(
        SUM, tools=[tool], documents=[{"text": SUM}], chat_template_kwargs={"enable_thinking": SUM}
    )
    (text,) = builder.prepare(CHAT_PATH, body).texts
    assert text.count(SUM) == 2
    assert str(7 * 7777) not in text

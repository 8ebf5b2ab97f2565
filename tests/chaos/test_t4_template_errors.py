"""T4, a template that refuses a chat, or fails: by load, and the engine's own 400 is passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import chat, door, model_folder
from tests.fakes.upstream import plain

REFUSAL = b'{"error": {"message": "roles must alternate", "type": "BadRequestError"}}'


@pytest.mark.parametrize("trust", ["all", []], ids=["here", "apart"])
@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate: ' + messages[0].content) }}",
        "{{ messages[0].nothing.at.all }}",
        "{{ messages[0].content / 2 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
    ids=["raises", "undefined", "type", "escape", "mutates"],
)
async def test_t4_the_engine_says_what_is_wrong(
    redis_url: str, canary: Canary, tmp_path: Path, source: str, trust: str | list[str]
) -> None:
    """The client reads the engine's words; ours, with its text in them, stand nowhere."""
    folder = model_folder(tmp_path / "model", source)
    model = {"tokenizer": str(folder), "trusted_templates": trust}
    refuses = plain(REFUSAL, "400 Bad Request")
    async with door(redis_url, canary, refuses, model) as place:
        seen = await place.ask(chat(canary.text))
        assert (seen.status, seen.body) == (400, REFUSAL)
        assert seen.fallback == "prompt:template_error"
        assert place.fallbacks("template_error") == 1
        assert len(place.engine.requests) == 1
    Report("T4", "a template that raises, or reads what is not there", "by load, its 400").tell()

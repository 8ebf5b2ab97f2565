"""T2, a hostile template file: looked through before it is compiled, told of, and not rendered."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import chat, demo_template, door, model_folder

QUADRATIC = (
    "{% for m in messages %}{% for n in messages %}{% if n.content == m.role %}!{% endif %}"
    "{% endfor %}{{ m.content }}{% endfor %}"
)
DEEPER = (
    "{% for i in range(9) %}{% if i %}{% for j in range(9)|list %}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def loaded(log: io.StringIO) -> dict[str, Any]:
    """Find what was told of the template."""
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (line,) = [line for line in lines if line["event"] == "template.loaded"]
    told: dict[str, Any] = line
    return told


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% for i in range(99) %}{% for j in range(99) %}{% endfor %}{% endfor %}", "nested"),
        (DEEPER, "nested"),
        ("{{ 'a' * 2000000000 }}", "constant"),
        ("{{ 'a' * 9999 * 9999 }}", "constant"),
        ("{{ 'a' | center(2000000000) }}", "constant"),
        ("{{ 10 ** 10 ** 8 }}", "power"),
        ("{{ '%2000000000d' % 1 }}", "format"),
        ("{{ '{:>2000000000}'.format(1) }}", "format"),
        ("{% set a = messages %}" * (limits.TEMPLATE_ASSIGNMENTS_MAX + 1), "assignments"),
        ("x" * (limits.TEMPLATE_CHARS_MAX + 1), "too long"),
    ],
)
async def test_t2_a_bomb_in_a_models_folder_is_not_even_compiled(
    redis_url: str, canary: Canary, tmp_path: Path, source: str, fault: str, *, log: io.StringIO
) -> None:
    """The router starts, says hash and fault without a word of the template, and goes by load."""
    folder = model_folder(tmp_path / "model", source)
    async with door(redis_url, canary, model={"tokenizer": str(folder)}) as place:
        seen = await place.ask(chat(canary.text))
        assert (seen.status, seen.fallback) == (200, "prompt:template_refused")
        assert place.fallbacks("template_refused") == 1
    line = loaded(log)
    assert line["rendered"] == "not"
    assert fault in " ".join(line["faults"])
    assert line["sha256"] == hashlib.sha256(source.encode()).hexdigest()
    assert source not in log.getvalue()
    Report("T2", f"a template with {line['faults'][0]}", "refused at the start, by load").tell()


async def test_t2_a_known_template_is_rendered_here(
    redis_url: str, canary: Canary, log: io.StringIO
) -> None:
    """The hash stands in the log at the start for known ones, too."""
    async with door(redis_url, canary) as place:
        seen = await place.ask(chat(canary.text * 20))
        assert (seen.status, seen.fallback) == (200, None)
    line = loaded(log)
    assert (line["rendered"], line["faults"]) == ("here", [])
    assert line["sha256"] == hashlib.sha256(demo_template().encode()).hexdigest()


async def test_t2_a_quadratic_template_is_told_of_and_has_a_bound(
    redis_url: str, canary: Canary, log: io.StringIO, tmp_path: Path
) -> None:
    """Even one that is trusted renders no more messages than it can afford."""
    folder = model_folder(tmp_path / "model", QUADRATIC)
    model = {"tokenizer": str(folder), "trusted_templates": "all"}
    async with door(redis_url, canary, model=model) as place:
        (told,) = [
            line for line in map(json.loads, log.getvalue().splitlines())
            if line["event"] == "template.costly"
        ]  # fmt: skip
        bound = told["messages_max"]
        assert limits.TEMPLATE_TRIAL_MESSAGES < bound < limits.MESSAGES_MAX
        few = await place.ask(chat(*["a"] * 10))
        many = await place.ask(chat(*["a"] * (bound + 1)))
        assert (few.status, few.fallback) == (200, None)
        assert (many.status, many.fallback) == (200, "prompt:too_many_messages")
    Report("T2", "a quadratic template, trusted", "told of at the start, messages bounded").tell()

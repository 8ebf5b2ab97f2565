"""What templates are looked through for, whom they are trusted from, and what they can afford."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder
from kvatlas.common.prompt.template_cost import affordable_messages
from kvatlas.common.prompt.variables import check_variables_size
from kvatlas.common.settings import ModelSettings, Settings
from kvatlas.common.templating import worker
from kvatlas.common.templating.faults import faults_of
from kvatlas.common.templating.frames import DONE, FAILED, Closed, receive, send
from kvatlas.common.templating.isolated import IsolatedTemplate
from kvatlas.common.templating.sandbox import environment
from kvatlas.common.templating.trust import KNOWN, is_trusted, template_hash
from kvatlas.router.prompts import Prompts
from tests.fakes.door import chat, demo_template, model_folder

MODEL = ModelName("demo")
TEMPLATES = Path(__file__).resolve().parents[1] / "engine" / "templates"


def faults(source: str) -> list[str]:
    """Look through a template."""
    return faults_of(source, environment().parse(source))


@pytest.mark.parametrize(
    "source",
    [
        demo_template(),
        *(path.read_text("utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))),
        "{% for i in range(3) %}{% for m in messages %}{{ i }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for i in range(3) %}{{ i }}{% endfor %}{% endfor %}",
        "{{ ' ' * 4 * depth }}{{ [0] * 4 }}{{ 2 * 1.5 }}{{ '%05d' % 7 }}{{ '{:>12}'.format(1) }}",
        "{{ 'Cutting Knowledge Date: 202312, 100 %' }}{{ 999999 }}{{ none }}{{ true * 4 }}",
    ],
)
def test_templates_in_use_have_no_faults(source: str) -> None:
    """What models need passes."""
    assert faults(source) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{{ 1000001 }}{{ 2 ** 3 }}", ["large constant", "power"]),
        ("{{ -1e7 }}", ["large constant"]),
        ("{{ [0] * 9999 * 9999 }}", ["large constant"]),
        ("{{ '%(x)99999s' % y }}", ["wide format"]),
        ("{{ '%.99999f' % y }}", ["wide format"]),
        (
            "{% for i in range(2)|list %}{% for j in range(2) | list %}{% endfor %}{% endfor %}",
            ["nested ranges"],
        ),
    ],
)
def test_faults_are_named(source: str, found: list[str]) -> None:
    """In a few fixed words, each once."""
    assert faults(source) == found


def test_what_is_too_much_is_named() -> None:
    """A template, or what it assigns, may be too long to be looked through in time."""
    many = "{% set a = messages %}" * (limits.TEMPLATE_ASSIGNMENTS_MAX + 1)
    assert faults(many) == ["too many assignments"]
    assert faults("x" * (limits.TEMPLATE_CHARS_MAX + 1)) == ["too long"]


def test_who_is_trusted() -> None:
    """Known ones, those that are listed, or all."""
    digest = template_hash("{{ x }}")
    assert template_hash(demo_template()) in KNOWN
    assert is_trusted(template_hash(demo_template()), [])
    assert not is_trusted(digest, [])
    assert is_trusted(digest, [digest])
    assert is_trusted(digest, "all")


def test_hashes_are_checked() -> None:
    """What is no SHA-256 in hex is a fault of the configuration."""
    model = {"name": "m", "tokenizer": "demo", "trusted_templates": ["ABC"]}
    with pytest.raises(ConfigError, match="trusted_templates"):
        Settings.model_validate({"models": [model]})


class Costs:
    """A template whose cost grows as it is told, and the clock that shows it."""

    def __init__(self, at_100_s: float, power: int) -> None:
        self.now_s = 0.0
        self._unit_s = at_100_s / 100**power
        self._power = power

    def render(self, body: Mapping[str, Any]) -> None:
        """Let time pass."""
        self.now_s += self._unit_s * len(body["messages"]) ** self._power

    def clock(self) -> float:
        """Tell the time."""
        return self.now_s


@pytest.mark.parametrize(
    ("at_100_s", "power", "messages"),
    [
        (0.000_01, 1, limits.MESSAGES_MAX),
        (0.01, 1, limits.MESSAGES_MAX),
        (0.000_05, 2, limits.MESSAGES_MAX),  # quadratic, and too quick to matter
        (0.001, 2, 707),
        (0.1, 2, 70),
    ],
)
def test_what_a_template_can_afford(at_100_s: float, power: int, messages: int) -> None:
    """All that is allowed where the cost is linear, else what fits into its time."""
    costs = Costs(at_100_s, power)
    assert affordable_messages(costs.render, costs.clock) == messages


def test_a_template_that_cannot_be_tried() -> None:
    """One that refuses the trial is bounded as all are."""

    def refuses(_body: Mapping[str, Any]) -> None:
        raise PromptUnavailable("template_error")

    assert affordable_messages(refuses, lambda: 0.0) == limits.MESSAGES_MAX


@pytest.mark.parametrize(
    "members",
    [
        {"tools": [{"x": "y" * limits.VARIABLES_CHARS_MAX}]},
        {"chat_template_kwargs": dict.fromkeys(map(str, range(200_000)), 1)},
        {"messages": [{"role": "user", "content": "", "reasoning": "y" * 1_000_001}]},
        {"documents": [[[]]] * 200_000},
    ],
)
def test_variables_have_a_bound(members: dict[str, Any]) -> None:
    """Whatever is neither content nor prompt counts, however it is nested."""
    with pytest.raises(PromptUnavailable, match="too_long"):
        check_variables_size({"model": "m", **members})


def test_contents_have_a_bound_of_their_own() -> None:
    """Texts that are prompts do not count here."""
    text = "y" * 2_000_000
    check_variables_size({"messages": [{"role": "user", "content": text}, 1], "prompt": text})
    check_variables_size({"messages": "none"})


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give the two ends of a connection."""
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


def test_frames_are_bounded(ends: tuple[socket.socket, socket.socket]) -> None:
    """One that says it is too long is not read; one from a side that is gone is no frame."""
    ours, theirs = ends
    send(theirs, FAILED, b"12345")
    assert receive(ours, 5) == (FAILED, b"12345")
    send(theirs, DONE, b"123456")
    with pytest.raises(Closed):
        receive(ours, 5)
    theirs.close()
    with pytest.raises(Closed):
        receive(ours, 5)
    with pytest.raises(Closed):
        send(ours, DONE, b"x" * 1_000_000)


def test_a_worker_serves_until_it_is_left(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which variables there are, renders, and says what failed; nothing else ends it."""
    ours, theirs = ends
    # It would bound the CPU time of this process.
    monkeypatch.setattr(worker, "_allow_seconds", lambda _seconds: None)
    send(ours, DONE, b"{{ x }}{{ 1 / y }}")
    for variables in ({"x": "\ud800", "y": 1}, {"x": "", "y": 0}):
        send(ours, DONE, json.dumps(variables, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(Closed):
        worker._serve(theirs)
    assert json.loads(receive(ours, 100)[1]) == ["x", "y"]
    assert receive(ours, 100) == (DONE, "\ud8001.0".encode("utf-8", "surrogatepass"))
    assert receive(ours, 100) == (FAILED, b"")


def test_a_process_has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is empty but for where modules are, and it can open nothing."""
    monkeypatch.setenv("SECRET_OF_TEST", "1")
    template = IsolatedTemplate("{{ x }}")
    try:
        assert template.begin() == frozenset({"x"})
        process = template._workers[0]._process
        assert process is not None
        at = Path(f"/proc/{process.pid}")
        assert "SECRET_OF_TEST" not in (at / "environ").read_text()
        lines = (at / "limits").read_text().splitlines()
        bounds = {line[:26].strip(): line[26:].split()[:2] for line in lines}
        assert bounds["Max open files"] == bounds["Max processes"] == ["0", "0"]
        most = str(limits.TEMPLATE_MEMORY_BYTES_MAX)
        assert bounds["Max address space"] == [most, most]
    finally:
        template.close()
    with pytest.raises(PromptUnavailable, match="template_busy"):
        template.render({"x": 1})


def test_what_json_cannot_say_is_a_template_that_failed(tmp_path: Path) -> None:
    """A value of another kind reaches no process, and the request goes by load."""
    folder = model_folder(tmp_path / "model", demo_template("{{ odd }}"))
    model = ModelSettings.model_validate(
        {
            "name": MODEL,
            "tokenizer": str(folder),
            "default_chat_template_kwargs": {"odd": {1, 2}},
        }
    )
    builder = PromptBuilder.load(model, isolates=True)
    try:
        with pytest.raises(PromptUnavailable, match="template_error"):
            builder.prepare(CHAT_PATH, chat("hello"))
    finally:
        builder.close()


async def test_processes_live_as_long_as_somebody_needs_them(tmp_path: Path) -> None:
    """A configuration that changes takes them over; they end with the last that has them."""
    folder = model_folder(tmp_path / "model", demo_template("{# mine #}"))
    model = ModelSettings(name=MODEL, tokenizer=str(folder))
    first = Prompts([model])
    second = Prompts([model], first)
    first.close()
    timed = await second.token_ids(MODEL, CHAT_PATH, chat("hello"), 10**6)
    assert timed.prompt.sequences
    second.close()
    with pytest.raises(PromptUnavailable, match="template_busy"):
        second.builder(MODEL).prepare(CHAT_PATH, chat("hello"))

"""The probes of a model: few, small, and of our own making."""

from __future__ import annotations

import json
from pathlib import Path

import orjson

from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, PromptBuilder, demo_model_path
from kvatlas.common.prompt.probe_set import probe_set
from kvatlas.common.settings import ModelSettings
from tests.fakes.engines import other_tokenizer


def builder(folder: Path | None = None) -> PromptBuilder:
    """Load a model."""
    return PromptBuilder.load(ModelSettings(name="m", tokenizer=str(folder or demo_model_path())))


def test_there_are_a_dozen_small_ones_with_our_token_ids() -> None:
    """Texts with and without special tokens, chats with system, tools and parts."""
    made = builder()
    probes = probe_set(made, "m")
    assert 8 <= len(probes) <= 12
    assert {probe.kind for probe in probes} == {"text", "chat"}
    assert sum(len(probe.body) for probe in probes) < 8_192
    for probe in probes:
        body = orjson.loads(probe.body)
        assert body["model"] == "m"
        path = CHAT_PATH if probe.kind == "chat" else COMPLETIONS_PATH
        assert tuple(made.tokenize(made.prepare(path, body)).sequences[0]) == probe.token_ids


def test_another_tokenizer_shows_in_texts_and_chats(tmp_path: Path) -> None:
    """One token more is enough."""
    ours = probe_set(builder(), "m")
    theirs = probe_set(builder(other_tokenizer(tmp_path)), "m")
    differing = {a.kind for a, b in zip(ours, theirs, strict=True) if a.token_ids != b.token_ids}
    assert differing == {"text", "chat"}


def test_another_template_shows_in_chats_only(tmp_path: Path) -> None:
    """A blank more is enough."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in demo_model_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    ours, theirs = probe_set(builder(), "m"), probe_set(builder(folder), "m")
    differing = {a.kind for a, b in zip(ours, theirs, strict=True) if a.token_ids != b.token_ids}
    assert differing == {"chat"}


def test_a_model_that_engines_render_by_themselves_is_probed_with_texts(tmp_path: Path) -> None:
    """Its chats are not ours to render."""
    for file in demo_model_path().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))
    assert {probe.kind for probe in probe_set(builder(tmp_path), "m")} == {"text"}

"""Requests with the token ids that a real vLLM 0.32 gave for them: ours are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.prompt import REASONS, PromptBuilder
from kvatlas.common.settings import ModelSettings


def cases(shared: Path, *, accepted: bool) -> list[dict[str, Any]]:
    """Read the requests that the engine accepted, or those that it refused."""
    lines = (shared / "data" / "golden" / "render_qwen3.jsonl").read_text().split("\n")
    return [
        case for case in map(json.loads, filter(None, lines)) if (case["status"] == 200) is accepted
    ]


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    """Load the model that the engine served."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "qwen3"
    if not folder.exists():
        pytest.skip("../shared is not there")
    return PromptBuilder.load(ModelSettings(name="qwen3", tokenizer=str(folder)))


def test_token_ids_are_the_engines(builder: PromptBuilder, shared: Path) -> None:
    """Every request that the engine accepted gives its token ids, one by one."""
    different = []
    accepted = cases(shared, accepted=True)
    for case in accepted:
        prompt = builder.tokenize(builder.prepare(case["path"], case["body"]))
        if [list(sequence) for sequence in prompt.sequences] != case["token_ids"]:
            different.append(case["id"])
    assert len(accepted) > 70
    assert different == []


def test_refused_requests_are_left_to_the_engine(builder: PromptBuilder, shared: Path) -> None:
    """A request that the engine refused is forwarded untouched, so that its error arrives."""
    refused = cases(shared, accepted=False)
    assert refused
    for case in refused:
        with pytest.raises(PromptUnavailable) as caught:
            builder.prepare(case["path"], case["body"])
        assert caught.value.reason in REASONS


def test_salts_are_kept(builder: PromptBuilder, shared: Path) -> None:
    """The salt of a request leaves the tokens as they are and comes out beside them."""
    [case] = [case for case in cases(shared, accepted=True) if "cache_salt" in case["body"]]
    prompt = builder.tokenize(builder.prepare(case["path"], case["body"]))
    assert prompt.cache_salt == case["body"]["cache_salt"]


def test_the_fast_tokenizer_is_in_use(builder: PromptBuilder) -> None:
    """Fastokens reads this tokenizer and agrees with tokenizers on the corpus."""
    assert builder.tokenizer_kind == "fastokens"
    assert builder.eos_token_id == 151_645

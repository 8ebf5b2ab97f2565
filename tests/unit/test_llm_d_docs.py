"""docs/LLM_D.md names every type of plugin and every flag that we know."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvatlas.cli.flag_table import READERS
from kvatlas.common.llm_d.plugin_types import USES
from kvatlas.common.llm_d.schema import FEATURE_GATES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "LLM_D.md").read_text()
NAMES = [*USES, *(f"--{flag}" for flag in READERS), *FEATURE_GATES - {"flowControl"}]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_page_says_what_becomes_of_it(name: str) -> None:
    """Expect it to be there as it is written."""
    assert f"`{name}`" in PAGE

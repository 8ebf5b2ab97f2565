"""What several contract tests stand on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.found import FoundFile


@pytest.fixture
def found(tmp_path: Path) -> FoundFile:
    """Give a file of endpoints, empty at first."""
    file = FoundFile(tmp_path / "endpoints.yaml")
    file.write()
    return file

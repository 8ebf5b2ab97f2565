"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Final

from pydantic import ConfigDict

STRICT: Final = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
"""Unknown settings are faults, values do not change."""

"""The small model that needs no hub: a tokenizer of our own training and a ChatML template."""

from __future__ import annotations

from pathlib import Path


def demo_model_path() -> Path:
    """Give the folder of the demo model, which is installed with the package."""
    return Path(__file__).resolve().parent / "demo_model"

"""Write each tokenizer.json as the engine's transformers builds it; run by vLLM's Python.

usage: export_tokenizers.py FOLDER...

transformers rebuilds parts of some tokenizers from code, so a file may say one thing and the
engine do another: this is the cure that docs/FIDELITY.md names.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer


def main(folders: list[str]) -> None:
    """Load and save every tokenizer."""
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.backend_tokenizer.save(str(Path(folder) / "tokenizer.json"))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Make a tiny random model around the demo tokenizer; run by the Python of the vLLM environment.

usage: make_model.py TOKENIZER_FOLDER MODEL_FOLDER [hybrid]

`hybrid` makes one with sliding windows of 64 tokens in four layers and full attention in two.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

VOCAB_MULTIPLE = 64
POSITIONS = 4_096
WINDOW_TOKENS = 64


def main(tokenizer: Path, folder: Path, *, hybrid: bool = False) -> None:
    """Write configuration, weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, folder / file.name)
    ids = _vocabulary(tokenizer / "tokenizer.json")
    size = (max(ids.values()) // VOCAB_MULTIPLE + 1) * VOCAB_MULTIPLE
    torch.manual_seed(20_261_123)
    common: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "dtype": "bfloat16",
    }
    model: Any
    if hybrid:
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
        config = Gemma3TextConfig(
            **common,
            num_hidden_layers=len(kinds),
            head_dim=32,
            sliding_window=WINDOW_TOKENS,
            layer_types=kinds,
        )
        model = Gemma3ForCausalLM(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, num_hidden_layers=2))
    model.to(torch.bfloat16).save_pretrained(folder)


def _vocabulary(path: Path) -> dict[str, int]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return {**content["model"]["vocab"], **added}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), hybrid="hybrid" in sys.argv[3:])

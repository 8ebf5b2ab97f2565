"""Make a tiny random model around the demo tokenizer, and a LoRA adapter for it.

Run by the Python of the vLLM environment: make_model.py TOKENIZER_FOLDER MODEL_FOLDER [hybrid]
The adapter lies in the folder `lora` inside of the model's. `hybrid` makes one with sliding windows
of 64 tokens in four layers and full attention in two, and no adapter.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

VOCAB_MULTIPLE = 64
POSITIONS = 4_096
WINDOW_TOKENS = 64
RANK = 4
ADAPTED = ("q_proj", "v_proj")


def main(tokenizer: Path, folder: Path, *, hybrid: bool = False) -> None:
    """Write configuration, weights, tokenizer and adapter."""
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
    model = (
        _hybrid(common) if hybrid else LlamaForCausalLM(LlamaConfig(**common, num_hidden_layers=2))
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    if not hybrid:
        _write_adapter(model, folder / "lora")


def _hybrid(common: dict[str, Any]) -> Any:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        **common,
        num_hidden_layers=len(kinds),
        head_dim=32,
        sliding_window=WINDOW_TOKENS,
        layer_types=kinds,
    )
    return Gemma3ForCausalLM(config)


def _write_adapter(model: Any, folder: Path) -> None:
    """Write random low-rank weights for the attention's projections, as peft would."""
    folder.mkdir(exist_ok=True)
    weights = {}
    for name, weight in model.state_dict().items():
        path = name.removesuffix(".weight")
        if not path.endswith(ADAPTED):
            continue
        rows, columns = weight.shape
        prefix = f"base_model.model.{path}"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, columns, dtype=torch.bfloat16)
        weights[f"{prefix}.lora_B.weight"] = torch.randn(rows, RANK, dtype=torch.bfloat16)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(ADAPTED),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _vocabulary(path: Path) -> dict[str, int]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return {**content["model"]["vocab"], **added}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), hybrid="hybrid" in sys.argv[3:])

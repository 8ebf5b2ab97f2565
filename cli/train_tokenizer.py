"""Train the demo model's tokenizer from what the repository itself holds (`make tokenizer`).

The same tree gives the same file: texts are read in order, made-up sentences come from a fixed
seed, and the trainer breaks ties by id.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from kvatlas.common.prompt import demo_model_path

VOCAB_SIZE: Final = 8_192
"""Enough for 3.5 characters per token of English, and half a megabyte as a file."""
SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES: Final = 60_000
_SEED: Final = 8_192
_TEXTS: Final = ("README.md", "docs/**/*.md", *(
    f"{side}/**/*.py" for side in ("common", "indexer", "router", "simulator", "cli", "tests")
))  # fmt: skip


def train(root: Path) -> Tokenizer:
    """Train a byte-level BPE: any text goes in, and comes out of its tokens again.

    Args:
        root: the repository.

    Cost: about 5 s.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_texts(root), trainer)
    return tokenizer


def _texts(root: Path) -> Iterator[str]:
    for pattern in _TEXTS:
        for path in sorted(root.glob(pattern)):
            yield path.read_text(encoding="utf-8")
    yield from _sentences((root / "cli" / "words.txt").read_text(encoding="utf-8").split())


def _sentences(words: list[str]) -> Iterator[str]:
    """Make sentences in which earlier words of the list are more frequent, as in real text."""
    draw = Random(_SEED)  # noqa: S311 - the same sentences every time are what is wanted
    weights = [1 / (rank + 20) for rank in range(len(words))]
    for _ in range(SENTENCES):
        chosen = draw.choices(words, weights, k=draw.randint(4, 18))
        yield f"{' '.join(chosen).capitalize()}{draw.choice('.....?!:')} "


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, without white space, and tokenizer_config.json."""
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32_768,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> int:
    """Train and write into the package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        print("The tokenizer is trained from a clone of the repository.", file=sys.stderr)
        return 1
    folder = demo_model_path()
    write(train(root), folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

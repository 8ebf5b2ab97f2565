"""Special tokens that templates read: from files, and from the class of the engine's tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common.prompt.special_tokens import NAMES, SpecialTokens

END = "<|endoftext|>"
QWEN = {"eos_token": END, "unk_token": END, "pad_token": END}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


# Measured with transformers 5.19: AutoTokenizer on a folder whose files name no special token.
@pytest.mark.parametrize(
    ("tokenizer_class", "model_type", "known"),
    [
        ("PreTrainedTokenizerFast", "llama", {}),
        ("TokenizersBackend", "some_type", {}),
        ("LlamaTokenizerFast", "llama", LLAMA),
        ("LlamaTokenizer", "mistral", {}),
        ("GPT2Tokenizer", "deepseek_v3", {}),
        (None, "llama", {}),
        ("PreTrainedTokenizerFast", "qwen3", {}),
        (None, "qwen3", QWEN),
        ("PreTrainedTokenizerFast", "qwen2", QWEN),
        ("LlamaTokenizer", "qwen2", QWEN),
        ("GPT2TokenizerFast", "gpt2", {"bos_token": END, "eos_token": END, "unk_token": END}),
    ],
)  # fmt: skip
def test_tokens_of_a_class(tokenizer_class: Any, model_type: str, known: dict[str, str]) -> None:
    """The class brings tokens along, and some types of models decide on the class."""
    config = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class}
    tokens = SpecialTokens.read(config, {}, model_type)
    assert (tokens.known, tokens.unknown) == (known, frozenset())


def test_null_takes_a_token_of_the_class_away() -> None:
    """A file's word is final, also when it says that there is no such token."""
    config = {"tokenizer_class": "GemmaTokenizer", "mask_token": None, "bos_token": "<x>"}
    tokens = SpecialTokens.read(config, {}, "gemma2")
    given = {"bos_token": "<x>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    assert tokens.known == given


@pytest.mark.parametrize(
    ("tokenizer_class", "model_type"),
    [("LlamaTokenizer", "some_type"), ("SomeTokenizer", "llama"), (None, None), (7, [])],
)
def test_classes_that_are_not_known(tokenizer_class: Any, model_type: Any) -> None:
    """Then any token that no file mentions may exist, or not."""
    config = {"tokenizer_class": tokenizer_class, "bos_token": "<s>", "unk_token": None}
    tokens = SpecialTokens.read(config, {}, model_type)
    assert tokens.known == {"bos_token": "<s>"}
    assert tokens.unknown == NAMES - {"bos_token", "unk_token"}

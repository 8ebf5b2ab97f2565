"""Special tokens as the engine's tokenizer has them: those of the files, and those of its class.

Templates read them as variables. transformers gives a tokenizer of some classes tokens that no
file mentions, and which class it takes depends on the type of the model, too.
Source: transformers 5.19, measured class by class and type by type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

NAMES: Final = frozenset({
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
})  # fmt: skip
_Tokens = Mapping[str, str]
_END: Final = "<|endoftext|>"
_GENERIC: Final = "TokenizersBackend"
_BY_CLASS: Final[Mapping[str, _Tokens]] = {
    _GENERIC: {},
    "PreTrainedTokenizer": {},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "GPTNeoXTokenizer": {
        "bos_token": _END, "eos_token": _END, "unk_token": _END, "pad_token": "<|padding|>",
    },
    "BertTokenizer": {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
}  # fmt: skip
_TYPES_OF_GENERIC: Final = (
    "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "granite", "hyperclovax",
    "internlm2", "jamba", "minicpm3", "minimax_m2", "mistral", "mixtral", "nemotron", "olmo2",
    "phi3", "phimoe", "step3p5",
)  # fmt: skip
# For these types of models the class that a file names does not count.
_TYPE_DECIDES: Final[Mapping[str, str]] = {
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_moe": "Qwen3_5Tokenizer",
    **dict.fromkeys(_TYPES_OF_GENERIC, _GENERIC),
}
# Types for which it does count, and the class where no file names one.
_TYPE_DEFAULTS: Final[Mapping[str, str]] = {
    "bert": "BertTokenizer",
    "falcon": _GENERIC,
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "llama": _GENERIC,
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "qwen3_next": "Qwen2Tokenizer",
}


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What is known of a tokenizer's special tokens.

    Attributes:
        known: by the name that templates use.
        unknown: names of those that no file mentions, but that the tokenizer's class may have.
    """

    known: Mapping[str, str]
    unknown: frozenset[str] = frozenset()

    @classmethod
    def read(
        cls, config: Mapping[str, Any], older: Mapping[str, Any], model_type: Any
    ) -> SpecialTokens:
        """Read them.

        Args:
            config: tokenizer_config.json; null means that there is no such token.
            older: special_tokens_map.json, which counts where `config` lists no added tokens.
            model_type: of config.json.
        """
        named = dict(config) if "added_tokens_decoder" in config else {**config, **older}
        of_class = _of_class(config.get("tokenizer_class"), model_type)
        extra = named.get("extra_special_tokens")
        tokens = {name: value for name, value in named.items() if name.endswith("_token")}
        tokens |= extra if isinstance(extra, dict) else {}
        known = {name: _content(value) for name, value in ((of_class or {}) | tokens).items()}
        return cls(
            known={name: token for name, token in known.items() if token is not None},
            unknown=NAMES - named.keys() if of_class is None else frozenset(),
        )


def _of_class(name: Any, model_type: Any) -> dict[str, str] | None:
    """Give the tokens that the class brings along; None where the class is not known here."""
    decided = _TYPE_DECIDES.get(str(model_type))
    usual = _TYPE_DEFAULTS.get(str(model_type))
    if decided is None:
        written = name.removesuffix("Fast") if isinstance(name, str) else usual
        generic = not _BY_CLASS.get(written or "", {"": ""})
        decided = written if usual is not None or generic else None
    tokens = _BY_CLASS.get(decided or "")
    return None if tokens is None else dict(tokens)


def _content(value: Any) -> str | None:
    """Read a token, written as a string or as an object with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None

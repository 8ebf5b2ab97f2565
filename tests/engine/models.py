"""Small model folders of many kinds: tokenizers trained on the spot, templates of known families.

The tokenizers stand for the common kinds: byte-level BPE with and without a BOS, SentencePiece's
BPE with byte fallback, Unigram, WordPiece. The templates are written after the public
descriptions of those families. Nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT: Final = Path(__file__).resolve().parents[2]
TEMPLATES: Final = Path(__file__).resolve().parent / "templates"
MAX_MODEL_LEN: Final = 2_048
VOCABULARY: Final = 3_000
_LETTERS = "äöüßéèñçøåαβγδабвгд你好世界東京大阪한국어日本語مرحبا🙂🚀½№"
# GPT-4's and Qwen's way to cut text, and one that cuts digits into threes.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder to be, and the options of its engine.

    Attributes:
        name: of the folder.
        template: file in `templates`.
        train: makes the tokenizer.
        special_tokens: entries of tokenizer_config.json.
        settings: the same options as kvatlas has them.
        flags: options of `vllm launch render`.
        more_templates: by name, for folders with several.
    """

    name: str
    template: str
    train: Callable[[], Tokenizer]
    special_tokens: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    more_templates: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the folder, without weights: a render server reads none."""
        folder.mkdir(parents=True)
        tokenizer = self.train()
        tokenizer.save(str(folder / "tokenizer.json"))
        _dump(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", **self.special_tokens},
        )
        shutil.copyfile(TEMPLATES / self.template, folder / "chat_template.jinja")
        for name, file in self.more_templates.items():
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            shutil.copyfile(TEMPLATES / file, folder / "additional_chat_templates" / name)
        _dump(folder / "config.json", _config(tokenizer.get_vocab_size()))


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": MAX_MODEL_LEN,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",
    }


def _texts() -> Iterator[str]:
    """Give text to train on: our own documents and code, and letters that they lack."""
    for pattern in ("docs/*.md", "common/**/*.py", "router/*.py"):
        for path in sorted(ROOT.glob(pattern)):
            yield path.read_text(encoding="utf-8")
    yield from (_LETTERS, " ".join(_LETTERS)) * 20


def _bpe(specials: list[str | AddedToken], *, metaspace: bool = False) -> Tokenizer:
    """Train BPE, on bytes, or on characters with bytes for those that it does not know."""
    tokenizer = Tokenizer(
        models.BPE(byte_fallback=metaspace, unk_token="<unk>" if metaspace else None)
    )
    alphabet = [] if metaspace else pre_tokenizers.ByteLevel.alphabet()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if metaspace else []
    if metaspace:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*(["<unk>"] if metaspace else []), *bytes_, *specials],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    if bytes_:
        tokenizer = _without_added(tokenizer, set(bytes_))
    if not metaspace:
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _without_added(tokenizer: Tokenizer, names: set[str]) -> Tokenizer:
    """Keep tokens in the vocabulary only: written out in a text they are text."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] not in names
    ]
    return Tokenizer.from_str(json.dumps(content))


def _framed(tokenizer: Tokenizer, form: str) -> None:
    """Make the tokenizer add tokens of its own around a text."""
    names = {part for part in form.split() if part != "$A"}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[(name, tokenizer.token_to_id(name)) for name in sorted(names)]
    )


def _llama3() -> Tokenizer:
    tokenizer = _bpe([
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eot_id|>", "<|python_tag|>",
    ])  # fmt: skip
    _framed(tokenizer, "<|begin_of_text|> $A")
    return tokenizer


def _deepseek() -> Tokenizer:
    tokenizer = _bpe([
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",  # noqa: RUF001 - theirs
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",  # noqa: RUF001 - theirs
    ])  # fmt: skip
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),  # noqa: RUF001 - a range of letters
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    _framed(tokenizer, "<｜begin▁of▁sentence｜> $A")  # noqa: RUF001 - theirs
    return tokenizer


def _mistral() -> Tokenizer:
    tokenizer = _bpe(
        ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"], metaspace=True
    )
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _framed(tokenizer, "<s> $A")
    return tokenizer


def _gemma() -> Tokenizer:
    tokenizer = _bpe(
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"],
        metaspace=True,
    )
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in (2, 3, 4)])
    tokenizer.add_tokens([AddedToken("▁" * n, normalized=False) for n in (2, 3, 4)])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
    ])  # fmt: skip
    _framed(tokenizer, "<bos> $A")
    return tokenizer


def _phi() -> Tokenizer:
    tokenizer = _bpe(["<s>", "<|endoftext|>"], metaspace=True)
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = None  # none is what these files have
    names = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>")
    tokenizer.add_special_tokens(
        [AddedToken(name, rstrip=True, normalized=False, special=True) for name in names]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Replace(Regex(r" {2,}"), " "),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>", "<image>"],
        unk_token="<unk>",  # noqa: S106 - no password
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    _framed(tokenizer, "$A </s>")
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.decoder = decoders.WordPiece()
    _framed(tokenizer, "[CLS] $A [SEP]")
    return tokenizer


def _demo() -> Tokenizer:
    return Tokenizer.from_file(str(ROOT / "common/prompt/demo_model/tokenizer.json"))


_BOS_EOS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MODELS: Final = (
    Model(
        "llama3",
        "llama3.jinja",
        _llama3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        settings={"default_chat_template_kwargs": {"tools_in_user_message": False}},
        flags=("--default-chat-template-kwargs", '{"tools_in_user_message": false}'),
    ),
    Model("mistral", "mistral.jinja", _mistral, {**_BOS_EOS, "tokenizer_class": "LlamaTokenizer"}),
    Model(
        "gemma",
        "gemma.jinja",
        _gemma,
        {
            "tokenizer_class": "GemmaTokenizer",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
    ),
    Model(
        "deepseek",
        "deepseek.jinja",
        _deepseek,
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},  # noqa: RUF001 - theirs
    ),
    Model(
        "phi",
        "phi.jinja",
        _phi,
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"},
        settings={"exclude_tools_when_tool_choice_none": True},
        flags=("--exclude-tools-when-tool-choice-none",),
    ),
    Model(
        "unigram",
        "parts.jinja",
        _unigram,
        {
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "image_token": "<image>",
            "extra_special_tokens": {"boi_token": "<image>"},
        },
    ),
    Model(
        "wordpiece",
        "plain.jinja",
        _wordpiece,
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"},
        settings={"default_chat_template_kwargs": {"custom": "d", "enable_thinking": None}},
        flags=("--default-chat-template-kwargs", '{"custom": "d", "enable_thinking": null}'),
        more_templates={"tool_use.jinja": "plain_tools.jinja"},
    ),
    Model("printed", "printed.jinja", _demo, {"eos_token": "<|im_end|>"}),
)

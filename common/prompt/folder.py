"""Reading a model folder: tokenizer.json, tokenizer_config.json and what may stand beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt.template import ChatTemplate

_SPECIAL_TOKENS: Final = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
# The engine renders these with code of its own whatever template they carry.
_OWN_RENDERERS: Final = frozenset({
    "gpt_oss", "deepseek_v32", "deepseek_v4", "kimi_k3", "inkling",
    "cohere", "cohere2", "cohere2_moe",
})  # fmt: skip
_MISTRAL_TOKENIZER: Final = "tekken.json"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the files of a folder say.

    Attributes:
        tokenizer_json: content of tokenizer.json.
        templates: Jinja sources by name, "default" being the usual one.
        special_tokens: bos_token and the like, as far as there are any.
        vocab_size: of the model, which may be larger than the tokenizer's; 0 if unknown.
        has_own_renderer: whether the engine renders chats of this model without a template.
    """

    tokenizer_json: str = field(repr=False)
    templates: Mapping[str, str] = field(repr=False)
    special_tokens: Mapping[str, str]
    vocab_size: int
    has_own_renderer: bool

    @classmethod
    def read(cls, folder: Path) -> ModelFolder:
        """Read a folder.

        Raises:
            ConfigError: tokenizer.json is missing, or a file is not what its name says.
        """
        source = _text(folder / "tokenizer.json")
        if source is None:
            raise ConfigError([f"{folder}: holds no tokenizer.json"])
        config = _json(folder / "tokenizer_config.json")
        specials = {**_json(folder / "special_tokens_map.json"), **config}
        model = _json(folder / "config.json")
        vocab_size = model.get("vocab_size")
        return cls(
            tokenizer_json=source,
            templates=_templates(folder, config),
            special_tokens=_special_tokens(specials),
            vocab_size=vocab_size if isinstance(vocab_size, int) else 0,
            has_own_renderer=model.get("model_type") in _OWN_RENDERERS
            or (folder / _MISTRAL_TOKENIZER).exists(),
        )

    def compiled(self, override: Path | None) -> dict[str, ChatTemplate]:
        """Compile the templates, or the one that replaces them all.

        Raises:
            ConfigError: one is no Jinja, or the file is not there.
        """
        if override is not None:
            source = _text(override)
            if source is None:
                raise ConfigError([f"{override}: there is no such file"])
            return {"default": ChatTemplate.compile(source, str(override))}
        return {
            name: ChatTemplate.compile(source, f"chat template {name!r}")
            for name, source in self.templates.items()
        }


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Collect templates: files of their own win over those within tokenizer_config.json."""
    written = config.get("chat_template")
    found: dict[str, str] = {}
    if isinstance(written, str):
        found["default"] = written
    elif isinstance(written, list):
        found |= {
            str(entry["name"]): str(entry["template"])
            for entry in written
            if isinstance(entry, dict) and {"name", "template"} <= entry.keys()
        }
    extra = folder / "additional_chat_templates"
    for path in sorted(extra.glob("*.jinja")) if extra.is_dir() else []:
        found[path.stem] = _text(path) or ""
    own = _text(folder / "chat_template.jinja")
    return found if own is None else {**found, "default": own}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Read the special tokens, each written as a string or as an object with its content."""
    tokens: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8"]) from None


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError([f"{path}: is not JSON"]) from None
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: is not a JSON object"])
    return content

"""Reading a model folder: tokenizer.json, tokenizer_config.json and what may stand beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvatlas.common.errors import ConfigError
from kvatlas.common.prompt.reasons import Reason
from kvatlas.common.prompt.special_tokens import SpecialTokens

# The engine renders these with code of its own whatever template they carry.
_OWN_RENDERERS: Final = frozenset({
    "deepseek_v32", "deepseek_v4", "deepseek_v41", "kimi_k3", "kimi_audio", "inkling",
    "cohere", "cohere2", "cohere2_moe",
})  # fmt: skip
_OWN_RENDERERS_BY_ARCHITECTURE: Final = re.compile(
    r"DeepseekV(32|4|41)For|KimiK3|MoonshotKimia|Inkling"
)
_HARMONY: Final = "gpt_oss"
_HARMONY_ARCHITECTURE: Final = re.compile(r"GptOss")
_MISTRAL_TOKENIZERS: Final = ("tekken.json", "tokenizer.model.v*")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the files of a folder say.

    Attributes:
        tokenizer_json: content of tokenizer.json.
        templates: Jinja sources by name, "default" being the usual one.
        special_tokens: bos_token and the like.
        vocab_size: of the model, which may be larger than the tokenizer's; 0 if unknown.
        own_renderer: the reason if the engine renders chats of this model without a template.
    """

    tokenizer_json: str = field(repr=False)
    templates: Mapping[str, str] = field(repr=False)
    special_tokens: SpecialTokens
    vocab_size: int
    own_renderer: Reason | None

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
        older = _json(folder / "special_tokens_map.json")
        model = _json(folder / "config.json")
        vocab_size = model.get("vocab_size")
        return cls(
            tokenizer_json=source,
            templates=_templates(folder, config),
            special_tokens=SpecialTokens.read(config, older, model.get("model_type")),
            vocab_size=vocab_size if isinstance(vocab_size, int) else 0,
            own_renderer=_own_renderer(folder, model),
        )


def read_template(path: Path) -> str:
    """Read a file that holds a template.

    Raises:
        ConfigError: it cannot be read.
    """
    source = _text(path)
    if source is None:
        raise ConfigError([f"{path}: there is no such file"])
    return source


def _own_renderer(folder: Path, model: Mapping[str, Any]) -> Reason | None:
    listed = model.get("architectures")
    names = [name for name in (listed if isinstance(listed, list) else []) if isinstance(name, str)]
    if model.get("model_type") == _HARMONY or any(map(_HARMONY_ARCHITECTURE.match, names)):
        return "harmony"
    has_code = (
        model.get("model_type") in _OWN_RENDERERS
        or any(map(_OWN_RENDERERS_BY_ARCHITECTURE.match, names))
        or any(any(folder.glob(pattern)) for pattern in _MISTRAL_TOKENIZERS)
    )
    return "own_renderer" if has_code else None


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Collect templates: where there are files of their own, tokenizer_config.json's count not."""
    found: dict[str, str] = {}
    extra = folder / "additional_chat_templates"
    for path in sorted(extra.glob("*.jinja")) if extra.is_dir() else []:
        found[path.name.removesuffix(".jinja")] = _text(path) or ""
    own = _text(folder / "chat_template.jinja")
    if own is not None:
        found.setdefault("default", own)
    return found or _written_templates(config.get("chat_template"))


def _written_templates(written: Any) -> dict[str, str]:
    if isinstance(written, str):
        return {"default": written}
    return {
        str(entry["name"]): str(entry["template"])
        for entry in (written if isinstance(written, list) else [])
        if isinstance(entry, dict) and {"name", "template"} <= entry.keys()
    }


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

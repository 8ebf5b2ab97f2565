"""`kvatlas render`: what a request becomes, line by line, without an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from kvatlas.common.errors import ConfigError, KvatlasError, PromptUnavailable
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, PromptBuilder
from kvatlas.common.settings import Settings

_PATHS: Final = (CHAT_PATH, COMPLETIONS_PATH)


def render_lines(settings: Settings, lines: Iterable[bytes]) -> Iterator[str]:
    """Render requests, one JSON object per line.

    Args:
        settings: its `models` are rendered; a body names one of them, or none if there is but one.
        lines: `{"path": "/v1/chat/completions", "body": {...}}`; empty ones are skipped.

    Yields:
        For each line `{"token_ids": [[...]], "text": ["..."], "fallback": null}`, or without ids
        and text and with the reason why a router would go by load ("malformed",
        "invalid_request" and "model_not_found" for what it would answer itself).

    Raises:
        ConfigError: there are no models, or one cannot be loaded.
    """
    if not settings.models:
        raise ConfigError(["models: there is none to render for"])
    builders = {model.name: PromptBuilder.load(model) for model in settings.models}
    only = next(iter(builders)) if len(builders) == 1 else None
    # An adapter is rendered as its base model is.
    adapters = {name: builders[m.name] for m in settings.models for name in m.lora_adapters}
    builders = adapters | builders
    for line in lines:
        if line.strip():
            yield orjson.dumps(_answer(builders, line, only)).decode()


def _answer(builders: dict[str, PromptBuilder], line: bytes, only: str | None) -> dict[str, Any]:
    try:
        path, body = _request(line)
        name = only if body.get("model") is None else body["model"]
        builder = builders.get(name) if isinstance(name, str) else None
        if builder is None:
            return _fallback("model_not_found" if isinstance(name, str) else "invalid_request")
        rendered = builder.prepare(path, body)
        prompt = builder.tokenize(rendered)
    except PromptUnavailable as error:
        return _fallback(error.reason)
    except KvatlasError:
        return _fallback("invalid_request")
    except ValueError:
        return _fallback("malformed")
    ids = [list(sequence) for sequence in prompt.sequences]
    texts = list(rendered.texts) or [builder.decode(sequence) for sequence in ids]
    return {"token_ids": ids, "text": texts, "fallback": None}


def _request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Read a line.

    Raises:
        ValueError: it is not what `render_lines` wants.
    """
    request = orjson.loads(line)
    fields = request if isinstance(request, dict) else {}
    path, body = fields.get("path"), fields.get("body")
    if path not in _PATHS or not isinstance(body, dict):
        raise ValueError("no path or no body")
    return path, body


def _fallback(reason: str) -> dict[str, Any]:
    return {"token_ids": [], "text": [], "fallback": reason}

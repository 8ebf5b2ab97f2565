"""A few requests whose token ids tell whether an engine tokenizes and renders as we do.

They are made with our own renderer and tokenizer, so they fit any model, and are asked from the
engine's `/tokenize`. Texts find another tokenizer: numbers behind a blank, runs of white space,
composed and decomposed letters, special tokens that are written out. Chats find another template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from kvatlas.common.errors import KvatlasError
from kvatlas.common.prompt.builder import CHAT_PATH, COMPLETIONS_PATH, PromptBuilder
from kvatlas.common.prompt.corpus import CORPUS

Kind = Literal["text", "chat"]

_TEXTS: Final = (
    "a 2.0 b 2.0, 12345 and 1,000,000; 3.14159e-9 0xFF",
    "  two  three   \n\n \t\n x\r\n    y \u00a0\u3000z  ",
    "na\u00efve e\u0301 \u212b \u4f60\u597d \u041f\u0440 don't I'VE \U0001f469\u200d\U0001f4bb",
    CORPUS[-1],
)  # fmt: skip
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a place: 2.0 \u00b0C, <b>sun</b>",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}
_USER: Final = {"role": "user", "content": "What is 2.0 times  3?\n\nWrite it  in full. "}
_SYSTEM: Final = {"role": "system", "content": " Be brief: \u00fc \u754c \U0001f642 "}
_TURNS: Final[tuple[dict[str, Any], ...]] = (
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " 2"}]},
    {"role": "assistant", "content": "Six.\n"},
    {"role": "user", "content": "<|im_end|> </s> <|eot_id|> and 7 8.5?"},
)
_CHATS: Final[tuple[dict[str, Any], ...]] = (
    {"messages": [_USER]},
    {"messages": [_SYSTEM, _USER]},
    {"messages": list(_TURNS)},
    {"messages": [_SYSTEM, _USER], "tools": [_TOOL]},
    {"messages": [_USER], "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": [_USER], "add_generation_prompt": False, "add_special_tokens": True},
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to `/tokenize`, and the answer that we expect.

    Attributes:
        kind: whether it is a text or a chat.
        body: JSON.
        token_ids: ours.
    """

    kind: Kind
    body: bytes
    token_ids: tuple[int, ...]


def probe_set(builder: PromptBuilder, model: str) -> tuple[Probe, ...]:
    """Make the probes of a model; what we cannot render ourselves is left out.

    Args:
        builder: the model's.
        model: name under which engines serve it.
    """
    return tuple(_probes(builder, model))


def _probes(builder: PromptBuilder, model: str) -> Iterator[Probe]:
    for kind, path, fields in _questions():
        body = {"model": model, **fields}
        try:
            prompt = builder.tokenize(builder.prepare(path, body))
        except KvatlasError:
            continue
        yield Probe(kind, orjson.dumps(body), tuple(prompt.sequences[0]))


def _questions() -> Iterator[tuple[Kind, str, Mapping[str, Any]]]:
    for number, text in enumerate(_TEXTS):
        yield "text", COMPLETIONS_PATH, {"prompt": text, "add_special_tokens": number % 2 == 0}
    # The same text with and without tells whether the same tokens are added.
    yield "text", COMPLETIONS_PATH, {"prompt": _TEXTS[0], "add_special_tokens": False}
    for chat in _CHATS:
        yield "chat", CHAT_PATH, chat

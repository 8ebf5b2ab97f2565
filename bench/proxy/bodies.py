"""Chats of a given size, each distinct, that engines can tell apart without parsing them."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import orjson
import tokenizers

from kvatlas.cli.fleet import MODEL
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder

PROMPTS = 64
KB = 1_024
STREAM_KB = 1
_MARK = re.compile(rb"<#(\d+-\d+)>")
# Of a body, before its text.
_HEAD_MAX = 400


@dataclass(frozen=True, slots=True)
class Body:
    """A chat.

    Attributes:
        mark: stands in its text, so that an engine knows it.
    """

    mark: bytes
    raw: bytes


def source_text() -> str:
    """Give a long and varied text: the source of installed packages."""
    files = sorted(Path(tokenizers.__file__).parents[1].glob("*/*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def write_bodies(folder: Path, kilobytes: int, text: str, count: int = PROMPTS) -> None:
    """Make chats of so many bytes, each in a file; the same ones for the same arguments."""
    lines = text.splitlines(keepends=True)
    rng = random.Random(kilobytes)
    for number in range(count):
        raw = _body(kilobytes, number, lines, rng)
        (folder / f"{kilobytes}-{number}.json").write_bytes(raw)


def read_bodies(folder: Path, kilobytes: int, *, stream: bool = False) -> list[Body]:
    """Read them, in their order; as streams, with the same text."""
    found = []
    for number in range(len(list(folder.glob(f"{kilobytes}-*.json")))):
        raw = (folder / f"{kilobytes}-{number}.json").read_bytes()
        if stream:
            raw = raw.replace(b'"stream":false', b'"stream":true', 1)
        found.append(Body(f"{kilobytes}-{number}".encode(), raw))
    return found


def _body(kilobytes: int, number: int, lines: list[str], rng: random.Random) -> bytes:
    want, content = kilobytes * KB, f"<#{kilobytes}-{number}>\n"
    while len(content) < want:
        start = rng.randrange(len(lines) - 200)
        content += "".join(lines[start : start + 20])
    while (over := len(raw := _written(content)) - want) > 0:
        # A quoted character is two bytes or more of the body.
        content = content[: -max(1, over // 4)]
    return raw


def _written(content: str) -> bytes:
    fields = {
        "model": MODEL,
        "max_tokens": 8,
        "stream": False,
        "messages": [{"role": "user", "content": content}],
    }
    return orjson.dumps(fields)


def mark_of(raw: bytes) -> bytes | None:
    """Find the mark in a body, wherever its members stand."""
    at = raw.find(b"<#", 0, _HEAD_MAX)
    if at < 0 and (at := raw.find(b"<#")) < 0:
        return None
    found = _MARK.match(raw, at)
    return found[1] if found else None


def token_ids(builder: PromptBuilder, body: Body) -> list[int]:
    """Give what the model reads."""
    prompt = builder.tokenize(builder.prepare(CHAT_PATH, orjson.loads(body.raw)))
    return list(prompt.sequences[0])

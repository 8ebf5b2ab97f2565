"""A trace's lines become records; a wrong line is told with its number. Pure.

The format is Mooncake's: a JSON object per line with `timestamp` (milliseconds), `input_length`
and `output_length` (tokens), and `hash_ids`, one per 512 tokens of input, the last one for what
is left. Equal ids stand for equal blocks after equal blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError

ID_TOKENS: Final = 512
"""Tokens that one hash id of a trace stands for."""
_INTEGERS: Final = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True, slots=True)
class Record:
    """One request of a trace.

    Attributes:
        at_ms: when it arrived.
        prompt_tokens, output_tokens: at least one each.
        hash_ids: one per 512 tokens of its prompt, rounded up.
    """

    at_ms: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


def read_trace(name: str, lines: Iterable[bytes]) -> list[Record]:
    """Read a whole trace.

    Args:
        name: how errors call it.
        lines: one JSON object each; empty ones are skipped.

    Raises:
        ConfigError: the operator's; a line is wrong, goes back in time, or there is none.
    """
    records = list(_records(name, lines))
    if not records:
        raise ConfigError([f"{name}: holds no request"])
    return records


def _records(name: str, lines: Iterable[bytes]) -> Iterator[Record]:
    before = 0.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number > limits.TRACE_LINES_MAX:
            raise ConfigError([f"{name}: has over {limits.TRACE_LINES_MAX} lines"])
        try:
            record = _record(line, before)
        except ValueError as error:
            raise ConfigError([f"{name}, line {number}: {error}"]) from None
        before = record.at_ms
        yield record


def _record(line: bytes, before_ms: float) -> Record:
    try:
        fields = json.loads(line)
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise ValueError("is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - one kind of fault for a line
    at_ms, prompt, output = (_number(fields, each) for each in _INTEGERS)
    if at_ms < before_ms:
        raise ValueError("timestamp is before that of the line above")
    if not 1 <= prompt <= limits.TRACE_TOKENS_MAX:
        raise ValueError(f"input_length is not between 1 and {limits.TRACE_TOKENS_MAX}")
    if not 1 <= output <= limits.TRACE_TOKENS_MAX:
        raise ValueError(f"output_length is not between 1 and {limits.TRACE_TOKENS_MAX}")
    ids = fields.get("hash_ids")
    if not isinstance(ids, list) or any(type(each) is not int for each in ids):
        raise ValueError("hash_ids is not a list of integers")
    if len(ids) != -(-prompt // ID_TOKENS):
        raise ValueError(
            f"hash_ids has {len(ids)} ids, {prompt} tokens make {-(-prompt // ID_TOKENS)}"
        )
    return Record(float(at_ms), prompt, output, tuple(ids))


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    # A bool is an int to Python, and a trace with fractions of tokens is none.
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is not a whole number of 0 or more")
    return value

"""What a PromQL expression names: metrics, with the labels that it asks of them.

A tokenizer for what our panels and rules are written in; what it does not know is an error, so that
no expression passes unread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<number>\d+(?:\.\d+)?)'
    r"|(?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^(){},=<>]))"
)
FUNCTIONS: Final = frozenset({"sum", "max", "min", "rate", "histogram_quantile", "time"})
_MATCHERS: Final = frozenset({"=", "!=", "=~", "!~"})


@dataclass(slots=True)
class Selector:
    """A metric that an expression names.

    Attributes:
        labels: that it filters by or groups by.
    """

    metric: str
    labels: set[str] = field(default_factory=set)


def selectors(expression: str) -> list[Selector]:
    """Read an expression.

    Raises:
        ValueError: it has something that is not understood.
    """
    tokens = _tokens(expression)
    found: list[Selector] = []
    groups: list[tuple[int, set[str]]] = []
    depth = at = 0
    while at < len(tokens):
        kind, text = tokens[at]
        if text == "by":
            labels, at = _labels(tokens, at + 1)
            groups.append((depth, labels))
            continue
        if text in "()":
            depth += 1 if text == "(" else -1
            if text == ")":
                groups = [group for group in groups if group[0] < depth]
        elif text == "{":
            at = _matchers(tokens, at, found[-1])
            continue
        elif kind == "word" and text not in FUNCTIONS:
            grouped = set().union(*(labels for _, labels in groups))
            found.append(Selector(text, grouped))
        at += 1
    if depth or not found:
        raise ValueError(expression)
    return found


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while at < len(expression.rstrip()):
        match = _TOKEN.match(expression, at)
        if match is None or match.lastgroup is None:
            raise ValueError(expression[at:])
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


def _labels(tokens: list[tuple[str, str]], at: int) -> tuple[set[str], int]:
    """Read the parenthesis of a `by`."""
    end = tokens.index(("sign", ")"), at)
    names = [text for kind, text in tokens[at:end] if kind == "word"]
    return set(names), end + 1


def _matchers(tokens: list[tuple[str, str]], at: int, selector: Selector) -> int:
    """Read what stands in braces behind a metric."""
    end = tokens.index(("sign", "}"), at)
    inner = tokens[at + 1 : end]
    for (kind, name), (_, sign), (value, _) in zip(
        inner[::4], inner[1::4], inner[2::4], strict=True
    ):
        if kind != "word" or sign not in _MATCHERS or value != "text":
            raise ValueError(name)
        selector.labels.add(name)
    return end + 1

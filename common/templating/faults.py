"""What in a template's syntax tree no chat needs and a bomb is made of. Pure.

It finds what is plainly there, and is no proof of harmlessness: templates that nobody vouches for
are rendered in a process of their own as well (`isolated`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from jinja2 import nodes

from kvatlas.common import limits

_WIDE: Final = re.compile(r"%(\(\w*\))?[-+ #0]*(\d*\.)?\d{5}|\{[^{}]*:[^{}]*\d{5}")
"""A width or precision of five digits, in a text that formats."""


def faults_of(source: str, tree: nodes.Template) -> list[str]:
    """List, in a few fixed words each, what speaks against rendering a template.

    Args:
        source: of it; it is not evaluated.
        tree: the same, parsed.
    """
    found = set(_faults(tree))
    if len(source) > limits.TEMPLATE_CHARS_MAX:
        found.add("too long")
    if sum(1 for _ in tree.find_all(nodes.Assign)) > limits.TEMPLATE_ASSIGNMENTS_MAX:
        found.add("too many assignments")
    return sorted(found)


def _faults(tree: nodes.Template) -> Iterator[str]:
    for loop in tree.find_all(nodes.For):
        inner = [child for part in loop.body for child in _loops_in(part)]
        if _ranges(loop) and any(map(_ranges, inner)):
            yield "nested ranges"
    for const in tree.find_all(nodes.Const):
        if _is_large(const.value):
            yield "large constant"
        if isinstance(const.value, str) and _WIDE.search(const.value):
            yield "wide format"
    if next(tree.find_all(nodes.Pow), None) is not None:
        yield "power"
    for product in tree.find_all(nodes.Mul):
        if (size := _size(product)) is not None and size > limits.TEMPLATE_NUMBER_MAX:
            yield "large constant"


def _loops_in(node: nodes.Node) -> Iterator[nodes.For]:
    if isinstance(node, nodes.For):
        yield node
    yield from node.find_all(nodes.For)


def _ranges(loop: nodes.For) -> bool:
    """Tell whether a loop runs over a range, whatever filters stand between."""
    calls = [loop.iter] if isinstance(loop.iter, nodes.Call) else []
    calls += loop.iter.find_all(nodes.Call)
    return any(isinstance(call.node, nodes.Name) and call.node.name == "range" for call in calls)


def _is_large(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) > limits.TEMPLATE_NUMBER_MAX


def _size(node: nodes.Node) -> float | None:
    """Multiply what is constant: numbers by their value, texts and lists by their length."""
    if isinstance(node, nodes.Const):
        value = node.value
        return float(len(value)) if isinstance(value, str) else _number(value)
    if isinstance(node, nodes.List | nodes.Tuple):
        return float(len(node.items))
    if isinstance(node, nodes.Mul):
        left, right = _size(node.left), _size(node.right)
        return None if left is None or right is None else left * right
    return None


def _number(value: object) -> float | None:
    return float(abs(value)) if isinstance(value, int | float) else None

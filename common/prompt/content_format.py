"""Does a template take contents as strings or as lists of parts? Its syntax tree tells.

It takes lists exactly if it loops over a message's content: directly, through a variable or a
macro's parameter that got it, or through a variable that is called `content`.
Source: vLLM 0.32, which decides the same way.
"""

from __future__ import annotations

from enum import Enum, auto

from jinja2 import nodes

from kvatlas.common.prompt.messages import ContentFormat


class _Kind(Enum):
    MESSAGES = auto()
    MESSAGE = auto()
    CONTENT = auto()


_Names = dict[str, _Kind]


def content_format_of(tree: nodes.Template) -> ContentFormat:
    """Find what the template of this syntax tree wants contents to be."""
    names: _Names = {"messages": _Kind.MESSAGES, "content": _Kind.CONTENT}
    while True:
        learned = {name: kind for name, kind in _bindings(tree, names) if names.get(name) != kind}
        # A name keeps the first kind found for it, or two uses of it would chase each other.
        learned = {name: kind for name, kind in learned.items() if name not in names}
        if not learned:
            break
        names |= learned
    loops = tree.find_all(nodes.For)
    return "openai" if any(_kind(loop.iter, names) is _Kind.CONTENT for loop in loops) else "string"


def _bindings(tree: nodes.Template, names: _Names) -> list[tuple[str, _Kind]]:
    """List the names that get messages, one message or a content, as far as is known."""
    found: list[tuple[str, _Kind | None]] = [
        (assign.target.name, _kind(assign.node, names))
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name)
    ]
    found += [
        (loop.target.name, _Kind.MESSAGE)
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and _kind(loop.iter, names) is _Kind.MESSAGES
    ]
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
        if macro is not None:
            pairs = zip(macro.args, call.args, strict=False)
            found += [(parameter.name, _kind(given, names)) for parameter, given in pairs]
            found += [(given.key, _kind(given.value, names)) for given in call.kwargs]
    return [(name, kind) for name, kind in found if kind is not None]


def _kind(node: nodes.Node | None, names: _Names) -> _Kind | None:
    """Tell what an expression gives; filters and slices of a list are a list of the same."""
    if isinstance(node, nodes.Name):
        return names.get(node.name)
    if isinstance(node, nodes.CondExpr):
        return _kind(node.expr1, names) or _kind(node.expr2, names)
    if isinstance(node, nodes.Add | nodes.Or):
        return _kind(node.left, names) or _kind(node.right, names)
    if isinstance(node, nodes.Filter | nodes.Getattr | nodes.Getitem):
        return _derived(_kind(node.node, names), node)
    return None


def _derived(of: _Kind | None, node: nodes.Filter | nodes.Getattr | nodes.Getitem) -> _Kind | None:
    is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    if isinstance(node, nodes.Filter) or is_slice:
        return of
    if isinstance(node, nodes.Getattr):
        key: object = node.attr
    else:
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
    if of is _Kind.MESSAGES:
        return None if isinstance(key, str) else _Kind.MESSAGE
    return _Kind.CONTENT if of is _Kind.MESSAGE and key == "content" else None

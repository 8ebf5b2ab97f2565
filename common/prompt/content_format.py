"""Does a template take contents as strings or as lists of parts? Its syntax tree tells.

It takes lists exactly if it loops over the content of a message: directly, through a macro's
parameter that got it, or through a variable outside of macros that is called `content`. Only
assignments of `messages` itself are followed, not those of a message or its content.
Source: vLLM 0.32, which decides the same way, where it gives up as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes

from kvatlas.common.prompt.parts import ContentFormat


class _Undecided(Exception):
    """A target that is no plain name, such as a namespace's: the engine then takes strings."""


def content_format_of(tree: nodes.Template) -> ContentFormat:
    """Find what the template of this syntax tree wants contents to be."""
    try:
        return "openai" if _loops_over_content(tree) else "string"
    except _Undecided:
        return "string"


def _loops_over_content(tree: nodes.Template) -> bool:
    messages = set(_message_names(tree, _list_names(tree)))
    in_macros = dict(_loops_in_macros(tree, messages))
    for loop in tree.find_all(nodes.For):
        name = loop.iter.name if isinstance(loop.iter, nodes.Name) else None
        # A loop of a macro runs over what calls give to its parameters, whatever their names.
        parameters = in_macros.get(id(loop), {"content"})
        if _is_content(loop.iter, messages) or name in parameters:
            _name_of(loop.target)
            return True
    return False


def _list_names(tree: nodes.Template) -> set[str]:
    """Name the variables that hold the list of messages, or a part of it."""
    names = {"messages"}
    found = True
    while found:
        given = [
            assign.target
            for assign in tree.find_all(nodes.Assign)
            if any(_refers(assign.node, name) for name in names)
        ]
        learned = {_name_of(target) for target in given} - names
        names |= learned
        found = bool(learned)
    return names


def _message_names(tree: nodes.Template, lists: set[str]) -> Iterator[str]:
    for loop in tree.find_all(nodes.For):
        if any(_refers(loop.iter, name) for name in lists):
            yield _name_of(loop.target)


def _loops_in_macros(tree: nodes.Template, messages: set[str]) -> Iterator[tuple[int, set[str]]]:
    """Give each loop in a macro with the macro's parameters that calls set to a content."""
    calls = [
        (call.node.name, call)
        for call in tree.find_all(nodes.Call)
        if isinstance(call.node, nodes.Name)
    ]
    seen: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        parameters = {argument.name for argument in macro.args}
        given: set[str] = set()
        for name, call in calls:
            if name == macro.name:
                pairs = zip(macro.args, call.args, strict=False)
                given |= {to.name for to, value in pairs if _is_content(value, messages)}
                given |= {to.key for to in call.kwargs if _is_content(to.value, messages)}
        for loop in macro.find_all(nodes.For):
            # In a macro within a macro the inner one counts, if it is given a content.
            seen[id(loop)] = given & parameters or seen.get(id(loop), set())
    yield from seen.items()


def _is_content(node: nodes.Node, messages: set[str]) -> bool:
    return any(_refers(node, name, "content") for name in messages)


def _refers(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Tell whether an expression gives this variable, or this key of it; filters aside."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if key is None:
        return isinstance(node, nodes.Name) and node.name == name and node.ctx == "load"
    if isinstance(node, nodes.Getattr):
        return node.attr == key and _refers_exactly(node.node, name)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return bool(node.arg.value == key) and _refers_exactly(node.node, name)
    return False


def _refers_exactly(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name and node.ctx == "load"


def _name_of(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _Undecided
    return target.name

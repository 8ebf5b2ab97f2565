"""The sandbox that templates run in: Jinja with what Hugging Face's templates rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any, Final, NoReturn

from jinja2 import Environment, Template, TemplateError, meta, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it only has a body."""

    tags = {"generation"}  # noqa: RUF012 - the class variable that jinja2 reads

    def parse(self, parser: Parser) -> nodes.Node:
        """Read up to the end tag and stand for what is between."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block as in Hugging Face's code: variables that it sets stay within.
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates may give it by position
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - alike
) -> str:
    """Write JSON the way templates expect it: no escapes for HTML or for other scripts."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    # The engine prints its own local time; near midnight the two may differ.
    return datetime.now().strftime(form)  # noqa: DTZ005 - see above


_OF_DICTS: Final = frozenset(dir(dict))
_OF_TEXTS: Final = frozenset(
    # `format` can be made to reach into what it is given, so the sandbox wraps it.
    name
    for name in dir(str)
    if not name.startswith("_") and not name.startswith("format")
)
_OF_LOOPS: Final = frozenset({
    "index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem", "nextitem",
})  # fmt: skip


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, quicker where templates do most of their work: keys of messages, their texts."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Give what Jinja gives, without the exception that it takes to get to a key."""
        if type(obj) is dict and attribute not in _OF_DICTS:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        kind = type(obj)
        if (
            (kind is str and attribute in _OF_TEXTS)
            or (kind is LoopContext and attribute in _OF_LOOPS)
            or (kind is Namespace and attribute[:1] != "_")
        ):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


@cache
def environment() -> Environment:
    """Give the environment that all templates are compiled in."""
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        autoescape=False,
        extensions=[_GenerationTag, LoopControlExtension],
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def compiled(source: str) -> Template:
    """Compile a template.

    Raises:
        TemplateError, RecursionError: it is none.
    """
    template = environment().from_string(source)
    # A chain of dicts, which it is, would be copied name by name for each rendering.
    template.globals = dict(template.globals)
    return template


def read_variables(source: str) -> frozenset[str]:
    """Name the variables that a template reads without setting them.

    Evaluates what is constant in it, as compiling does.
    """
    return frozenset(meta.find_undeclared_variables(environment().parse(source)))

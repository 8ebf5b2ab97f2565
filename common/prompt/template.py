"""A chat template: compiled here, or rendered elsewhere, and what its source says about itself.

Deliberately absent: templates from request bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.prompt.content_format import content_format_of
from kvatlas.common.prompt.parts import ContentFormat
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.templating.sandbox import compiled, environment, read_variables

Render = Callable[[Mapping[str, Any]], str]
"""Renders with variables; whatever it raises is a template that failed."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template and what its source says about itself. Rendering is thread-safe.

    Attributes:
        variables: names that it reads without setting them.
        content_format: what it wants contents to be.
        knows_developer: whether it handles the role "developer".
        mentions_content: whether a final message can be continued with it.
        messages_max: messages that it can afford to render.
    """

    variables: frozenset[str]
    content_format: ContentFormat
    knows_developer: bool
    mentions_content: bool
    _render: Render
    messages_max: int = limits.MESSAGES_MAX

    @classmethod
    def compile(cls, source: str, where: str) -> ChatTemplate:
        """Compile a template, to be rendered in this process.

        Args:
            source: Jinja.
            where: the setting or file that it comes from, for the error.

        Raises:
            ConfigError: it is not Jinja.
        """
        tree = parsed(source, where)
        try:
            template = compiled(source)
        except (TemplateError, RecursionError) as error:
            raise _no_jinja(where, error) from None
        names = read_variables(source)
        return cls.of(source, tree, names, lambda variables: template.render(**variables))

    @classmethod
    def of(
        cls, source: str, tree: nodes.Template, variables: frozenset[str], render: Render
    ) -> ChatTemplate:
        """Make one whose source is not compiled here.

        Args:
            source: Jinja.
            tree: the same, parsed.
            variables: that it reads without setting them.
            render: renders it.
        """
        return cls(
            variables=variables,
            content_format=content_format_of(tree),
            knows_developer="'developer'" in source or '"developer"' in source,
            mentions_content="content" in source,
            _render=render,
        )

    @classmethod
    def refused(cls) -> ChatTemplate:
        """Make what stands for a template that is not rendered at all."""
        nothing: frozenset[str] = frozenset()
        return cls(nothing, "string", False, False, _refuse)  # noqa: FBT003 - it says nothing

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render.

        Raises:
            PromptUnavailable: the template refused or failed, and the engine's own will, too; or
                it is not rendered here.
        """
        try:
            return self._render(variables)
        except PromptUnavailable:
            raise
        except Exception as error:  # a template may raise whatever Python can
            raise PromptUnavailable("template_error") from error


def parsed(source: str, where: str) -> nodes.Template:
    """Parse a template; nothing of it is run, nor evaluated.

    Raises:
        ConfigError: it is not Jinja.
    """
    try:
        return environment().parse(source)
    except (TemplateError, RecursionError) as error:
        raise _no_jinja(where, error) from None


def _no_jinja(where: str, error: Exception) -> ConfigError:
    line = getattr(error, "lineno", None)
    at = f" in line {line}" if line else ""
    return ConfigError([f"{where}: is not a Jinja template{at}"])


def _refuse(_variables: Mapping[str, Any]) -> NoReturn:
    unavailable("template_refused")

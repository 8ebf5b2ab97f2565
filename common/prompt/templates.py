"""A model's templates: which there are, who vouches for them, and where each is rendered.

One that is trusted (`common/templating/trust.py`) is compiled here. Any other is looked through
first, and not rendered if it holds what no chat needs; else it gets processes of its own. Each is
tried with two chats, and one whose cost grows faster than its chats gets a bound on messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from kvatlas.common import limits
from kvatlas.common.clock import monotonic, thread_time
from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.log import logger
from kvatlas.common.prompt.chat import ChatRenderer
from kvatlas.common.prompt.folder import ModelFolder, read_template
from kvatlas.common.prompt.template import ChatTemplate, parsed
from kvatlas.common.prompt.template_cost import affordable_messages
from kvatlas.common.settings import ModelSettings
from kvatlas.common.templating.faults import faults_of
from kvatlas.common.templating.isolated import IsolatedTemplate
from kvatlas.common.templating.trust import is_trusted, template_hash

_LOG = logger("prompt")


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    text: str
    where: str


@dataclass(slots=True)
class Templates:
    """The templates of one model.

    Attributes:
        by_name: "default" is the usual one.
        isolated: of those that are rendered in processes of their own, these.
        users: that need them.
    """

    model: ModelSettings
    by_name: dict[str, ChatTemplate] = field(default_factory=dict)
    isolated: dict[str, IsolatedTemplate] = field(default_factory=dict)
    users: int = 0

    @classmethod
    def load(cls, files: ModelFolder, model: ModelSettings, *, isolates: bool) -> Templates:
        """Load them, or the one that replaces them all.

        Args:
            files: of the model.
            model: its settings.
            isolates: guard against those that nobody vouches for, and tell of all.

        Raises:
            ConfigError: one is no Jinja, or the file is not there.
        """
        made = cls(model)
        try:
            for source in _sources(files, model):
                if isolates:
                    made._add_guarded(source)
                else:
                    made.by_name[source.name] = ChatTemplate.compile(source.text, source.where)
        except ConfigError:
            made.close()
            raise
        return made

    def try_out(self, chat: ChatRenderer) -> None:
        """Find out what each that was guarded can afford.

        Args:
            chat: renders with them; it is left as it is.
        """
        for name, template in self.by_name.items():
            process = self.isolated.get(name)
            alone = replace(chat, templates={"default": template})
            clock = thread_time if process is None else monotonic
            messages = affordable_messages(alone.render, clock)
            if process is not None:
                process.limit_s = limits.TEMPLATE_RENDER_S
            if messages < limits.MESSAGES_MAX:
                self.by_name[name] = replace(template, messages_max=messages)
                _LOG.warning(
                    "template.costly", model=self.model.name, template=name, messages_max=messages
                )

    def close(self) -> None:
        """End the processes."""
        for process in self.isolated.values():
            process.close()

    def _add_guarded(self, source: _Source) -> None:
        digest = template_hash(source.text)
        tree = parsed(source.text, source.where)
        trusted = self.model.trusted_templates
        # Who names a file vouches for it.
        if self.model.chat_template is not None or is_trusted(digest, trusted):
            template, rendered, faults = ChatTemplate.compile(source.text, source.where), "here", []
        elif faults := faults_of(source.text, tree):
            template, rendered = ChatTemplate.refused(), "not"
        else:
            process = self.isolated[source.name] = IsolatedTemplate(source.text)
            variables = _variables_of(process, source.where)
            template = ChatTemplate.of(source.text, tree, variables, process.render)
            rendered = "apart"
        self.by_name[source.name] = template
        tell = _LOG.warning if faults else _LOG.info
        tell(
            "template.loaded",
            model=self.model.name,
            template=source.name,
            sha256=digest,
            rendered=rendered,
            faults=faults,
        )


def _sources(files: ModelFolder, model: ModelSettings) -> Iterator[_Source]:
    if (path := model.chat_template) is not None:
        yield _Source("default", read_template(path), str(path))
        return
    for name, text in files.templates.items():
        yield _Source(name, text, f"chat template {name!r}")


def _variables_of(process: IsolatedTemplate, where: str) -> frozenset[str]:
    with suppress(PromptUnavailable):
        if (variables := process.begin()) is not None:
            return variables
    raise ConfigError([f"{where}: is not a Jinja template that can be compiled"])

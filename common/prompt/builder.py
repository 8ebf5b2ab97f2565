"""One model's way from a request body to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Final

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.prompt import anthropic, responses
from kvatlas.common.prompt.chat import ChatRenderer
from kvatlas.common.prompt.completion import read_completion
from kvatlas.common.prompt.corpus import CORPUS
from kvatlas.common.prompt.fetch import tokenizer_folder
from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.folder import ModelFolder
from kvatlas.common.prompt.reasons import Reason, unavailable
from kvatlas.common.prompt.rendered import Prompt, Rendered, Truncation
from kvatlas.common.prompt.templates import Templates
from kvatlas.common.prompt.tokenizer import Tokenizer, TokenizerKind
from kvatlas.common.settings import ModelSettings

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETIONS_PATH: Final = "/v1/completions"
MESSAGES_PATH: Final = "/v1/messages"
RESPONSES_PATH: Final = "/v1/responses"
PROMPT_PATHS: Final = (CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH)
"""Paths whose bodies become prompts."""
_OF_THE_TEMPLATE: Final = frozenset({"no_template", "template_error", "unsure"})
"""Reasons that say nothing of a request where the engine does not use the template."""
_WARMING: Final[dict[str, Body]] = {
    CHAT_PATH: {"messages": [{"role": "user", "content": "\n".join(CORPUS)}]},
    COMPLETIONS_PATH: {"prompt": "\n".join(CORPUS)},
}


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Turn request bodies of one model into the token ids that its engines will see.

    Thread-safe; `prepare` is quick, `tokenize` may be given to a thread. Nothing but
    InvalidRequest and PromptUnavailable leaves them, whatever the body holds.
    """

    _tokenizer: Tokenizer
    _chat: ChatRenderer
    _own_renderer: Reason | None
    _max_model_len: int | None
    _id_max: int
    _eos: str | None
    _templates: Templates

    @classmethod
    def load(cls, model: ModelSettings, *, isolates: bool = False) -> PromptBuilder:
        """Load a model's tokenizer and templates.

        Args:
            model: its `tokenizer` is a folder, or a hub id that is fetched if it is not cached.
            isolates: render templates that nobody vouches for in processes of their own, and tell
                of each template; for a service, which must end with `close`.

        Raises:
            ConfigError: they cannot be had, or read.
        """
        try:
            files = ModelFolder.read(tokenizer_folder(model.tokenizer, model.revision))
            templates = Templates.load(files, model, isolates=isolates)
            where = str(Path(model.tokenizer, "tokenizer.json"))
            tokenizer = Tokenizer.from_json(files.tokenizer_json, where)
        except ConfigError as error:
            raise ConfigError([f"models.{model.name}: {fault}" for fault in error.faults]) from None
        chat = ChatRenderer(
            templates=templates.by_name,
            special_tokens=files.special_tokens,
            content_format=None if model.content_format == "auto" else model.content_format,
            max_model_len=model.max_model_len,
            default_variables=model.default_chat_template_kwargs or {},
            excludes_tools=model.exclude_tools_when_tool_choice_none,
        )
        if isolates:
            templates.try_out(chat)
        return cls(
            _tokenizer=tokenizer,
            _chat=replace(chat, templates=templates.by_name),
            _templates=templates,
            _own_renderer=files.own_renderer if model.chat_template is None else None,
            _max_model_len=model.max_model_len,
            _id_max=max(tokenizer.vocab_size, files.vocab_size) - 1,
            _eos=files.special_tokens.known.get("eos_token"),
        )

    @property
    def tokenizer_kind(self) -> TokenizerKind:
        """Name the library that tokenizes."""
        return self._tokenizer.kind

    @property
    def is_isolated(self) -> bool:
        """Tell whether chats are rendered in other processes, for which `prepare` waits."""
        return bool(self._templates.isolated)

    def hold(self) -> None:
        """Count a user in, who is to call `close`."""
        self._templates.users += 1

    def close(self) -> None:
        """Count a user out; the last one ends the processes that render, if there are any."""
        self._templates.users -= 1
        if self._templates.users <= 0:
            self._templates.close()

    @property
    def eos_token_id(self) -> int | None:
        """Give the id that ends a generation, if the model names one."""
        return None if self._eos is None else self._tokenizer.id_of(self._eos)

    @property
    def vocab_size(self) -> int:
        """Count the ids that the tokenizer can give."""
        return self._tokenizer.vocab_size

    def prepare(self, path: str, body: Body) -> Rendered:
        """Render a request.

        Args:
            path: one of PROMPT_PATHS.
            body: the request's JSON.

        Raises:
            InvalidRequest: a field that is read here has a plainly wrong type.
            PromptUnavailable: route by load; `reason` is one of `REASONS`.
        """
        if path == COMPLETIONS_PATH:
            return read_completion(body, id_max=self._id_max, max_model_len=self._max_model_len)
        if path == MESSAGES_PATH:
            body = anthropic.chat_of(body)
        elif path == RESPONSES_PATH:
            body = responses.chat_of(body)
        if self._own_renderer is None:
            return self._chat.render(body)
        try:
            self._chat.render(body)
        except PromptUnavailable as error:
            if error.reason not in _OF_THE_TEMPLATE:
                raise
        raise PromptUnavailable(self._own_renderer)

    def tokenize(self, rendered: Rendered) -> Prompt:
        """Tokenize what `prepare` gave.

        Raises:
            PromptUnavailable: the tokenizer failed, or the engine would find it too long.
        """
        sequences: Sequence[Sequence[int]] = rendered.token_ids
        if rendered.texts:
            texts = [self._within_bound(text, rendered.truncation) for text in rendered.texts]
            sequences = self._tokenizer.encode(
                texts, add_special_tokens=rendered.add_special_tokens
            )
        if rendered.truncation is not None:
            adds = rendered.add_special_tokens and bool(rendered.texts)
            sequences = [
                self._tokenizer.truncated(list(ids), rendered.truncation, has_special_tokens=adds)
                for ids in sequences
            ]
        lengths = [len(ids) for ids in sequences]
        # One token of an answer must fit behind the prompt.
        if min(lengths, default=0) < 1 or max(lengths) >= (self._max_model_len or inf):
            unavailable("refused")
        if max(lengths) > limits.PROMPT_TOKENS_MAX:
            unavailable("too_long")
        return Prompt(tuple(sequences), rendered.cache_salt)

    def _within_bound(self, text: str, truncation: Truncation | None) -> str:
        """Cut a text that is too long by its characters alone, or refuse it, as the engine does."""
        if self._max_model_len is None:
            return text
        chars_max = self._max_model_len * self._tokenizer.chars_per_token_max
        if len(text) <= chars_max or (truncation is not None and truncation.side is None):
            return text
        if truncation is None:
            unavailable("refused")
        return text[-chars_max:] if truncation.side == "left" else text[:chars_max]

    def warm(self) -> None:
        """Use everything once: a tokenizer's first encode takes up to 150 ms."""
        for adds in (False, True):
            self._tokenizer.encode(CORPUS, add_special_tokens=adds)
        for path, body in _WARMING.items():
            with suppress(PromptUnavailable):
                self.tokenize(self.prepare(path, body))

    def encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenize a text.

        Raises:
            PromptUnavailable: the tokenizer failed.
        """
        return list(self._tokenizer.encode([text], add_special_tokens=add_special_tokens)[0])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Write token ids as text, without special tokens and ids that are none.

        Raises:
            PromptUnavailable: the tokenizer failed.
        """
        return self._tokenizer.decode(token_ids)

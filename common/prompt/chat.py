"""A chat becomes the text that the engine's tokenizer takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.prompt.fields import (
    Body,
    cache_salt,
    check_common,
    checked_text,
    flag,
    optional_mapping,
)
from kvatlas.common.prompt.messages import Message, check_types, normalise_messages
from kvatlas.common.prompt.parts import ContentFormat
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.prompt.rendered import Rendered
from kvatlas.common.prompt.sampling import answer_tokens, check_chat
from kvatlas.common.prompt.special_tokens import SpecialTokens
from kvatlas.common.prompt.template import ChatTemplate
from kvatlas.common.prompt.tools import tools_of
from kvatlas.common.prompt.truncation import truncation_of
from kvatlas.common.prompt.variables import chat_variables

_TAG: Final = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands for the end of the final message while it is rendered, as in Hugging Face's code."""

_NO_TOKENS: Final = SpecialTokens({})


@dataclass(frozen=True, slots=True)
class ChatRenderer:
    """Everything about a model and its engines that decides how chats are rendered.

    Attributes:
        templates: by name; "default" always, "tool_use" for requests with tools if it is there.
        special_tokens: bos_token and the like, which templates read as variables.
        content_format: what contents are to be, or None to go by the template.
        max_model_len: tokens that the engine takes at most, or None if unknown.
        default_variables: what templates read where the client says nothing.
        excludes_tools: whether tools are hidden when `tool_choice` is "none".
    """

    templates: Mapping[str, ChatTemplate]
    special_tokens: SpecialTokens = _NO_TOKENS
    content_format: ContentFormat | None = None
    max_model_len: int | None = None
    default_variables: Mapping[str, Any] = field(default_factory=dict)
    excludes_tools: bool = False

    def render(self, body: Body) -> Rendered:
        """Render the body of a chat request.

        Raises:
            InvalidRequest: a field that is read here has a plainly wrong type.
            PromptUnavailable: the engine would refuse it, or it cannot be rendered here.

        Cost: 0.04 ms for 1,000 tokens, 0.9 ms for 90,000 (Qwen3's template).
        """
        check_common(body)
        raw_messages = body.get("messages", [])
        # Types first: a wrong one is answered 400 here, whatever else is wrong.
        check_types(raw_messages)
        _check_template(body)
        check_chat(body)
        tools = tools_of(body, exclude_with_none=self.excludes_tools)
        variables = chat_variables(body, tools, self.default_variables)
        template = self._template(with_tools=variables.tools is not None)
        messages = normalise_messages(
            raw_messages,
            self.content_format or template.content_format,
            knows_developer=template.knows_developer,
        )
        if len(messages) > template.messages_max:
            unavailable("too_many_messages")
        _check_size(messages)
        seen = variables.seen_by(template, self.special_tokens.known)
        if not self.special_tokens.unknown.isdisjoint(template.variables - seen.keys()):
            unavailable("unsure")
        text = _render(template, messages, seen, continues=variables.continues)
        return Rendered(
            texts=(checked_text(text),),
            add_special_tokens=flag(body, "add_special_tokens", default=False),
            truncation=truncation_of(
                body,
                max_model_len=self.max_model_len,
                answer_tokens=answer_tokens(body, is_chat=True, max_model_len=self.max_model_len),
            ),
            cache_salt=cache_salt(body),
        )

    def _template(self, *, with_tools: bool) -> ChatTemplate:
        template = self.templates.get("tool_use") if with_tools else None
        template = template or self.templates.get("default")
        if template is None:
            unavailable("no_template")
        return template


def _check_template(body: Body) -> None:
    if body.get("chat_template") is not None:
        unavailable("request_template")
    # Other engines' name for chat_template_kwargs; vLLM reads nothing of it.
    others = body.get("chat_template_args")
    if isinstance(others, dict) and others.get("chat_template") is not None:
        unavailable("request_template")
    if optional_mapping(body, "kv_transfer_params").get("prompt_token_ids") is not None:
        unavailable("handover")


def _check_size(messages: list[Message]) -> None:
    """Refuse before rendering what would be refused after it."""
    chars = 0
    for message in messages:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        chars += sum(map(len, parts))
        if chars > limits.PROMPT_CHARS_MAX:
            unavailable("too_long")


def _render(
    template: ChatTemplate,
    messages: list[Message],
    variables: Mapping[str, Any],
    *,
    continues: bool,
) -> str:
    if not continues:
        return template.render({**variables, "messages": messages})
    if not template.mentions_content:
        unavailable("refused")
    final, tagged = _tagged(messages[-1])
    text = template.render({**variables, "messages": [*messages[:-1], tagged]})
    end = text.rfind(_TAG.strip())
    if end < 0 or final.strip() not in text:
        unavailable("refused")
    # A template that trims contents took the tag's blank, so it would have trimmed this end, too.
    return text[:end] if text.startswith(_TAG, end) else text[:end].rstrip()


def _tagged(message: Message) -> tuple[str, Message]:
    """Give the final text of a message, and the message with the tag behind that text."""
    content = message["content"]
    if isinstance(content, str):
        return content, {**message, "content": content + _TAG}
    last = next((i for i in reversed(range(len(content))) if "text" in content[i]), None)
    if last is None:
        unavailable("refused")
    text: str = content[last]["text"]
    parts = [*content[:last], {**content[last], "text": text + _TAG}, *content[last + 1 :]]
    return text, {**message, "content": parts}

"""What a template reads besides the messages: the client's variables, tools, documents, switches.

Source: vLLM 0.32 and Hugging Face's apply_chat_template, measured; see
tests/unit/test_prompt_variables.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.prompt.fields import Body, flag, optional_mapping
from kvatlas.common.prompt.lax import check_numbers
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.prompt.template import ChatTemplate
from kvatlas.common.prompt.tools import Json

_UNSET: Final = (None, "auto")
"""Values of the client that count as not given."""
_REFUSED: Final = frozenset({"model_config", "tokenizer", "conversation", "self"})
"""Names that clash with arguments within the engine."""
# What apply_chat_template takes itself: it does not reach the template, and has no effect on a
# prompt that is tokenized later.
_SWALLOWED: Final = frozenset({
    "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "tokenize", "chat_template",
    "continue_final_message", "tools", "documents", "add_generation_prompt",
})  # fmt: skip
_TEXTS: Final = frozenset({"messages", "prompt", "input", "system"})
"""Members that become messages, or a prompt as it is."""
_EFFORTS: Final = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})


@dataclass(frozen=True, slots=True)
class ChatVariables:
    """The variables of one request.

    Attributes:
        tools: as the template sees them; None where there are none.
        documents: alike.
        generates: whether the template shall open the answer.
        continues: whether the last message stays open.
        others: names that the client, or the engine's operator, has given a value.
    """

    tools: list[Any] | None
    documents: Any
    generates: bool
    continues: bool
    others: Mapping[str, Any]

    def seen_by(self, template: ChatTemplate, special_tokens: Mapping[str, str]) -> dict[str, Any]:
        """Give what a template sees: of what the client names only what the template reads.

        Raises:
            PromptUnavailable: the engine would refuse it.
        """
        if "messages" in self.others and "messages" in template.variables:
            unavailable("refused")
        read = {name: self.others[name] for name in self.others if name in template.variables}
        return {
            **special_tokens,
            **read,
            "tools": self.tools,
            "documents": self.documents,
            "add_generation_prompt": self.generates,
        }


def chat_variables(
    body: Body, tools: list[Json] | None, defaults: Mapping[str, Any]
) -> ChatVariables:
    """Read the variables of a request.

    Args:
        body: of the request.
        tools: those on offer; `chat_template_kwargs` of the client may replace them.
        defaults: `--default-chat-template-kwargs` of the engine, weaker than the client's.

    Raises:
        PromptUnavailable: the engine would refuse them.
    """
    generates = flag(body, "add_generation_prompt", default=True)
    continues = flag(body, "continue_final_message", default=False)
    if continues and generates:
        unavailable("refused")
    wanted = dict(optional_mapping(body, "chat_template_kwargs"))
    check_numbers(wanted)
    if wanted.get("chat_template") is not None:
        unavailable("request_template")
    effort = body.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in _EFFORTS:
            unavailable("refused")
        wanted["reasoning_effort"] = effort
        wanted.setdefault("enable_thinking", effort != "none")
    documents = _documents(body)
    if documents is not None:
        wanted["documents"] = documents
    given = {name: value for name, value in wanted.items() if value not in _UNSET}
    offered = {} if tools is None else {"tools": tools}
    merged = {**defaults, **offered, **given}
    _check(merged)
    return ChatVariables(
        tools=_tools(merged.get("tools")),
        documents=_checked_documents(merged.get("documents")),
        generates=generates,
        continues=continues,
        others={name: value for name, value in merged.items() if name not in _SWALLOWED},
    )


def check_variables_size(body: Body) -> None:
    """Refuse a body that has templates write out more than messages, before they do.

    Args:
        body: of a request; what is said in its messages has a bound of its own.

    Raises:
        PromptUnavailable: it is too long.
    """
    left = limits.VARIABLES_CHARS_MAX
    messages = body.get("messages")
    waiting = [value for name, value in body.items() if name not in _TEXTS]
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            waiting += [value for name, value in message.items() if name != "content"]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        # What is no text takes a few characters, too.
        left -= len(value) + 1 if isinstance(value, str) else 8
        if left < 0:
            unavailable("too_long")


def _check(merged: Mapping[str, Any]) -> None:
    if not _REFUSED.isdisjoint(merged) or merged.get("return_assistant_tokens_mask"):
        unavailable("refused")
    if merged.get("tokenize"):
        # The template's text is then tokenized by other code, with options of its own.
        unavailable("unsure")


def _documents(body: Body) -> list[Any] | None:
    """Read the request's own field, whose documents hold nothing but strings."""
    documents = body.get("documents")
    if documents is None:
        return None
    if not isinstance(documents, list):
        unavailable("refused")
    for document in documents:
        if not isinstance(document, dict) or not all(
            isinstance(value, str) for value in document.values()
        ):
            unavailable("refused")
    return documents


def _checked_documents(documents: Any) -> Any:
    if documents is not None and not all(isinstance(item, dict) for item in _items(documents)):
        unavailable("refused")
    return documents


def _tools(tools: Any) -> list[Any] | None:
    if tools is None:
        return None
    listed = _items(tools)
    if not all(isinstance(item, dict) for item in listed):
        unavailable("refused")
    return listed


def _items(value: Any) -> list[Any]:
    """List what a loop over a client's value runs over."""
    if not isinstance(value, list | dict | str):
        unavailable("refused")
    return list(value)

"""Why a request has no token ids here: a closed set of words, each of them a metric label."""

from __future__ import annotations

from typing import Literal, NoReturn, get_args

from kvatlas.common.errors import PromptUnavailable

Reason = Literal[
    "refused",  # the engine answers 400 to it; let it say so itself
    "multimodal",  # images, audio, video: tokens come from a processor that is not here
    "request_template",  # a template in the body is never rendered here
    "handover",  # the body brings its own token ids for a chat
    "prompt_embeds",
    "own_renderer",  # the engine renders this model with code, not with a template
    "harmony",  # alike, and not even the engine's /tokenize does as its chats do (gpt-oss)
    "no_template",
    "template_error",
    "template_refused",  # it holds what no chat needs, and nobody vouches for it
    "template_killed",  # it took too long, or too much memory, in its process
    "template_busy",  # none of its processes is free, or they are being started
    "unsure",  # the engine may take it, but how it renders it has not been measured
    "stored",  # it goes on from a response that one engine keeps
    "too_many_messages",
    "too_many_prompts",
    "too_long",
    "encoding",  # a lone surrogate: no UTF-8, hence no tokens
    "tokenizer_error",
    "tokenizer_differs",  # an engine of the model was found to have other token ids
]
REASONS: tuple[Reason, ...] = get_args(Reason)


def unavailable(reason: Reason) -> NoReturn:
    """Give up on the token ids of a request.

    Raises:
        PromptUnavailable: always.
    """
    raise PromptUnavailable(reason)

"""A request body becomes the token ids that the engine will see.

`PromptBuilder.prepare` normalises and renders (`chat`, `messages`, `tools`, `template`,
`completion`; before it `anthropic` and `responses`), `PromptBuilder.tokenize` gives token ids
(`tokenizer`). Router, simulator and `kvatlas render` share this code.
"""

from kvatlas.common.prompt.builder import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    MESSAGES_PATH,
    PROMPT_PATHS,
    RESPONSES_PATH,
    PromptBuilder,
)
from kvatlas.common.prompt.demo import demo_model_path
from kvatlas.common.prompt.fetch import fetch_tokenizer
from kvatlas.common.prompt.reasons import REASONS, Reason
from kvatlas.common.prompt.rendered import Prompt, Rendered

__all__ = [
    "CHAT_PATH",
    "COMPLETIONS_PATH",
    "MESSAGES_PATH",
    "PROMPT_PATHS",
    "REASONS",
    "RESPONSES_PATH",
    "Prompt",
    "PromptBuilder",
    "Reason",
    "Rendered",
    "demo_model_path",
    "fetch_tokenizer",
]

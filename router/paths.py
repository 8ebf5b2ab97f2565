"""Which paths there are beside those that become prompts. Pure."""

from __future__ import annotations

from typing import Final

from kvatlas.common.prompt import MESSAGES_PATH, PROMPT_PATHS
from kvatlas.common.settings import RouterSettings

COUNT_TOKENS_PATH: Final = f"{MESSAGES_PATH}/count_tokens"
TOKENIZE_PATHS: Final = ("/tokenize", "/detokenize")


def posted_paths(router: RouterSettings) -> tuple[str, ...]:
    """List the paths that take requests for engines; all others lead nowhere."""
    tokenize = TOKENIZE_PATHS if router.tokenize_paths else ()
    always = (*PROMPT_PATHS, COUNT_TOKENS_PATH)
    return (*always, *tokenize, *dict.fromkeys(router.load_paths))

"""Which paths there are beside those that become prompts. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, get_args

from kvatlas.common import limits
from kvatlas.common.prompt import MESSAGES_PATH, PROMPT_PATHS
from kvatlas.common.setting_sections import LoadPath
from kvatlas.common.settings import RouterSettings

COUNT_TOKENS_PATH: Final = f"{MESSAGES_PATH}/count_tokens"
TOKENIZE_PATHS: Final = ("/tokenize", "/detokenize")

GATEWAY_PATHS: Final = (
    *get_args(LoadPath), *TOKENIZE_PATHS, "/v1/conversations", "/v1/images/generations",
    "/v1/chat/completions/render", "/v1/completions/render", "/inference/v1/generate",
)  # fmt: skip
"""Further paths that a gateway may send us: they go by load. What clients reach is for its routes
to say."""


def posted_paths(router: RouterSettings) -> tuple[str, ...]:
    """List the paths that take requests for engines; all others lead nowhere."""
    tokenize = TOKENIZE_PATHS if router.tokenize_paths else ()
    always = (*PROMPT_PATHS, COUNT_TOKENS_PATH)
    return (*always, *tokenize, *dict.fromkeys(router.load_paths))


@lru_cache(maxsize=limits.PATHS_KNOWN_MAX)
def gateway_path(path: str) -> str | None:
    """Find the path that one behind a gateway's prefix ends with, the longest one; None for none.

    Args:
        path: without the query.
    """
    known = (*PROMPT_PATHS, COUNT_TOKENS_PATH, *GATEWAY_PATHS)
    return max((each for each in known if path.endswith(each)), key=len, default=None)

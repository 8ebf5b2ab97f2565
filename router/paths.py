"""Which paths there are beside those that become prompts. Pure."""

from __future__ import annotations

from typing import Final

from kvatlas.common.prompt import MESSAGES_PATH

COUNT_TOKENS_PATH: Final = f"{MESSAGES_PATH}/count_tokens"

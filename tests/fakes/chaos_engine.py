"""An engine that has a chat cached beside its random prompts, and answers HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder
from tests.fakes.block_fleet import MODEL, SIZE, BlockEngine
from tests.fakes.publisher import removed, stored
from tests.fakes.upstream import Upstream

CHAT_HASHES = 1 << 40
"""Engine hashes of the cached chat begin here; those of other prompts count from 1."""


@dataclass
class ChaosEngine(BlockEngine):
    """An engine that has a chat cached as well, and answers HTTP.

    Attributes:
        chat: body of the chat.
        chat_tokens: its full blocks' token ids; empty while it is not cached.
    """

    chat: dict[str, Any] = field(default_factory=dict)
    chat_tokens: list[int] = field(default_factory=list)
    upstream: Upstream | None = None

    async def cache_chat(self, canary: str, builder: PromptBuilder, number: int) -> None:
        """Compute a chat and announce it; it differs from other engines' in its first block."""
        words = f"{chr(ord('A') + number % 26)} {self.name} {canary} " * 3
        self.chat = {
            "model": MODEL,
            "messages": [{"role": "user", "content": words}],
            "cache_salt": canary,
            "user": canary,
            "chat_template_kwargs": {"note": canary},
        }
        ids = list(builder.tokenize(builder.prepare(CHAT_PATH, self.chat)).sequences[0])
        self.chat_tokens = ids[: len(ids) // SIZE * SIZE]
        await self.publisher.publish(self.chat_event())

    def chat_event(self) -> dict[str, Any]:
        """Write the event that announces the chat."""
        count = len(self.chat_tokens) // SIZE
        hashes = [CHAT_HASHES + number for number in range(count)]
        extras = [[self.chat["cache_salt"]], *[None] * (count - 1)]
        return stored(hashes, list(self.chat_tokens), extra_keys=extras)

    def blocks(self) -> set[BlockHash]:
        """List what it holds, by our hashes."""
        return super().blocks() | set(self.chat_chain() if self.chat_tokens else [])

    def prompt_chain(self, number: int) -> list[BlockHash]:
        """Give the blocks of a prompt, by our hashes."""
        return chain(root_hash(MODEL, SIZE), self.prompts[number][0], SIZE)

    def chat_chain(self) -> list[BlockHash]:
        """Give the chat's blocks, by our hashes."""
        extras = [(self.chat["cache_salt"],)]
        return chain(root_hash(MODEL, SIZE), self.chat_tokens, SIZE, extras)

    async def drop_oldest(self) -> None:
        """Evict a chain, tail first."""
        _, hashes = self.prompts.pop(0)
        await self.publisher.publish(removed(*reversed(hashes)))

    async def take(self, other: ChaosEngine) -> None:
        """Compute the newest chain of another engine, too."""
        tokens = list(other.prompts[-1][0])
        count = len(tokens) // SIZE
        hashes = list(range(self.next_hash, self.next_hash + count))
        self.next_hash += count
        self.prompts.append((tokens, hashes))
        await self.publisher.publish(stored(list(hashes), list(tokens)))

    def lose_all(self) -> None:
        """Hold nothing any more."""
        self.prompts.clear()
        self.chat_tokens = []

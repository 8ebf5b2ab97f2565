"""Texts that stand for a trace's ids: equal ids, equal words; a word is one token. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import shake_256

import orjson

from bench.routing.trace import Arrival


class PromptMaker:
    """Write prompts as text.

    Args:
        words: each one token to the model's tokenizer, also side by side.
        tokens_per_id: words that an id stands for.
    """

    def __init__(self, words: Sequence[str], tokens_per_id: int) -> None:
        self._words = words
        self._tokens_per_id = tokens_per_id
        self._known: dict[int, list[str]] = {}

    def text(self, ids: Sequence[int], tokens: int) -> str:
        """Write the text of so many tokens that begins with what the ids stand for."""
        words = [word for each in ids for word in self._words_of(each)]
        assert len(words) >= tokens, "a prompt longer than its ids"
        return "".join(words[:tokens])

    def _words_of(self, block: int) -> list[str]:
        if block not in self._known:
            drawn = array("H", shake_256(b"%d" % block).digest(2 * self._tokens_per_id))
            self._known[block] = [self._words[number % len(self._words)] for number in drawn]
        return self._known[block]

    def chat(self, model: str, arrival: Arrival) -> bytes:
        """Write the body of a streamed chat whose only message is the prompt."""
        text = self.text(arrival.ids, arrival.prompt_tokens)
        return orjson.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": arrival.answer_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )

"""What passes between the stages: text or ids as the engine takes them, then token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Truncation:
    """What is kept of a sequence that is too long.

    Attributes:
        keep: tokens to keep.
        side: the end at which tokens go. Named by the client, it cuts the special tokens that the
            tokenizer added as well; None cuts at the left and leaves those.
    """

    keep: int
    side: Literal["left", "right"] | None


@dataclass(frozen=True, slots=True)
class Rendered:
    """A request as the engine's tokenizer takes it. Either `texts` or `token_ids` is empty.

    Attributes:
        texts: one per sub-prompt.
        token_ids: given by the client (completions only), one sequence per sub-prompt.
        add_special_tokens: whether the tokenizer adds its own, such as a BOS; texts only.
        truncation: what is kept of each sequence, or None.
        cache_salt: the client's, part of the identity of the first block.
    """

    texts: tuple[str, ...]
    token_ids: tuple[Sequence[int], ...] = ()
    add_special_tokens: bool = False
    truncation: Truncation | None = None
    cache_salt: str | None = None

    @property
    def chars(self) -> int:
        """Count the characters to tokenize, to choose between here and a thread."""
        return sum(map(len, self.texts))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids that the engine will see.

    Attributes:
        sequences: one per sub-prompt; a router matches the first.
        cache_salt: the client's, part of the identity of the first block.
    """

    sequences: tuple[Sequence[int], ...]
    cache_salt: str | None = None

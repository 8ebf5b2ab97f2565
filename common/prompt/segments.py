"""Text falls into segments at added tokens, and the ids of a segment are worth keeping.

The turns of a chat come back with every further turn, and templates set them between tokens such
as `<|im_end|>`. `tokenizers` cuts a text at those first, so that what stands between two of them
is normalised and tokenized by itself. That is exact only where no token's match reaches beyond
its own characters: `splitter_of` says for which tokenizers.
"""

from __future__ import annotations

import json
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Lock
from typing import Final

import tokenizers

from kvatlas.common import limits

_Encode = Callable[[Sequence[str]], list[list[int]]]
_BYTES_PER_ID: Final = 8
"""Of a list; the numbers themselves are shared or counted with the entry's overhead."""
_ENTRY_BYTES: Final = 200


def splitter_of(tokenizer: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """Give the pattern that starts a segment, None where segments depend on their neighbours.

    They do where an added token takes white space around it (`lstrip`, `rstrip`) or only matches
    whole words, and where there is no token to cut at. A tokenizer that treats the start of the
    whole text differently is no hindrance: a segment begins with its token.
    """
    added = json.loads(tokenizer.to_str())["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
        return None
    exact = [token["content"] for token in added if not token["normalized"] and token["content"]]
    if not exact:
        return None
    # The longest of those that begin at the same place wins, in the library as well.
    words = sorted(exact, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)))


class SegmentCache:
    """Encode texts segment by segment, remembering the ids of segments; thread-safe.

    Args:
        splitter: where a segment starts.
        encode: encodes texts without adding special tokens.
        bytes_max: estimated memory of all entries; the least recently used go first.
    """

    def __init__(self, splitter: re.Pattern[str], encode: _Encode, bytes_max: int) -> None:
        self._splitter = splitter
        self._encode = encode
        self._bytes_max = bytes_max
        self._entries: OrderedDict[str, list[int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def bytes_used(self) -> int:
        """Estimate the memory of all entries."""
        return self._bytes

    def encode(self, text: str) -> list[int]:
        """Encode a text without adding special tokens."""
        segments = self._segments(text)
        known = self._recall(segments)
        missing = list(dict.fromkeys(s for s in segments if s not in known))
        if missing:
            learned = dict(zip(missing, self._encode(missing), strict=True))
            self._keep(learned)
            known |= learned
        return [token for segment in segments for token in known[segment]]

    def _segments(self, text: str) -> list[str]:
        starts = [match.start() for match in self._splitter.finditer(text)]
        edges = [0, *(start for start in starts if start), len(text)]
        return [text[start:end] for start, end in pairwise(edges) if start < end]

    def _recall(self, segments: Sequence[str]) -> dict[str, list[int]]:
        known = {}
        with self._lock:
            for segment in segments:
                ids = self._entries.get(segment)
                if ids is not None:
                    self._entries.move_to_end(segment)
                    known[segment] = ids
        return known

    def _keep(self, learned: dict[str, list[int]]) -> None:
        with self._lock:
            for segment, ids in learned.items():
                size = _bytes_of(segment, ids)
                if size > limits.SEGMENT_BYTES_MAX or segment in self._entries:
                    continue
                self._entries[segment] = ids
                self._bytes += size
            while self._bytes > self._bytes_max:
                segment, ids = self._entries.popitem(last=False)
                self._bytes -= _bytes_of(segment, ids)


def _bytes_of(segment: str, ids: list[int]) -> int:
    return sys.getsizeof(segment) + _BYTES_PER_ID * len(ids) + _ENTRY_BYTES

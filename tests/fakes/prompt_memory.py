"""How much memory tokenizing takes, in a process of its own: FOLDER THREADS MILLIONS_OF_CHARS.

Prints JSON: resident megabytes after loading, and after each tenth of the text. No word comes
twice; a part is words of ordinary length, a part words that are far too long.
"""

from __future__ import annotations

import json
import os
import random
import string
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvatlas.common.prompt import CHAT_PATH, PromptBuilder
from kvatlas.common.prompt.memory import give_back
from kvatlas.common.settings import ModelSettings

ROUND_CHARS = 160_000


def resident_mb() -> int:
    """Tell the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def text_of(chance: random.Random, chars: int) -> str:
    """Write a text of new words."""
    words, size = [], 0
    while size < chars:
        draw = chance.random()
        if draw < 0.7:
            word = "".join(chance.choices(string.ascii_lowercase, k=chance.randint(3, 10)))
        elif draw < 0.99:
            word = "".join(chr(chance.randint(0x4E00, 0x9FFF)) for _ in range(chance.randint(2, 8)))
        else:
            word = "".join(chance.choices(string.ascii_letters, k=400))
        words.append(word)
        size += len(word) + 1
    return " ".join(words)


def main() -> None:
    """Tokenize, and tell."""
    folder, threads, millions = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    builder = PromptBuilder.load(ModelSettings(name="m", tokenizer=folder))
    builder.warm()
    give_back()
    seen = [resident_mb()]
    chance = random.Random(7)
    rounds = max(10, int(millions * 1e6 / ROUND_CHARS))

    def tokens_of(text: str) -> int:
        body = {"messages": [{"role": "user", "content": text}]}
        return len(builder.tokenize(builder.prepare(CHAT_PATH, body)).sequences[0])

    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds):
            texts = [text_of(chance, ROUND_CHARS // 8) for _ in range(8)]
            assert all(pool.map(tokens_of, texts))
            if (number + 1) % (rounds // 10) == 0:
                seen.append(resident_mb())
    sys.stdout.write(json.dumps({"kind": builder.tokenizer_kind, "resident_mb": seen}))


if __name__ == "__main__":
    main()

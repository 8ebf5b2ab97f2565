"""What a prompt costs: render and tokenize at three lengths, both libraries, and the GIL.

    python bench/prompt.py [MODEL_FOLDER]

Each figure is the best of several runs. The stall is the longest time for which another thread
stood still while one long text was tokenized: small where the GIL is released.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fastokens
import tokenizers
from rich.console import Console
from rich.table import Table

from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings

SIZES_TOKENS = (1_000, 10_000, 100_000)
STALL_CHARS = 1_000_000
RUNS = 5
TICK_S = 0.000_2


def main() -> int:
    """Print both tables."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_model_path()
    builder = PromptBuilder.load(ModelSettings(name="bench", tokenizer=str(folder)))
    builder.warm()
    source = (folder / "tokenizer.json").read_text(encoding="utf-8")
    fast = fastokens.Tokenizer.from_json_str(source)
    slow = tokenizers.Tokenizer.from_str(source)
    encoders: dict[str, Callable[[str], list[int]]] = {
        "fastokens encode": lambda text: fast.encode(text).ids,
        "tokenizers encode_batch_fast": lambda text: (
            slow.encode_batch_fast([text], add_special_tokens=False)[0].ids
        ),
        "tokenizers encode": lambda text: slow.encode(text, add_special_tokens=False).ids,
    }
    text = _code()
    print(f"{folder.name}: in use is {builder.tokenizer_kind}")
    Console().print(_costs(builder, encoders, text))
    Console().print(_stalls(encoders, text))
    return 0


def _code() -> str:
    """Give a long and varied text: the source of the packages that we use."""
    files = sorted(Path(tokenizers.__file__).parents[1].glob("*/*.py"))
    parts: list[str] = []
    chars = 0
    for file in files:
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        chars += len(parts[-1])
        if chars > 2 * STALL_CHARS:
            break
    return "".join(parts)


def _costs(
    builder: PromptBuilder, encoders: dict[str, Callable[[str], list[int]]], text: str
) -> Table:
    table = Table("ms", *(f"{size:,} tokens" for size in SIZES_TOKENS), "ratio at most")
    ids = builder.encode_text(text, add_special_tokens=False)
    texts = [builder.decode(ids[:size]) for size in SIZES_TOKENS]
    chats = [_chat(text) for text in texts]
    renders = [_best(partial(builder.prepare, CHAT_PATH, chat)) for chat in chats]
    table.add_row("render", *map(_ms, renders), "")
    base: list[float] = []
    for name, encode in encoders.items():
        times = [_best(partial(encode, text)) for text in texts]
        base = base or times
        ratio = max(mine / first for mine, first in zip(times, base, strict=True))
        table.add_row(name, *map(_ms, times), f"{ratio:.0f}x")
    return table


def _chat(text: str) -> dict[str, object]:
    """Make a chat of ten turns out of a text."""
    step = len(text) // 10 + 1
    roles = ("user", "assistant")
    return {
        "model": "bench",
        "messages": [
            {"role": roles[i % 2], "content": text[i * step : (i + 1) * step]} for i in range(10)
        ],
    }


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _stalls(encoders: dict[str, Callable[[str], list[int]]], text: str) -> Table:
    table = Table(f"{STALL_CHARS:,} characters", "takes, ms", "other threads stall, ms")
    for name, encode in encoders.items():
        took, stall = _stall(partial(encode, text[:STALL_CHARS]))
        table.add_row(name, _ms(took), _ms(stall))
    return table


def _stall(work: Callable[[], object]) -> tuple[float, float]:
    """Run work in a thread and give how long it took and the longest gap between our own ticks."""
    thread = threading.Thread(target=work)
    start = last = time.perf_counter()
    longest = 0.0
    thread.start()
    while thread.is_alive():
        time.sleep(TICK_S)
        tick = time.perf_counter()
        longest, last = max(longest, tick - last), tick
    return time.perf_counter() - start, longest


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


if __name__ == "__main__":
    sys.exit(main())

"""What a prompt costs: from a chat's body to the hashes of its blocks, and beside it the bare way.

    python bench/prompt.py [MODEL_FOLDER] [--json FILE]

A cold chat holds text that no cache has seen; a growing one is a chat seen before and one more
turn. The bare way compiles the template for each request and tokenizes with `tokenizers` as it
comes. Figures are the best of several chats, each of them measured once. The stall is the longest
time for which another thread stood still while one long text was tokenized: small where the GIL
is released. The growth is of this process's memory over texts that are never seen twice.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import fastokens
import tokenizers
from rich.console import Console
from rich.table import Table

from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.prompt.folder import ModelFolder
from kvatlas.common.prompt.template import ChatTemplate
from kvatlas.common.settings import ModelSettings

SIZES_TOKENS = (1_000, 10_000, 100_000)
GOALS_MS = {"cold": {10_000: 1.0, 100_000: 6.0}, "one more turn": {10_000: 0.5}}
BLOCK_SIZE = 16
TURN_TOKENS = 1_000
CHATS = 15
BARE_CHATS = 3
STALL_CHARS = 1_000_000
GROWTH_CHARS = 40_000_000
PAGE_BYTES = 4_096
TICK_S = 0.000_2
Chat = dict[str, Any]
Row = dict[int, float]


@dataclass(frozen=True, slots=True)
class Model:
    """What is measured.

    Attributes:
        builder: the product's way.
        source: of the template.
        bare: the library by itself.
        chars_per_token: of the text that chats are made of.
    """

    builder: PromptBuilder
    source: str
    bare: tokenizers.Tokenizer
    chars_per_token: float


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=demo_model_path())
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    text = _code()
    model = _load(options.folder, text)
    print(f"{options.folder.name}: in use is {model.builder.tokenizer_kind}")
    rows = _measure(model, text)
    Console().print(_table(rows))
    stalls = _stalls(options.folder, text)
    Console().print(_stall_table(stalls))
    growth = _growth(model.builder)
    print(f"{GROWTH_CHARS:,} characters of words never seen twice: memory grew by {growth:.0f} MB")
    if options.json:
        figures = {"ms": rows, "stalls_ms": stalls, "growth_mb": growth, "goals_ms": GOALS_MS}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _load(folder: Path, text: str) -> Model:
    builder = PromptBuilder.load(ModelSettings(name="bench", tokenizer=str(folder)))
    builder.warm()
    files = ModelFolder.read(folder)
    sample = text[: len(text) // 10]
    tokens = len(builder.encode_text(sample, add_special_tokens=False))
    return Model(
        builder=builder,
        source=files.templates["default"],
        bare=tokenizers.Tokenizer.from_str(files.tokenizer_json),
        chars_per_token=len(sample) / tokens,
    )


def _code() -> str:
    """Give a long and varied text: the source of the packages that we use."""
    files = sorted(Path(tokenizers.__file__).parents[1].glob("*/*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def _chats(model: Model, text: str, tokens: int, seed: str) -> Iterator[Chat]:
    """Make chats of ten turns or more, of lines in an order that comes once."""
    lines = text.splitlines(keepends=True)
    rng = random.Random(seed)
    turns = max(10, tokens // TURN_TOKENS)
    chars = int(tokens / turns * model.chars_per_token)
    while True:
        messages = []
        for turn in range(turns | 1):
            content = ""
            while len(content) < chars:
                at = rng.randrange(len(lines) - 50)
                content += "".join(lines[at : at + 50])
            messages.append(
                {"role": "assistant" if turn % 2 else "user", "content": content[:chars]}
            )
        yield {"model": "bench", "messages": messages}


def _measure(model: Model, text: str) -> dict[str, Row]:
    rows: dict[str, Row] = {name: {} for name in ("cold", "one more turn", "bare", "ratio")}
    rows |= {f"cold: {step}": {} for step in ("render", "tokenize", "hash")}
    for size in SIZES_TOKENS:
        chats = _chats(model, text, size, f"cold {size}")
        steps = [_steps(model.builder, chat) for chat in islice(chats, CHATS)]
        rows["cold"][size] = min(map(sum, steps))
        for name, times in zip(
            ("render", "tokenize", "hash"), zip(*steps, strict=True), strict=True
        ):
            rows[f"cold: {name}"][size] = min(times)
        grown = list(islice(_chats(model, text, size, f"grown {size}"), CHATS))
        for chat in grown:
            _steps(model.builder, {**chat, "messages": chat["messages"][:-2]})
        rows["one more turn"][size] = min(sum(_steps(model.builder, chat)) for chat in grown)
        bare = islice(_chats(model, text, size, f"bare {size}"), BARE_CHATS)
        rows["bare"][size] = min(_timed(partial(_bare, model, chat)) for chat in bare)
        rows["ratio"][size] = rows["bare"][size] / rows["cold"][size]
    return rows


def _steps(builder: PromptBuilder, chat: Chat) -> tuple[float, float, float]:
    """Render, tokenize and hash; give the milliseconds of each."""
    begun = time.perf_counter()
    rendered = builder.prepare(CHAT_PATH, chat)
    after_render = time.perf_counter()
    [ids] = builder.tokenize(rendered).sequences
    after_tokens = time.perf_counter()
    chain(root_hash(ModelName("bench"), BLOCK_SIZE), ids, BLOCK_SIZE)
    ended = time.perf_counter()
    return (
        (after_render - begun) * 1e3,
        (after_tokens - after_render) * 1e3,
        (ended - after_tokens) * 1e3,
    )


def _bare(model: Model, chat: Chat) -> None:
    template = ChatTemplate.compile(model.source, "bench")
    text = template.render({**chat, "tools": None, "add_generation_prompt": True})
    ids = model.bare.encode(text, add_special_tokens=False).ids
    chain(root_hash(ModelName("bench"), BLOCK_SIZE), ids, BLOCK_SIZE)


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


def _table(rows: dict[str, Row]) -> Table:
    table = Table("ms, render + tokenize + hash", *(f"{size:,} tokens" for size in SIZES_TOKENS))
    for name, row in rows.items():
        goals = GOALS_MS.get(name, {})
        cells = []
        for size, value in row.items():
            unit = f"{value:.0f}x" if name == "ratio" else f"{value:.2f}"
            cells.append(f"{unit} (goal {goals[size]})" if size in goals else unit)
        table.add_row(name, *cells)
    return table


def _stalls(folder: Path, text: str) -> dict[str, tuple[float, float]]:
    source = (folder / "tokenizer.json").read_text(encoding="utf-8")
    slow = tokenizers.Tokenizer.from_str(source)
    encoders: dict[str, Callable[[str], object]] = {
        "tokenizers encode_batch_fast": lambda text: slow.encode_batch_fast([text]),
        "tokenizers encode": slow.encode,
    }
    try:
        encoders["fastokens encode"] = fastokens.Tokenizer.from_json_str(source).encode
    except ValueError:
        print("fastokens does not read this tokenizer")
    piece = text[:STALL_CHARS]
    return {name: _stall(partial(encode, piece)) for name, encode in encoders.items()}


def _stall(work: Callable[[], object]) -> tuple[float, float]:
    """Run work in a thread; give how long it took and the longest gap between our own ticks."""
    thread = threading.Thread(target=work)
    start = last = time.perf_counter()
    longest = 0.0
    thread.start()
    while thread.is_alive():
        time.sleep(TICK_S)
        tick = time.perf_counter()
        longest, last = max(longest, tick - last), tick
    return (time.perf_counter() - start) * 1e3, longest * 1e3


def _stall_table(stalls: dict[str, tuple[float, float]]) -> Table:
    table = Table(f"{STALL_CHARS:,} characters", "takes, ms", "other threads stall, ms")
    for name, (took, stall) in stalls.items():
        table.add_row(name, f"{took:.1f}", f"{stall:.1f}")
    return table


def _growth(builder: PromptBuilder) -> float:
    """Give the megabytes by which memory grows over varied text; zero where it cannot be read."""
    rng = random.Random("growth")
    letters = "abcdefghijklmnopqrstuvwxyzäöüß你好世界"
    before = _resident_mb()
    chars = 0
    while chars < GROWTH_CHARS:
        words = ("".join(rng.choices(letters, k=rng.randrange(3, 12))) for _ in range(10_000))
        text = " ".join(words)
        builder.encode_text(text, add_special_tokens=False)
        chars += len(text)
    return _resident_mb() - before


def _resident_mb() -> float:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * PAGE_BYTES / 1e6 if statm.exists() else 0.0


if __name__ == "__main__":
    sys.exit(main())

"""Tokenizing in threads: the other threads go on, and every thread gets its own text's ids."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import normalizers

from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.prompt.tokenizer import Tokenizer
from kvatlas.common.settings import ModelSettings


def demo_json(*, supported: bool) -> str:
    """Give the demo tokenizer, or one like it that fastokens cannot read."""
    library = Library.from_file(str(demo_model_path() / "tokenizer.json"))
    if not supported:
        library.normalizer = normalizers.BertNormalizer()
    return library.to_str()


@pytest.mark.parametrize("kind", ["fastokens", "tokenizers"])
def test_other_threads_go_on(kind: str) -> None:
    """While a long text is tokenized, this thread keeps counting: the GIL is free."""
    tokenizer = Tokenizer.from_json(demo_json(supported=kind == "fastokens"), "test")
    assert tokenizer.kind == kind
    # About as much work for either: one library takes some thirty times as long as the other.
    chars = 1_000_000 if kind == "fastokens" else 50_000
    text = "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(chars))
    thread = Thread(target=lambda: tokenizer.encode([text], add_special_tokens=False))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
    # With the GIL held, this thread would get a turn or two before and after.
    assert turns > 100


def test_threads_do_not_mix_up(tmp_path: Path) -> None:
    """Many requests at once give what each gives alone."""
    (tmp_path / "tokenizer.json").write_text(demo_json(supported=True))
    (tmp_path / "chat_template.jinja").write_text(
        (demo_model_path() / "chat_template.jinja").read_text()
    )
    builder = PromptBuilder.load(ModelSettings(name="m", tokenizer=str(tmp_path)))
    bodies = [
        {"messages": [{"role": "user", "content": f"{number} " * (number + 1)}]}
        for number in range(200)
    ]

    def ids(body: Mapping[str, object]) -> list[int]:
        return list(builder.tokenize(builder.prepare(CHAT_PATH, body)).sequences[0])

    alone = [ids(body) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ids, bodies)) == alone

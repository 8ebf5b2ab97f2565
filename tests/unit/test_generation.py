"""What a simulated engine says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from kvatlas.common.prompt import PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings
from kvatlas.simulator.generation import Piece, Vocabulary, Wish, answer, find_vocabulary

PROMPT = [5, 6, 7]
WISH = Wish(index=0, limit=40, natural_end=False, opening=True)


@cache
def prompts() -> PromptBuilder:
    """Load the demo model once."""
    return PromptBuilder.load(ModelSettings(name="demo", tokenizer=str(demo_model_path())))


@cache
def vocabulary() -> Vocabulary:
    """Find the demo model's words once."""
    return find_vocabulary(prompts().vocab_size, prompts().decode, encode)


def encode(text: str) -> list[int]:
    """Tokenize without special tokens."""
    return prompts().encode_text(text, add_special_tokens=False)


@pytest.mark.parametrize("opening", [True, False])
def test_answers_read_back_as_the_same_tokens(opening: bool) -> None:  # noqa: FBT001 - parametrized
    """Encoding the text of an answer gives its tokens, so a chat goes on with the cached chain."""
    for index in range(50):
        said = answer(vocabulary(), PROMPT, replace(WISH, index=index, opening=opening))
        assert encode("".join(said.texts)) == list(said.tokens)
        assert prompts().decode(said.tokens) == "".join(said.texts)
        assert said.texts[0].startswith(" ") is not opening


def test_answer_depends_on_prompt_and_choice_only() -> None:
    """Equal prompts get equal answers, other prompts or choices others; a longer one goes on."""
    said = answer(vocabulary(), PROMPT, WISH)
    assert said == answer(vocabulary(), list(PROMPT), WISH)
    assert said.tokens != answer(vocabulary(), [5, 6], WISH).tokens
    assert said.tokens != answer(vocabulary(), PROMPT, replace(WISH, index=1)).tokens
    longer = answer(vocabulary(), PROMPT, replace(WISH, limit=60))
    assert longer.tokens[:40] == said.tokens
    assert (len(longer.tokens), longer.finish_reason) == (60, "length")


def test_natural_end_lies_below_the_limit() -> None:
    """An answer that may end by itself does so between 32 tokens and its limit."""
    wish = replace(WISH, limit=256, natural_end=True)
    drawn = [answer(vocabulary(), [n], wish) for n in range(50)]
    assert {said.finish_reason for said in drawn} == {"stop"}
    assert min(len(said.tokens) for said in drawn) >= 32
    assert len({len(said.tokens) for said in drawn}) > 20
    short = answer(vocabulary(), PROMPT, replace(wish, limit=7))
    assert (len(short.tokens), short.finish_reason) == (7, "length")


def test_first_stop_text_wins_even_across_tokens() -> None:
    """The text ends right before the stop text that is complete first."""
    words = Vocabulary((Piece(1, "ab"),), (Piece(2, " cd"),))
    wish = replace(WISH, limit=5, stop=("d c", "cd cd", ""))
    said = answer(words, PROMPT, wish)
    assert said.texts == ("ab", " c", "")
    assert (said.tokens, said.finish_reason, said.stop_reason) == ((1, 2, 2), "stop", "d c")


def test_tokenizer_without_words_still_speaks() -> None:
    """Where no token is a word of its own any token serves."""
    found = find_vocabulary(3, lambda ids: f"<{ids[0]}>", lambda _text: [0, 1])
    assert found.inner == tuple(Piece(n, f"<{n}>") for n in range(3))
    assert found.opening == found.inner

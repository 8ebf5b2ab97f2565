"""The learned line of an endpoint: sane at first, close after few answers, deaf to stalls."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.router.prefill_speed import ANSWERS_LEAST, RATE_SPAN, PrefillSpeed, SpeedOfOne


def learned(rate: float, base: float, answers: int, noise: float = 0.0) -> PrefillSpeed:
    """Let a speed that believes in 8,000 tokens/s see an engine's answers."""
    speed, source = PrefillSpeed(8_000.0), random.Random(7)
    for _ in range(answers):
        tokens = source.randint(16, 8_000)
        factor = 1.0 + source.uniform(-noise, noise)
        speed.observe(tokens, (base + tokens / rate) * factor)
    return speed


def test_it_believes_what_it_is_told_at_first() -> None:
    """Expect the configured rate before the first answer."""
    speed = PrefillSpeed(8_000.0, 0.01)
    assert (speed.tokens_per_s, speed.base_s) == (8_000.0, 0.01)


@pytest.mark.parametrize("rate", [500.0, 2_000.0, 8_000.0, 40_000.0])
def test_it_finds_the_rate(rate: float) -> None:
    """Expect 5 % of it after sixty answers, and the wait beside the tokens about as close."""
    speed = learned(rate, 0.02, 60)
    assert speed.tokens_per_s == pytest.approx(rate, rel=0.05)
    assert speed.base_s == pytest.approx(0.02, abs=0.01 + 0.005 * 8_000 / rate)


def test_it_finds_the_rate_through_noise() -> None:
    """Expect 15 % of it where each answer is up to a third off."""
    assert learned(20_000.0, 0.01, 200, noise=0.3).tokens_per_s == pytest.approx(20_000, rel=0.15)


def test_a_stall_is_no_speed() -> None:
    """Expect one answer after a minute to leave the rate within a third."""
    speed = learned(20_000.0, 0.01, 60)
    speed.observe(4_000, 60.0)
    assert speed.tokens_per_s == pytest.approx(20_000, rel=0.34)


def test_prompts_of_one_length_keep_it_a_line() -> None:
    """Expect equal prompts to be foretold, and a rate that is not absurd."""
    speed = PrefillSpeed(8_000.0)
    for _ in range(100):
        speed.observe(1_000, 0.25)
    assert speed.base_s + 1_000 * speed.token_s == pytest.approx(0.25, rel=0.05)
    assert 2_000 < speed.tokens_per_s < 20_000


def test_prompts_of_one_step_count_together() -> None:
    """Expect the rate of the engine where two come at once."""
    speed = PrefillSpeed(8_000.0)
    for _ in range(100):
        speed.observe(2_000, 0.2, requests=2)
    assert 2_000 * speed.token_s + 2 * speed.base_s == pytest.approx(0.2, rel=0.1)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0.0, 1e6)), max_size=50))
def test_it_stays_within_bounds(answers: list[tuple[int, float]]) -> None:
    """Expect a rate within its span, and no wait below nought, whatever is seen."""
    speed = PrefillSpeed(8_000.0)
    for tokens, seconds in answers:
        speed.observe(tokens, seconds)
        assert 8_000.0 / RATE_SPAN * 0.999 <= speed.tokens_per_s <= 8_000.0 * RATE_SPAN * 1.001
        assert speed.base_s >= 0.0


def test_equals_go_by_what_all_have_shown() -> None:
    """Noise does not tell them apart, a new one knows at once, and an odd one is found out."""
    fleet = PrefillSpeed(8_000.0)
    equals = [SpeedOfOne(fleet, PrefillSpeed(8_000.0)) for _ in range(4)]
    source = random.Random(3)
    for number in range(200):
        tokens = source.randint(100, 8_000)
        equals[number % 4].observe(tokens, tokens / 20_000 * source.uniform(0.9, 1.1))
    new = SpeedOfOne(fleet, PrefillSpeed(8_000.0))
    assert {id(each.line) for each in (*equals, new)} == {id(fleet)}
    assert new.line.tokens_per_s == pytest.approx(20_000, rel=0.1)
    for _ in range(4 * ANSWERS_LEAST):
        new.observe(source.randint(100, 8_000), 4.0)
    assert new.line is not fleet

"""The yardstick of the demo, its load and its table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kvatlas.cli.best_share import Served, best_cached_tokens, percentile
from kvatlas.cli.conversations import Load, conversations
from kvatlas.cli.demo import KVATLAS, Outcome, outcome_of, outcome_table, verdict
from kvatlas.cli.users import Asked

BLOCK = 4


def served(prompt: range, generated: range, start_s: float, finish_s: float) -> Served:
    """Write a request."""
    return Served(list(prompt), list(generated), start_s, finish_s)


def test_nothing_can_be_cached_before_anything_finished() -> None:
    """The first request, and one that starts while it runs, find nothing."""
    both = [served(range(8), range(8, 10), 0, 5), served(range(8), range(8, 10), 4, 6)]
    assert best_cached_tokens(both, BLOCK) == 0


def test_a_finished_prompt_is_found_in_full_blocks() -> None:
    """What is over after the last full block does not count."""
    both = [served(range(11), range(0), 0, 1), served(range(11), range(0), 1, 2)]
    assert best_cached_tokens(both, BLOCK) == 8


def test_the_last_generated_token_is_in_no_cache() -> None:
    """A block that only an answer's last token would fill is not there; with one more it is."""
    follow_up = served(range(20), range(0), 2, 3)
    assert best_cached_tokens([served(range(6), range(6, 8), 0, 1), follow_up], BLOCK) == 4
    assert best_cached_tokens([served(range(6), range(6, 9), 0, 1), follow_up], BLOCK) == 8


def test_a_prefix_counts_from_the_start_only() -> None:
    """Blocks behind a difference do not count, equal as they are."""
    other = Served([99, *range(1, 12)], [], 1, 2)
    assert best_cached_tokens([served(range(12), range(0), 0, 1), other], BLOCK) == 0


def test_caches_are_shared_and_order_of_listing_does_not_matter() -> None:
    """The longest prefix over all earlier requests counts, however they are listed."""
    requests = [
        served(range(12), range(0), 2, 3),
        served(range(4), range(0), 0, 1),
        served(range(8), range(0), 0.5, 1.5),
    ]
    assert best_cached_tokens(requests, BLOCK) == 8


@pytest.mark.parametrize(
    ("share", "expected"), [(0.01, 1.0), (0.5, 2.0), (0.75, 3.0), (0.9, 4.0), (1.0, 4.0)]
)
def test_percentile_is_a_value_that_was_seen(share: float, expected: float) -> None:
    """The smallest value that covers the share is given, never a mean of two."""
    assert percentile([3.0, 1.0, 4.0, 2.0], share) == expected


def test_the_same_seed_says_the_same() -> None:
    """Every policy is asked the same; another seed says something else."""
    load = Load(conversations=6, turns=2, systems=3)
    assert conversations(load) == conversations(load)
    assert conversations(load) != conversations(Load(conversations=6, turns=2, systems=3, seed=2))


def test_system_prompts_are_shared_and_questions_are_not() -> None:
    """Six conversations over three system prompts have three of them and twelve questions."""
    said = conversations(Load(conversations=6, turns=2, systems=3))
    assert len({one.system for one in said}) == 3
    assert len({question for one in said for question in one.questions}) == 12


def asked(start_s: float, cached_tokens: int, endpoint: str) -> Asked:
    """Write a request of eight tokens."""
    return Asked(served(range(9), range(1), start_s, start_s + 1), cached_tokens, 0.1, endpoint)


def test_an_outcome_sums_up_and_lists_idle_engines() -> None:
    """Tokens are summed, and an engine without requests is listed with 0."""
    outcome = outcome_of([asked(0, 0, "a"), asked(2, 8, "a")], ["a", "b"], BLOCK)
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.best_tokens) == (18, 8, 8)
    assert outcome.requests == {"a": 2, "b": 0}
    assert (outcome.share, outcome.best_share, outcome.of_best) == (8 / 18, 8 / 18, 1.0)


def test_the_promise_is_95_percent_of_what_is_possible() -> None:
    """At the promise there is nothing to say; below it both numbers are named."""
    assert verdict(Outcome(2_000, 950, 1_000, [0.1], {})) is None
    assert "94.9%" in (verdict(Outcome(2_000, 949, 1_000, [0.1], {})) or "")
    assert verdict(Outcome(10, 0, 0, [0.1], {})) is None


def test_the_table_fits_and_names_every_policy() -> None:
    """A row per policy with shares, times and requests, in 100 columns and without colour."""
    outcome = Outcome(1_000, 900, 910, [0.010, 0.030], {"a": 1, "b": 1})
    console = Console(file=io.StringIO(), width=100)
    console.print(outcome_table({KVATLAS: outcome, "round robin": outcome}))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "round robin" in text
    assert all(cell in text for cell in ("90.0%", "91.0%", "98.9%", "20 ms", "30 ms", "1 / 1"))
    assert "\x1b" not in text

"""Predicted against actual hits, and the rule by which an endpoint is doubted."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.ids import Epoch
from kvatlas.router.accuracy import Doubt, Prediction, Window, compare, is_comparable, reads_cache
from kvatlas.router.usage import Usage

STEP_S = 1.0
LASTING = int(limits.DOUBT_SPAN_S / STEP_S)


def predicted(tokens: int, epoch: int | None = 3) -> Prediction:
    """Make a prediction."""
    return Prediction(1_000, tokens, None if epoch is None else Epoch(epoch))


@pytest.mark.parametrize(
    ("usage", "outcome"),
    [
        (Usage(1_000, 320), "exact"),
        (Usage(1_000, 0), "over"),
        (Usage(1_000, 640), "under"),
        (Usage(1_001, 320), "other_prompt"),
        (Usage(1_000, None), None),
    ],
)
def test_an_answer_is_compared(usage: Usage, outcome: str | None) -> None:
    """A prompt of another length is no fault of the index, and silence is no answer."""
    assert compare(predicted(320), usage) == outcome


@pytest.mark.parametrize(
    ("body", "sequences", "comparable"),
    [
        ({}, 1, True),
        ({"n": 1, "use_beam_search": False}, 1, True),
        ({}, 0, False),
        ({}, 2, False),
        ({"n": 2}, 1, False),
        ({"use_beam_search": True}, 1, False),
        ({"prompt_embeds": "x"}, 1, False),
    ],
)
def test_what_can_be_compared(body: dict[str, Any], sequences: int, *, comparable: bool) -> None:
    """One prompt, one answer, and an engine that reads its cache."""
    assert is_comparable(body, sequences) == comparable


@pytest.mark.parametrize(
    ("path", "body", "reads"),
    [
        ("/v1/chat/completions", {}, True),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 3}, True),
        ("/v1/chat/completions", {"prompt_logprobs": 0}, False),
        ("/v1/chat/completions", {"echo": True}, False),
        ("/v1/chat/completions", {"echo": True, "top_logprobs": None}, True),
        ("/v1/chat/completions", {"echo": False}, True),
        ("/v1/completions", {"logprobs": 2}, True),
        ("/v1/completions", {"prompt_logprobs": 2}, False),
        ("/v1/completions", {"echo": True}, True),
        ("/v1/completions", {"echo": True, "logprobs": 0}, False),
    ],
)
def test_who_asks_for_the_prompts_probabilities_hits_nothing(
    path: str, body: dict[str, Any], *, reads: bool
) -> None:
    """The engine computes the whole prompt for them, whatever its cache holds."""
    assert reads_cache(path, body) == reads


class Story:
    """A window that is told answers, one per step."""

    def __init__(self) -> None:
        self.window = Window()
        self.now = 1_000.0
        self.doubts: list[Doubt] = []

    def tell(self, count: int, predicted_tokens: int, cached: int, epoch: int | None = 3) -> None:
        """Tell the same answer some times."""
        for _ in range(count):
            self.now += STEP_S
            doubt = self.window.note(predicted(predicted_tokens, epoch), cached, self.now)
            if doubt is not None:
                self.doubts.append(doubt)


def test_a_cache_that_was_emptied_silently_is_doubted() -> None:
    """Most answers over, by most of their tokens: one doubt, of this epoch, with its figures."""
    story = Story()
    story.tell(limits.DOUBT_ANSWERS_MIN - 1, 320, 0)
    story.tell(LASTING, 320, 0)
    assert story.doubts == []
    story.tell(1, 320, 0)
    assert story.doubts == [Doubt(Epoch(3), limits.DOUBT_ANSWERS_MIN + LASTING, 1.0)]
    assert story.doubts[0].text == "3 overpredicted answers=25 share=1.00"


def test_it_is_doubted_though_it_was_right_for_long() -> None:
    """The window is short enough that a good past does not hide it."""
    story = Story()
    story.tell(1_000, 320, 320)
    story.tell(limits.ACCURACY_ANSWERS_MAX, 320, 32)
    assert len(story.doubts) == 1


@pytest.mark.parametrize(
    "answers",
    [
        # Exact or better: nobody is hurt by more than was promised.
        [(320, 320)],
        [(320, 640)],
        # Eviction pressure: a third of the answers lose everything, or all lose a little.
        [(320, 0), (320, 320), (320, 320)],
        [(320, 192)],
        # One long prompt that lost much among short ones that are right.
        [(100_000, 0), (32, 32), (32, 32)],
        # Many short ones that lost theirs beside long ones that are right.
        [(32, 0), (32, 0), (10_000, 10_000)],
        # Nothing was promised.
        [(0, 0)],
    ],
)
def test_harmless_overshoot_is_no_doubt(answers: list[tuple[int, int]]) -> None:
    """Neither most of the answers alone nor most of the tokens alone are enough."""
    story = Story()
    for _ in range(100):
        for tokens, cached in answers:
            story.tell(1, tokens, cached)
    assert story.doubts == []


def test_a_burst_is_no_doubt() -> None:
    """They must run over for some time; however many answers come in it."""
    window, last = Window(), None
    for number in range(1_000):
        assert last is None
        last = window.note(predicted(320), 0, 1_000.0 + number * limits.DOUBT_SPAN_S / 980)
    assert last is not None


def test_another_epoch_begins_anew() -> None:
    """What was wrong of the last life says nothing of this one; nor do answers without one."""
    story = Story()
    story.tell(limits.DOUBT_ANSWERS_MIN - 1, 320, 0, epoch=3)
    story.tell(limits.DOUBT_ANSWERS_MIN - 1, 320, 0, epoch=4)
    story.tell(100, 320, 0, epoch=None)
    assert story.doubts == []
    story.tell(1 + LASTING, 320, 0, epoch=4)
    assert [doubt.epoch for doubt in story.doubts] == [4]


def test_answers_of_long_ago_do_not_count() -> None:
    """Rare traffic is not judged by what it was last hour."""
    story = Story()
    story.tell(limits.DOUBT_ANSWERS_MIN - 1, 320, 0)
    story.now += limits.ACCURACY_WINDOW_S
    story.tell(1 + LASTING, 320, 0)
    assert story.doubts == []


def test_doubts_keep_their_distance() -> None:
    """Each pause is twice the last one, up to a bound; after long peace it begins small again."""
    story = Story()
    moments: list[float] = []
    for _ in range(20_000):
        story.tell(1, 320, 0)
        if len(story.doubts) > len(moments):
            moments.append(story.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    wanted = [limits.DOUBT_COOLDOWN_S * 2**n for n in range(len(pauses))]
    assert pauses == [min(pause, limits.DOUBT_COOLDOWN_MAX_S) for pause in wanted]
    story.now += 3 * limits.DOUBT_COOLDOWN_MAX_S
    before = len(story.doubts)
    story.tell(2 * int(limits.DOUBT_COOLDOWN_S) + limits.DOUBT_ANSWERS_MIN, 320, 0)
    assert len(story.doubts) == before + 2


def test_memory_is_bounded() -> None:
    """However many answers come."""
    story = Story()
    story.tell(5_000, 320, 320)
    assert len(story.window._answers) == limits.ACCURACY_ANSWERS_MAX

"""How often an engine is looked at."""

from __future__ import annotations

import pytest

from kvatlas.common import limits
from kvatlas.common.gauges import EngineGauges, Look
from kvatlas.indexer.pace import Pace

IDLE = Look("answered", 0.0, None, {0: EngineGauges()})
BUSY = Look("answered", 0.0, None, {0: EngineGauges(), 1: EngineGauges(waiting=1.0)})
HELD = Look("answered", 0.0, None, {0: EngineGauges(kv_usage=0.5)})
SILENT = Look("silent", 0.0)
NO_PAGE = Look("no_page", 0.0)


def pauses(looks: list[Look], quick_s: float = 0.2, least_s: float = 0.0) -> list[float]:
    """Give the pause after each look."""
    pace, found = Pace(quick_s), []
    for look in looks:
        pace.note(look, least_s)
        found.append(pace.pause_s)
    return found


def test_an_engine_with_work_is_looked_at_often() -> None:
    """Expect so for as long as any rank has work, changed or not."""
    assert pauses([BUSY] * 5) == [0.2] * 5


def test_an_engine_that_idles_is_looked_at_ever_more_seldom() -> None:
    """Expect the bound to be reached in a few looks, and the first change to end it."""
    found = pauses([IDLE] * 9 + [HELD, HELD, IDLE, IDLE])
    assert found[0] == 0.2
    assert found[:9] == sorted(found[:9])
    assert found[8] == limits.SCRAPE_IDLE_S
    assert found[9:] == pytest.approx([0.2, 0.3, 0.2, 0.3])


@pytest.mark.parametrize("quiet", [SILENT, NO_PAGE])
def test_an_engine_without_gauges_is_not_pressed(quiet: Look) -> None:
    """Expect it to be looked at more seldom, and often again when it is back."""
    found = pauses([BUSY, *[quiet] * 9, BUSY])
    assert found[9] == (limits.SCRAPE_AWAY_S if quiet is SILENT else limits.SCRAPE_IDLE_S)
    assert found[10] == 0.2


def test_many_engines_are_each_looked_at_less_often() -> None:
    """Expect what all together allow to go before what one engine wants."""
    assert pauses([BUSY, IDLE, BUSY], least_s=5.0) == [5.0, 5.0, 5.0]
    assert pauses([SILENT, SILENT], least_s=5.0) == [5.0, 5.0]

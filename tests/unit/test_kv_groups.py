"""Media and their tiers."""

from __future__ import annotations

import pytest

from kvatlas.common.ids import Pool
from kvatlas.common.kv_groups import DEFAULT_TIER_WEIGHTS, TIERS, tier_of
from kvatlas.common.setting_sections import TierWeights


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        ("gpu", "gpu"),
        ("GPU", "gpu"),
        ("cpu", "cpu"),
        ("storage", "disk"),
        ("disk", "disk"),
        ("fs", "disk"),
        ("SSD", "disk"),
        ("nvme", "disk"),
        ("obj", "remote"),
        ("", "remote"),
    ],
)
def test_tiers_by_medium(medium: str, tier: str) -> None:
    """Whatever the case of the letters; what is not known is far away."""
    assert tier_of(Pool(medium, 0)) == tier
    assert tier_of(Pool(medium, 3, is_remote=True)) == "remote"


def test_weights_have_a_default_per_tier() -> None:
    """And a setting that names one leaves the others."""
    assert TierWeights().by_tier() == dict(DEFAULT_TIER_WEIGHTS)
    assert set(TierWeights(cpu=0.25).by_tier()) == set(TIERS)
    assert TierWeights(cpu=0.25).by_tier()["cpu"] == 0.25
    assert str(TierWeights(disk=0)) == "{gpu: 1, cpu: 0.8, disk: 0, remote: 0.5}"

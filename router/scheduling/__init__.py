"""Choosing an endpoint: pure functions of what is known at the moment of the decision.

A profile runs filters, then scorers, then a picker, as in the Gateway API Inference Extension.
Nothing here reads a clock or draws a random number by itself: both are parameters.
"""

from kvatlas.common.gauges import Adapters
from kvatlas.router.scheduling.cost import CostScorer
from kvatlas.router.scheduling.filters import HealthyFilter
from kvatlas.router.scheduling.guard import Guarded
from kvatlas.router.scheduling.interfaces import (
    Candidate,
    Chance,
    Explains,
    Filter,
    Load,
    Notes,
    Picker,
    Scorer,
    Work,
    is_hard,
)
from kvatlas.router.scheduling.pickers import MaxScorePicker, RoundRobinPicker
from kvatlas.router.scheduling.profile import Profile, Ranking, Weighted
from kvatlas.router.scheduling.scorers import EvenScorer, RequestScorer

__all__ = [
    "Adapters",
    "Candidate",
    "Chance",
    "CostScorer",
    "EvenScorer",
    "Explains",
    "Filter",
    "Guarded",
    "HealthyFilter",
    "Load",
    "MaxScorePicker",
    "Notes",
    "Picker",
    "Profile",
    "Ranking",
    "RequestScorer",
    "RoundRobinPicker",
    "Scorer",
    "Weighted",
    "Work",
    "is_hard",
]

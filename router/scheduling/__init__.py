"""Choosing an endpoint: pure functions of what is known at the moment of the decision.

A profile runs filters, then scorers, then a picker, as in the Gateway API Inference Extension.
Nothing here reads a clock or draws a random number by itself: both are parameters.
"""

from kvatlas.router.scheduling.cost import CostScorer
from kvatlas.router.scheduling.filters import HealthyFilter
from kvatlas.router.scheduling.interfaces import (
    Adapters,
    Candidate,
    Chance,
    Explains,
    Filter,
    Load,
    Notes,
    Picker,
    Scorer,
    Work,
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
]

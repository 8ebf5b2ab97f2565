"""Choosing an endpoint: pure functions of what is known at the moment of the decision.

A profile runs filters, then scorers, then a picker, as in the Gateway API Inference Extension.

    profile       scorer                                  formula
    prefix        CostScorer: least estimated cost        least cost / own cost
    least-load    RequestScorer: fewest requests there    (1 + fewest) / (1 + own)
    round-robin   EvenScorer: all the same                1, and the draw takes turns

Nothing here reads a clock or draws a random number: the draw is a parameter.
"""

from kvatlas.router.scheduling.filters import HealthyFilter
from kvatlas.router.scheduling.interfaces import (
    Candidate,
    Draw,
    Filter,
    Load,
    Picker,
    Score,
    Scorer,
    Work,
)
from kvatlas.router.scheduling.pickers import BestScorePicker
from kvatlas.router.scheduling.profile import Profile, Ranking, Weighted
from kvatlas.router.scheduling.scorers import CostScorer, EvenScorer, RequestScorer

__all__ = [
    "BestScorePicker",
    "Candidate",
    "CostScorer",
    "Draw",
    "EvenScorer",
    "Filter",
    "HealthyFilter",
    "Load",
    "Picker",
    "Profile",
    "Ranking",
    "RequestScorer",
    "Score",
    "Scorer",
    "Weighted",
    "Work",
]

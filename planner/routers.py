"""Who hears of whose flights, and when. Pure.

A router knows its own flights at once. What it writes is visible to the others later by a delay,
half-way of which Redis stamps it; they read it when they decide, as in the product. So a decision
that another router makes in between does not know of it: the race between reading and writing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from kvatlas.planner.engine import Served
from kvatlas.planner.policy import Policy


class Moment(Enum):
    """What can be told of a flight."""

    LAUNCHED = "launched"
    BEGAN = "began"
    ENDED = "ended"


class _Message(NamedTuple):
    visible_s: float
    stamp_s: float
    moment: Moment
    router: int
    served: Served


@dataclass(frozen=True, slots=True)
class Sharing:
    """What routers know of each other.

    Attributes:
        delay_s: from a decision until other routers can read of it.
        own_only: they hear nothing of each other.
    """

    delay_s: float = 0.0
    own_only: bool = False


class Routers:
    """All routers, each with its policy and how far it has read.

    Where nothing is delayed and everything is shared, one policy stands for all of them: it knows
    exactly what each would know.

    Args:
        make: makes the policy of a router by its number.
    """

    def __init__(self, make: Callable[[int], Policy], count: int, sharing: Sharing) -> None:
        first = make(0)
        self._is_one = count == 1 or (
            first.shares and not sharing.own_only and sharing.delay_s <= 0.0
        )
        policies = [first] if self._is_one else [first, *map(make, range(1, count))]
        self._policies: Sequence[Policy] = policies
        self._tells = first.shares and not sharing.own_only and not self._is_one
        self._delay_s = sharing.delay_s
        self.lag_s = sharing.delay_s if self._tells else 0.0
        """How late a router knows of everything."""
        self._log: list[_Message] = []
        self._read = [0] * count
        self.scrapes = first.scrapes

    def policy(self, router: int, now_s: float) -> Policy:
        """Give a router's policy, with everything read that it can read at a moment."""
        if self._is_one:
            return self._policies[0]
        policy = self._policies[router]
        log, at = self._log, self._read[router]
        while at < len(log) and log[at].visible_s <= now_s:
            message = log[at]
            at += 1
            if message.router != router:
                _tell(policy, message.moment, message, message.stamp_s)
        self._read[router] = at
        return policy

    def happened(self, moment: Moment, router: int, served: Served, now_s: float) -> None:
        """Note what happens to a flight of a router; times never fall from call to call."""
        delay_s = self._delay_s
        message = _Message(now_s + delay_s, now_s + delay_s / 2.0, moment, router, served)
        _tell(self._policies[0 if self._is_one else router], moment, message, now_s)
        if self._tells:
            self._log.append(message)


def _tell(policy: Policy, moment: Moment, message: _Message, now_s: float) -> None:
    if moment is Moment.LAUNCHED:
        policy.launched(message.router, message.served, now_s)
    elif moment is Moment.BEGAN:
        policy.began(message.router, message.served, now_s)
    else:
        policy.ended(message.router, message.served, now_s)

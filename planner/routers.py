"""Who hears of whose flights, and when. Pure.

A router knows its own flights at once. What it writes is visible to the others later by a delay,
half-way of which Redis stamps it; they read it when they decide, as in the product. So a decision
that another router makes in between does not know of it: the race between reading and writing.

In the product decisions are told in one order, and made again where others were told before them
(`Pipeline.settle`): at the price of a round trip each knows all before it, however late the rest is
heard of. So launches are visible at once here, unless the race is asked for.
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
        races: a decision is not made again where others were told before it.
    """

    delay_s: float = 0.0
    own_only: bool = False
    races: bool = False


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
        self._is_ordered = not sharing.races
        self._launches: list[_Message] = []
        self._log: list[_Message] = []
        self._read = [[0, 0] for _ in range(count)]
        self.scrapes = first.scrapes

    def policy(self, router: int, now_s: float) -> Policy:
        """Give a router's policy, with everything read that it can read at a moment."""
        if self._is_one:
            return self._policies[0]
        policy, read = self._policies[router], self._read[router]
        while (message := self._next(read, now_s)) is not None:
            if message.router != router:
                _tell(policy, message.moment, message, message.stamp_s)
        return policy

    def _next(self, read: list[int], now_s: float) -> _Message | None:
        """Take what is to be read next, in the order of the stamps, as in the product's log."""
        heads = [
            (log[at].stamp_s, place)
            for place, (log, at) in enumerate(zip((self._launches, self._log), read, strict=True))
            if at < len(log) and log[at].visible_s <= now_s
        ]
        if not heads:
            return None
        place = min(heads)[1]
        read[place] += 1
        return (self._launches, self._log)[place][read[place] - 1]

    def happened(self, moment: Moment, router: int, served: Served, now_s: float) -> None:
        """Note what happens to a flight of a router; times never fall from call to call."""
        is_launch = moment is Moment.LAUNCHED and self._is_ordered
        delay_s = 0.0 if is_launch else self._delay_s
        message = _Message(now_s + delay_s, now_s + delay_s / 2.0, moment, router, served)
        _tell(self._policies[0 if self._is_one else router], moment, message, now_s)
        if self._tells:
            (self._launches if is_launch else self._log).append(message)


def _tell(policy: Policy, moment: Moment, message: _Message, now_s: float) -> None:
    if moment is Moment.LAUNCHED:
        policy.launched(message.router, message.served, now_s)
    elif moment is Moment.BEGAN:
        policy.began(message.router, message.served, now_s)
    else:
        policy.ended(message.router, message.served, now_s)

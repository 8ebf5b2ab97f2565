"""How the cost of a template grows with a chat, and how many messages it can afford. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.errors import KvatlasError

_TIMES: Final = 3
_LARGER: Final = 4
"""A growth by which a linear cost becomes four times as much, and a quadratic one sixteen."""
_TURNS: Final = ("Where does the old canal begin?", "Behind the mill, where the two brooks meet.")

Render = Callable[[Mapping[str, Any]], object]


def affordable_messages(render: Render, clock: Callable[[], float]) -> int:
    """Say how many messages a template renders in the time that it has.

    Args:
        render: renders the body of a chat.
        clock: in seconds; of the thread where it renders here.

    Returns:
        At most MESSAGES_MAX, which is also the answer of a template that cannot be tried.
    """
    few = limits.TEMPLATE_TRIAL_MESSAGES
    try:
        small_s, large_s = (_cost_s(render, clock, count) for count in (few, _LARGER * few))
    except KvatlasError:
        return limits.MESSAGES_MAX
    grows = large_s > limits.TEMPLATE_TRIAL_GROWTH_MAX * small_s
    if large_s < limits.TEMPLATE_TRIAL_LEAST_S or not grows:
        return limits.MESSAGES_MAX
    affordable = _LARGER * few * sqrt(limits.TEMPLATE_RENDER_S / large_s)
    return min(limits.MESSAGES_MAX, int(affordable))


def _cost_s(render: Render, clock: Callable[[], float], count: int) -> float:
    """Take the time of the quickest of a few; what else the machine does only adds to it."""
    roles = ("user", "assistant")
    body = {"messages": [{"role": roles[n % 2], "content": _TURNS[n % 2]} for n in range(count)]}
    return min(_timed_s(render, clock, body) for _ in range(_TIMES))


def _timed_s(render: Render, clock: Callable[[], float], body: Mapping[str, Any]) -> float:
    begun = clock()
    render(body)
    return clock() - begun

"""How often an engine's gauges are read: often while they change, seldom while it idles. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvatlas.common import limits
from kvatlas.common.gauges import Look

SLOWER: Final = 1.5
"""By which the pause grows with each look that finds an engine idle and as before."""


@dataclass(slots=True)
class Pace:
    """The pause between two looks at one engine.

    Attributes:
        quick_s: while it has work, or its gauges change.
        pause_s: until the next look.
    """

    quick_s: float
    pause_s: float = 0.0
    _before: Look | None = None

    def note(self, found: Look, least_s: float) -> None:
        """Decide after a look.

        Args:
            found: what was seen.
            least_s: shortest pause that all engines together allow.
        """
        quick_s = max(self.quick_s, least_s)
        slower_s = max(quick_s, self.pause_s * SLOWER)
        before, self._before = self._before, found
        if not found.is_up:
            self.pause_s = min(slower_s, max(quick_s, limits.SCRAPE_AWAY_S))
        elif before is None or found.ranks != before.ranks or found.has_work:
            self.pause_s = quick_s
        else:
            self.pause_s = min(slower_s, max(quick_s, limits.SCRAPE_IDLE_S))

"""What happens when: events in the order of simulated time, ties in the order they were asked for.

Owns the simulated clock. Must not know what happens.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Happening = Callable[[], None]


class Loop:
    """Simulated time; seconds since the beginning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Happening]] = []
        self._asked = 0

    def at(self, time: float, what: Happening) -> None:
        """Let something happen at `time`; at once if that is over."""
        self._asked += 1
        heappush(self._due, (max(time, self.now), self._asked, what))

    def after(self, delay_s: float, what: Happening) -> None:
        """Let something happen `delay_s` from now."""
        self.at(self.now + delay_s, what)

    def run(self, until: float) -> None:
        """Let everything happen that is due by `until`."""
        while self._due and self._due[0][0] <= until:
            self.now, _, what = heappop(self._due)
            what()
        self.now = until

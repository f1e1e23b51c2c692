"""The latency guard: it says what the pacer does about forwards that take too long.

Owns when that is worth a line: each time moves become slower for it, and once when forwards are
within the ceiling again. Must not know what an epoch moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eplbd.core.bubble import Pace, Pacer
    from eplbd.core.group import Group


class Guard:
    """Asks a pacer on behalf of one group."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self.slowed = False
        """Whether latency made moves slower, and has not been well since."""

    def pace(self, group: Group) -> Pace:
        """The pace of the next epoch."""
        pacer, before = self._pacer, self._pacer.current
        pace = pacer.pace()
        if pacer.over and pace != before:
            self.slowed = True
            group.note(
                "warning",
                "moves slowed down",
                reason="forwards take too long beside them",
                inflation=round(pacer.inflation, 3),
                ceiling=pacer.ceiling,
                stride=pace.stride,
                experts_per_rank=pace.experts_per_epoch,
            )
        elif self.slowed and not pacer.over:
            self.slowed = False
            inflation = round(pacer.inflation, 3)
            group.note("info", "moves within the latency ceiling again", inflation=inflation)
        return pace

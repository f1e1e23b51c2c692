"""Mode static: one placement that somebody decided on, applied once and then held.

Owns the comparison of that map with what is in force. The moves are a rebalance like any other.
Must not know where the map came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from eplbd.core.cycle import Cycle
    from eplbd.core.placement import Placement

STATIC = "static"
"""The mode, and in the log the author of its moves."""


class FixedMap:
    """Where a group is on its way to the map; nothing of it is kept over a restart.

    wanted: the map, None in any other mode.
    """

    def __init__(self, wanted: Placement | None) -> None:
        self.wanted = wanted
        self.stands = False
        """Whether the map is in force, up to the order of slots within a rank."""
        self.refused = ""
        """Why the map is not one of this group."""

    def begin(self, cycle: Cycle, current: Placement) -> None:
        """Compare, and plan the moves if there are any to make."""
        assert self.wanted is not None
        reason = misfit(self.wanted, current)
        try:
            if not reason:
                self.stands = not cycle.go_to(self.wanted, current, STATIC)
        except PlacementError as error:
            reason = str(error)
        self.refused = f"balance.map: {reason}" if reason else ""

    @property
    def due(self) -> bool:
        """Whether there is anything left to do."""
        return self.wanted is not None and not self.stands and not self.refused


def misfit(wanted: Placement, current: Placement) -> str:
    """Why a map cannot be one of this group, by its shape; empty if it is."""
    shape, expected = wanted.slots.shape, current.slots.shape
    if shape == expected:
        if wanted.experts == current.experts:
            return ""
        return (
            f"layer 0: the map places {wanted.experts} experts, expected "
            f"{current.experts}; record one of this group"
        )
    layer = min(shape[0], expected[0]) if shape[1:] == expected[1:] else 0
    return (
        f"layer {layer}: the map has shape {list(shape)}, expected {list(expected)} "
        "(layers, ranks, slots per rank); record one of this group"
    )

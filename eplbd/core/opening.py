"""What a group is given before its first heat: the placement that it had last, or copies spread.

An engine starts on a layout of its own, with all redundant copies on the last ranks; what was
learnt in its last life is lost. Owns whether a placement of before is one of this group, and what
heat to assume while there is none. The moves are a rebalance like any other, under the same rules.
Must not know where the placement was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from eplbd.core.events import Persist
from eplbd.core.heat import Heat
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from eplbd.core.cycle import Cycle
    from eplbd.core.events import Restored
    from eplbd.core.group import Group

STORED = "stored"
"""In the log, the author of the moves back to the placement of before."""

_TOKENS = 1024
"""Assumed of every expert in every step; only that they are equal matters, and that they divide."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What must be equal, beside name and shape, for a placement of before to be of any use.

    layout_digest: of names, dtypes and shapes of the tensors of an expert: the model. node_of: of
    each rank, as in the topology. phase: whose heat drove planning.
    """

    layout_digest: str
    node_of: tuple[int, ...]
    phase: str


Kept: TypeAlias = "Restored | Persist"
"""Where a group settled last, in this daemon's life or before it."""


def kept_of(group: Group) -> Persist:
    """What is to be kept of a group that has just settled."""
    assert group.placement is not None
    return Persist(group.name, group.term, group.epoch, group.placement, _likeness(group))


def _likeness(group: Group) -> Likeness:
    assert group.topology is not None
    phase = group.settings.balance.phase
    return Likeness(group.shape.layout_digest, group.topology.node_of, phase)


class Opening:
    """The first move of one life of a group, as `balance.opening` has it.

    kept: where the group settled last, None if it never did.
    """

    def __init__(self, group: Group, kept: Kept | None) -> None:
        balance = group.settings.balance
        fresh = group.epoch == 0 and balance.mode == "dynamic"
        how = balance.opening if fresh else "none"
        self._kept = kept if how == "stored" and kept and kept.placement is not None else None
        self._spreads = how != "none"
        self._forward = -1
        """Of the group, when there was last time to plan."""
        self.assumed = False
        """Whether the newest question was about heat that nobody measured."""

    @property
    def due(self) -> bool:
        """Whether there is a placement of before that nobody has looked at."""
        return self._kept is not None

    def begin(self, cycle: Cycle, group: Group) -> None:
        """Plan the moves back to the placement of before, if it is one of this group."""
        kept, self._kept = self._kept, None
        assert kept is not None
        assert kept.placement is not None
        assert group.placement is not None
        refused = _unlike(kept, group) or cycle.orders.breach(group.placement, kept.placement)
        try:
            if not refused and cycle.go_to(kept.placement, group.placement, STORED):
                assert cycle.plan is not None
                group.note("info", "going back to the stored placement", moves=cycle.plan.moves)
        except PlacementError as error:
            refused = str(error)
        if refused:
            group.note("info", "stored placement not taken up", reason=refused)
        else:
            self._spreads = False

    def heat(self, seen: Heat, group: Group) -> Heat:
        """What to plan on: `seen`, or even heat, once, for an engine without traffic.

        That is one of which no heat has come and that ran no forward since the last time. Where
        forwards go on, what is measured comes soon, and is worth waiting for.
        """
        if seen.steps.shape[0]:
            self._spreads = False
        idle, self._forward = group.forward == self._forward, group.forward
        self.assumed = self._spreads and idle
        if not self.assumed:
            return seen
        self._spreads = False
        group.note("info", "no heat yet, taken to be even")
        steps = max(group.settings.balance.min_steps, 2)
        even = np.full((steps, group.shape.layers, group.shape.experts), _TOKENS, dtype=np.int32)
        even.setflags(write=False)
        return Heat(even, seen.phase)


def _unlike(kept: Kept, group: Group) -> str:
    """Why a placement of before is none of this group; empty if it is one."""
    assert kept.placement is not None
    shape, likeness = group.shape, _likeness(group)
    expected = (shape.layers, shape.ranks, shape.slots_per_rank)
    found = kept.placement.slots.shape
    if (found, kept.placement.experts) != (expected, shape.experts):
        return (
            f"it has shape {list(found)} and {kept.placement.experts} experts, the group "
            f"{list(expected)} and {shape.experts}"
        )
    if kept.likeness is None or kept.likeness.layout_digest != likeness.layout_digest:
        return "it is of another model: names, dtypes or shapes of the experts differ"
    if kept.likeness.node_of != likeness.node_of:
        return "its ranks were on other nodes"
    if kept.likeness.phase != likeness.phase:
        return f"it was planned for phase {kept.likeness.phase}, now it is {likeness.phase}"
    return ""

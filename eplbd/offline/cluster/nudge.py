"""A cheap stand-in for a policy, so that a group of thousands of ranks has placements to go to.

Gives the layer's most loaded experts a copy each, in slots of experts that can best do without one.
Owns nothing else: it is no balancer, the point is that its answers are valid, small and differ.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement, rank_load
from eplbd.core.topology import Topology

MOVES_PER_LAYER = 32


class Nudge:
    """A policy of the simulation's own."""

    name: ClassVar[str] = "nudge"
    eplbd_api: ClassVar[int] = 1

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """See `eplbd.Policy`."""
        slots = current.slots.copy()
        limits = (
            budget.moves,
            None if budget.bytes is None else budget.bytes // budget.expert_bytes,
        )
        left = min((limit for limit in limits if limit is not None), default=slots.size)
        for layer, load in enumerate(rank_load(current, heat.total)):
            most = min(MOVES_PER_LAYER, topology.ranks, left)
            left -= _nudge(slots[layer], heat.total[layer], load, most)
        return Placement(slots, current.experts)


def _nudge(
    slots: NDArray[np.int32], tokens: NDArray[np.int64], load: NDArray[np.float64], most: int
) -> int:
    """Change a layer's `[ranks, slots_per_rank]` and `[ranks]` load in place; how many slots."""
    experts = len(tokens)
    replicas = np.bincount(slots.ravel(), minlength=experts)
    for moves in range(most):
        share = tokens / replicas
        hot = int(share.argmax())
        spare = np.where(replicas > 1, tokens / np.maximum(replicas - 1, 1), np.inf)
        cold = int(spare.argmin())
        if spare[cold] >= share[hot]:
            return moves
        without = ~(slots == hot).any(axis=1)
        places = np.argwhere((slots == cold) & without[:, None])
        if not len(places):
            return moves
        rank, slot = places[load[places[:, 0]].argmin()]
        load[rank] += share[hot] - share[cold]
        slots[rank, slot] = hot
        replicas[hot] += 1
        replicas[cold] -= 1
    return most

"""What the operator has ordered until further notice: a hold, pinned experts, drained ranks.

Owns what these mean for a placement: which part of one a policy is shown, what becomes of its
answer, which placement is against an order. An answer that breaks the contract is still refused
whole; an order only keeps layers as they are, in which it would be broken. Must not know who gave
an order nor how it arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from eplbd.core.placement import Placement, count_replicas
from eplbd.core.shares import as_shares, settle
from eplbd.core.topology import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pin: TypeAlias = tuple[int, int]
"""Layer and expert; layer `EVERY_LAYER` stands for all of them."""

EVERY_LAYER = -1

PREVIOUS = "previous"
"""The name under which the placement before the newest rebalance is kept."""

PINS_MAX = 1024
"""Of one group. More than this is a placement: `eplbd ctl load` takes those."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing is begun. frozen: nor does anything that was begun go on, over restarts."""

    frozen: bool
    who: str
    why: str

    def __str__(self) -> str:
        """As it is told: what, by whom, and why."""
        return f"{'frozen' if self.frozen else 'paused'} by {self.who}: {self.why}"


@dataclass(frozen=True, slots=True)
class Orders:
    """Of one group.

    pins: experts whose replicas stay on the ranks where they are. drained: ranks that no policy is
    shown; what they hold is held elsewhere as well.
    """

    hold: Hold | None = None
    pins: frozenset[Pin] = frozenset()
    drained: frozenset[int] = frozenset()

    def within(self, ranks: int) -> Orders:
        """The same for a group of so many ranks."""
        return replace(self, drained=frozenset(rank for rank in self.drained if rank < ranks))

    def kept(self, ranks: int) -> list[int]:
        """The ranks that are not drained, ascending."""
        return [rank for rank in range(ranks) if rank not in self.drained]

    def pinned(self, layers: int, experts: int) -> NDArray[np.bool_]:
        """`[layers, experts]`, whether the expert is pinned; pins beyond the shape are none."""
        mask = np.zeros((layers, experts), dtype=np.bool_)
        for layer, expert in self.pins:
            if layer < layers and expert < experts:
                mask[slice(None) if layer == EVERY_LAYER else layer, expert] = True
        return mask

    # --- what a policy sees ---------------------------------------------------------------------

    def topology(self, topology: Topology) -> Topology:
        """The group without its drained ranks."""
        if not self.drained:
            return topology
        kept = self.kept(topology.ranks)
        nodes = tuple(topology.node_of[rank] for rank in kept)
        speed = tuple(topology.speed[rank] for rank in kept)
        return Topology(len(kept), topology.slots_per_rank, nodes, speed)

    def seen(self, placement: Placement) -> Placement:
        """The placement without its drained ranks, as if they took no tokens.

        Only for one that is not against these orders: every expert is on some other rank.
        """
        if not self.drained:
            return placement
        kept = self.kept(placement.ranks)
        slots, shares = placement.slots[:, kept], placement.shares
        if shares is None:
            return Placement(slots, placement.experts)
        parts = settle(shares[:, kept], slots, placement.experts)
        return Placement(slots, placement.experts, as_shares(parts))

    def completed(self, proposal: Placement, current: Placement, *, weighted: bool) -> Placement:
        """A proposal for the ranks that were shown, made one for all of them.

        Drained ranks keep what they hold, without tokens where the engine takes shares. A layer in
        which a pinned expert would change ranks keeps everything it has.
        """
        target = self._widened(proposal, current, weighted=weighted)
        broken = self._broken(current, target)
        if not broken.size:
            return target
        parts = current.parts()[broken] if weighted else None
        return target.with_layers(broken, current.slots[broken], parts)

    def _widened(self, proposal: Placement, current: Placement, *, weighted: bool) -> Placement:
        if not self.drained:
            return proposal
        kept = self.kept(current.ranks)
        slots = current.slots.copy()
        slots[:, kept] = proposal.slots
        if not weighted:
            return Placement(slots, current.experts)
        parts = np.zeros(slots.shape, dtype=np.int32)
        parts[:, kept] = proposal.parts()
        return Placement.split(slots, current.experts, parts)

    def _broken(self, current: Placement, target: Placement) -> NDArray[np.intp]:
        """Layers in which a pinned expert changes ranks, ascending."""
        if not self.pins:
            return np.empty(0, dtype=np.intp)
        pinned = self.pinned(current.layers, current.experts)[:, None, :]
        moved = (current.hosts() != target.hosts()) & pinned
        return np.flatnonzero(moved.any(axis=(1, 2)))

    # --- what may be ordered --------------------------------------------------------------------

    def breach(self, current: Placement, target: Placement) -> str:
        """Why going from `current` to `target` is against these orders; empty if it is not."""
        broken = self._broken(current, target)
        if broken.size:
            layer = int(broken[0])
            pinned = self.pinned(current.layers, current.experts)[layer]
            moved = (current.hosts()[layer] != target.hosts()[layer]).any(axis=0)
            expert = int(np.flatnonzero(moved & pinned)[0])
            return f"layer {layer}: it moves expert {expert}, which is pinned; unpin it first"
        sole = self.sole(target)
        if sole is None:
            return ""
        layer, expert = sole
        return (
            f"layer {layer}: it leaves expert {expert} on no rank but drained ones "
            f"({', '.join(map(str, sorted(self.drained)))}); undrain first"
        )

    def sole(self, placement: Placement) -> Pin | None:
        """The first layer and expert that only drained ranks hold; None if there is none."""
        if not self.drained:
            return None
        kept = self.kept(placement.ranks)
        flat = placement.slots[:, kept].reshape(placement.layers, -1)
        missing = np.argwhere(count_replicas(flat, placement.experts) == 0)
        return (int(missing[0, 0]), int(missing[0, 1])) if missing.size else None

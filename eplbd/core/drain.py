"""The placement without which a rank cannot be spared: nothing on it that is nowhere else.

Owns which replicas give way. Every expert whose only copies are on drained ranks gets one more on
another rank, in place of a replica that has others there; a drained rank is left with as few tokens
as its slots allow, since a slot is never empty. Must not know who wants a rank drained, nor when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.placement import Placement
from eplbd.core.shares import even_parts
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eplbd.core.orders import Orders

WORTH = 0.5
"""A drained rank takes a cold expert in place of one whose replica is more than twice as hot: what
is saved by less is not worth the transfer."""


def drained(
    current: Placement, orders: Orders, heat: NDArray[np.generic], *, weighted: bool
) -> Placement:
    """Where to go from `current` so that the drained ranks of `orders` can be spared.

    heat: `[layers, experts]` tokens; zeros where nothing is known. weighted: whether the engine
    takes shares: then a drained rank gets no tokens at all. Raises PlacementError, naming layer and
    reason, where the other ranks have too few slots or a pinned expert stands in the way.
    """
    kept = orders.kept(current.ranks)
    room, needed = len(kept) * current.slots_per_rank, current.experts
    ranks = ", ".join(map(str, sorted(orders.drained)))
    if room < needed:
        raise PlacementError(
            f"without rank {ranks} there are {room} slots for {needed} experts; drain fewer ranks, "
            "or start the engine with more redundant experts"
        )
    slots = current.slots.copy()
    pinned = orders.pinned(current.layers, current.experts)
    tokens = np.asarray(heat, dtype=np.float64)
    for layer in range(current.layers):
        _Layer(layer, slots[layer], kept, pinned[layer], tokens[layer]).rescue()
        if not weighted and tokens[layer].any():
            _cool(slots[layer], sorted(orders.drained), kept, pinned[layer], tokens[layer])
    if not weighted:
        return Placement(slots, current.experts)
    parts = np.zeros(slots.shape, dtype=np.int32)
    parts[:, kept] = even_parts(slots[:, kept], current.experts)
    return Placement.split(slots, current.experts, parts)


class _Layer:
    """One layer; `rows` `[ranks, slots_per_rank]` are changed in place."""

    def __init__(
        self,
        layer: int,
        rows: NDArray[np.int32],
        kept: list[int],
        pinned: NDArray[np.bool_],
        heat: NDArray[np.float64],
    ) -> None:
        self.layer, self.rows, self.kept, self.pinned, self.heat = layer, rows, kept, pinned, heat
        self.copies = np.bincount(rows[kept].ravel(), minlength=heat.size)

    def rescue(self) -> None:
        """Give every expert that drained ranks alone hold a replica elsewhere, hottest first."""
        alone = np.flatnonzero(self.copies == 0)
        for expert in alone[np.argsort(-self.heat[alone], kind="stable")].tolist():
            if self.pinned[expert]:
                raise PlacementError(
                    f"layer {self.layer}: expert {expert} has its only replica there and is "
                    "pinned; unpin it first",
                    layer=self.layer,
                )
            self._place(expert)

    def _place(self, expert: int) -> None:
        """Put a replica where the rank is coolest afterwards."""
        held = self.rows[self.kept]
        share = self.heat / np.maximum(self.copies, 1)
        after = share[held].sum(axis=1, keepdims=True) - share[held] + self.heat[expert]
        spare = (self.copies[held] > 1) & ~self.pinned[held]
        if not spare.any():
            raise PlacementError(
                f"layer {self.layer}: expert {expert} has its only replica there, and every "
                "replica that could give way to it is pinned; unpin one",
                layer=self.layer,
            )
        at = int(np.where(spare, after, np.inf).argmin())
        rank, slot = divmod(at, held.shape[1])
        self.copies[held[rank, slot]] -= 1
        self.copies[expert] += 1
        self.rows[self.kept[rank], slot] = expert


def _cool(
    rows: NDArray[np.int32],
    ranks: list[int],
    kept: list[int],
    pinned: NDArray[np.bool_],
    heat: NDArray[np.float64],
) -> None:
    """Let the drained `ranks` hold cold experts in place of hot ones."""
    elsewhere = np.bincount(rows[kept].ravel(), minlength=heat.size)
    share = heat / (elsewhere + 1)
    coldest = [int(e) for e in np.argsort(share, kind="stable") if not pinned[e]]
    for rank in ranks:
        held = set(rows[rank].tolist())
        fresh = (expert for expert in coldest if expert not in held)
        for slot in np.argsort(-share[rows[rank]], kind="stable").tolist():
            own = int(rows[rank, slot])
            if pinned[own]:
                continue
            cold = next(fresh, own)
            if share[cold] >= WORTH * share[own]:
                break
            rows[rank, slot] = cold

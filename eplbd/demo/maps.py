"""The tables that tell a rank which slot serves an expert, written in place only.

Owns the replica tables of all layers at one fixed address and the choice of a replica for each
token. It must not know when or why a table changes: whoever commits an epoch calls `write`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplbd.core.maps import derive_maps
from eplbd.core.placement import Placement
from eplbd.core.shares import WHOLE, even_parts
from eplbd.demo.shape import Shape
from eplbd.errors import LocalProtocolError, TransferError

_KNUTH = 2654435761
"""2^32 times the golden ratio's fraction: consecutive indices fall evenly over any number of bins
(Knuth, The Art of Computer Programming, volume 3, section 6.4)."""
_WORD = (1 << 32) - 1
_HASHES = (1 << 32) // WHOLE
"""Of every part of a whole."""


@dataclass(frozen=True, slots=True, eq=False)
class MapUpdate:
    """New tables of some layers, ready to be copied.

    layers: `[n]` int64. rows: `[n, width]` int32, one row per layer as `ReplicaMaps` lays it out.
    """

    layers: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class BrokenEntry:
    """A table entry that was made wrong on purpose: global slot ids before and after."""

    layer: int
    expert: int
    was: int
    now: int


class ReplicaMaps:
    """Replica tables and slot contents of every layer; all ranks hold the same.

    One int32 buffer `[layers, width]` holds everything of a layer in one row, so that a commit is
    one in-place copy however many layers change. Views of it, at fixed addresses:

    physical: `[layers, experts, ranks]` global slot ids, -1 where there is no such replica. bounds:
    `[layers, experts, ranks]`, the 65,536ths of the expert's tokens that this replica and those
    before it take. replica_count: `[layers, experts]`. slot_expert: `[layers, ranks,
    slots_per_rank]`.
    """

    def __init__(self, shape: Shape, placement: Placement) -> None:
        self.shape = shape
        layers, experts, ranks, slots = shape.layers, shape.experts, shape.ranks, shape.slots
        each = experts * ranks
        self._buffer = torch.empty(layers, 2 * each + experts + slots, dtype=torch.int32)
        self.physical = self._buffer[:, :each].view(layers, experts, ranks)
        self.bounds = self._buffer[:, each : 2 * each].view(layers, experts, ranks)
        self.replica_count = self._buffer[:, 2 * each : -slots]
        self.slot_expert = self._buffer[:, -slots:].view(layers, ranks, shape.slots_per_rank)
        self._by_layer: list[tuple[Tensor, Tensor]] = list(
            zip(self.bounds.unbind(0), self.physical.unbind(0), strict=True)
        )
        every, maps = np.arange(layers), derive_maps(placement)
        tables = maps.replica_count, maps.physical
        self.write(self.stage(every, placement.slots, *tables, placement.parts()))

    def stage(
        self,
        layers: NDArray[np.integer],
        slots: NDArray[np.int32],
        replica_count: NDArray[np.int32],
        physical: NDArray[np.int32],
        parts: NDArray[np.int32] | None = None,
    ) -> MapUpdate:
        """Lay out new tables of `layers` (`[n]`) for `write`; any thread, off the forward.

        slots, parts: `[n, ranks, slots_per_rank]`; without parts every expert is split evenly.
        replica_count, physical: as in `Maps`, derived from `slots`. Raises TransferError where an
        expert has more replicas than there are ranks.
        """
        shape = self.shape
        n, _, width = physical.shape
        if width > shape.ranks:
            raise TransferError(
                f"maps: an expert has {width} replicas, expected at most one on each of "
                f"{shape.ranks} ranks; do not place an expert twice on a rank"
            )
        wide = np.full((n, shape.experts, shape.ranks), -1, dtype=np.int32)
        wide[:, :, :width] = physical
        flat = (even_parts(slots, shape.experts) if parts is None else parts).reshape(n, -1)
        taken = np.where(wide >= 0, flat[np.arange(n)[:, None, None], wide], 0)
        bounds = taken.cumsum(axis=2, dtype=np.int32)
        columns = (wide.reshape(n, -1), bounds.reshape(n, -1), replica_count, slots.reshape(n, -1))
        rows = torch.from_numpy(np.concatenate(columns, axis=1))
        return MapUpdate(torch.from_numpy(layers.astype(np.int64)), rows)

    def write(self, update: MapUpdate) -> None:
        """Put new tables in force: one copy, in the forward's own order, addresses stay."""
        self._buffer.index_copy_(0, update.layers, update.rows)

    def choose(self, layer: int, experts: Tensor, spread: Tensor) -> Tensor:
        """`[n, topk]` int64 global slot ids that serve `experts` (`[n, topk]` int64).

        spread: `[n, 1]` int64 of `spread_of`. A token takes one replica wherever it is computed,
        the first whose bound lies above its spread: each takes its share of evenly spread tokens.
        """
        bounds, physical = self._by_layer[layer]
        replica = (bounds[experts] <= spread[:, :, None]).sum(-1)
        return physical[experts, replica].long()

    def parts(self, layer: int, rank: int) -> Tensor:
        """`[slots_per_rank]` int32: the 65,536ths of its expert's tokens that each slot takes."""
        bounds, physical = self._by_layer[layer]
        taken = bounds.diff(dim=1, prepend=torch.zeros_like(bounds[:, :1]))
        first = rank * self.shape.slots_per_rank
        own = torch.arange(first, first + self.shape.slots_per_rank)[:, None, None]
        return torch.where(physical == own, taken, 0).sum((1, 2))

    def break_entry(self, layer: int, expert: int, rank: int) -> BrokenEntry:
        """Make one entry wrong on this rank: the replica of `expert` that `rank` itself holds.

        The entry then names a slot of the next rank with another expert, so the error shows under
        both dispatch modes: a wrong expert answers, or none does. Raises LocalProtocolError where
        the rank does not hold the expert.
        """
        per_rank = self.shape.slots_per_rank
        count = int(self.replica_count[layer, expert])
        replicas: list[int] = self.physical[layer, expert, :count].tolist()
        at = next((i for i, slot in enumerate(replicas) if slot // per_rank == rank), -1)
        if at < 0:
            raise LocalProtocolError(
                f"maps: rank {rank} holds no replica of layer {layer}, expert {expert} to deny; "
                "name an expert that it holds"
            )
        neighbour = (rank + 1) % self.shape.ranks
        held: list[int] = self.slot_expert[layer, neighbour].tolist()
        now = neighbour * per_rank + next(s for s, other in enumerate(held) if other != expert)
        self.physical[layer, expert, at] = now
        return BrokenEntry(layer, expert, replicas[at], now)


def spread_of(index: Tensor) -> Tensor:
    """`[n, 1]` int64 below `WHOLE`: where each token of `index` (`[n]` int64) falls among replicas.

    A multiplicative hash of the token's index in the step: evenly spread, no state, and the same on
    every rank that computes it.
    """
    return ((index * _KNUTH & _WORD) // _HASHES)[:, None]

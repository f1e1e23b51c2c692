"""The tables that engines read, derived from a placement: finished arrays for every rank.

Owns their layout and the law that every entry names a slot which holds the expert. It must not know
epochs, messages or engines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement, check_complete, count_replicas

_RADIX_LIMIT = 1 << 16
"""numpy sorts 16-bit integers stably by radix, several times faster than wider ones."""


@dataclass(frozen=True, slots=True)
class Maps:
    """Finished tables of all ranks for a set of layers; all int32, C-contiguous and read-only.

    A rank's own tables are `log2phy[rank]` and `expert_map[rank]`, contiguous as they are.
    """

    replica_count: NDArray[np.int32]
    """`[n, experts]`."""
    physical: NDArray[np.int32]
    """`[n, experts, max_replicas]` global slot ids, ascending, padded with -1."""
    log2phy: NDArray[np.int32]
    """`[ranks, n, experts]` the global slot id that a rank routes an expert to: replica `rank %
    count`, so that source ranks spread evenly over the replicas."""
    expert_map: NDArray[np.int32]
    """`[ranks, n, experts]` local slot of the expert at the rank, the lowest where it has several;
    -1 where it has none."""


def derive_maps(placement: Placement, layers: NDArray[np.integer] | None = None) -> Maps:
    """Derive every rank's tables for `layers` (`[n]` layer indices; None means all).

    Law: every entry of `log2phy` names a slot that holds the expert. Raises PlacementError where an
    expert has no slot.
    """
    chosen = placement.slots if layers is None else placement.slots[layers]
    n, ranks, per_rank = chosen.shape
    experts = placement.experts
    check_complete(chosen, experts)
    flat = chosen.reshape(n, ranks * per_rank)
    counts = count_replicas(flat, experts)
    physical = _physical(flat, counts)

    log2phy = _turns(physical, counts, ranks)
    # Written from the highest local slot down: of duplicates the lowest slot stays.
    expert_map = np.full((ranks, n, experts), -1, dtype=np.int32)
    at_rank = np.arange(ranks)
    at_row = np.arange(n)[:, None]
    for slot in range(per_rank - 1, -1, -1):
        expert_map[at_rank, at_row, chosen[:, :, slot]] = slot
    for array in (counts, physical, log2phy, expert_map):
        array.setflags(write=False)
    return Maps(counts, physical, log2phy, expert_map)


def _turns(physical: NDArray[np.int32], counts: NDArray[np.int32], ranks: int) -> NDArray[np.int32]:
    """`[ranks, n, experts]` every rank's choice: one rank takes the replica after its neighbour's.

    Rank by rank, since all at once scatters over an array that no cache holds: 360 ms against 45 at
    1,024 ranks x 58 layers x 256 experts.
    """
    chosen = np.empty((ranks, counts.size), dtype=np.int32)
    table = physical.reshape(-1)
    first = np.arange(counts.size) * physical.shape[2]
    last = first + counts.reshape(-1) - 1
    place, at_last = first.copy(), np.empty(counts.size, dtype=np.bool_)
    for row in chosen:
        table.take(place, out=row, mode="clip")
        np.equal(place, last, out=at_last)
        place += 1
        np.copyto(place, first, where=at_last)
    return chosen.reshape(ranks, *counts.shape)


def _physical(flat: NDArray[np.int32], counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """`[n, experts, max_replicas]` ascending global slot ids, -1 padded."""
    n, experts = counts.shape
    keys = flat.astype(np.uint16) if experts <= _RADIX_LIMIT else flat
    order = np.argsort(keys, axis=1, kind="stable")
    held = np.take_along_axis(flat, order, axis=1)
    start = np.cumsum(counts, axis=1) - counts
    replica = np.arange(flat.shape[1]) - np.take_along_axis(start, held, axis=1)
    physical = np.full((n, experts, int(counts.max())), -1, dtype=np.int32)
    physical[np.arange(n)[:, None], held, replica] = order
    return physical

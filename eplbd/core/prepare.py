"""One epoch as one rank sees it: written once by the leader, checked whole by the agent.

Owns the way from `EpochPlan` to `Prepare` messages and back to a trusted target placement. The
check is the reason why a wrong or hostile plan cannot make a rank route to a slot whose bytes never
came: every slot that changes must be filled by exactly one transfer, and every map entry must name
a slot that holds its expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.maps import derive_maps
from eplbd.core.messages import Prepare
from eplbd.core.placement import Placement
from eplbd.core.rounds import Col
from eplbd.core.shares import check_parts, even_parts
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eplbd.core.plan import EpochPlan


def write_prepares(plan: EpochPlan, *, term: int, epoch: int, lane: int) -> list[Prepare]:
    """Return one message per rank, index = rank; maps are derived once for all."""
    maps = derive_maps(plan.target, plan.layers)
    rows = plan.target.slots[plan.layers]
    parts = None if plan.target.shares is None else plan.target.parts()[plan.layers]
    if parts is not None and np.array_equal(parts, even_parts(rows, plan.target.experts)):
        parts = None
    return [
        Prepare(
            term=term,
            epoch=epoch,
            base_digest=plan.base_digest,
            target_digest=plan.target.digest,
            lane=lane,
            rounds=plan.rounds,
            layers=plan.layers,
            slots=rows,
            transfers=plan.for_rank(rank),
            replica_count=maps.replica_count,
            physical=maps.physical,
            log2phy=maps.log2phy[rank],
            expert_map=maps.expert_map[rank],
            parts=parts,
        )
        for rank in range(plan.target.ranks)
    ]


def check_prepare(message: Prepare, current: Placement, rank: int) -> Placement:
    """Return the placement that `message` leads to from `current`.

    Raises PlacementError naming the first thing wrong: base, shapes, ids, shares that are no whole,
    a changed slot that no transfer fills, a transfer from a slot that does not hold its expert, or
    a map entry that names a wrong slot.
    """
    if message.base_digest != current.digest:
        raise PlacementError(
            f"prepare: base is {message.base_digest}, in force is {current.digest}; "
            "the leader must plan from the map in force"
        )
    layers = message.layers
    if (
        layers.size == 0
        or (np.diff(layers) <= 0).any()
        or layers[0] < 0
        or layers[-1] >= current.layers
    ):
        raise PlacementError(f"prepare: layers must be ascending within 0..{current.layers - 1}")
    shape = (layers.size, current.ranks, current.slots_per_rank)
    if message.slots.shape != shape:
        raise PlacementError(f"prepare: slots have shape {message.slots.shape}, expected {shape}")
    if ((message.slots < 0) | (message.slots >= current.experts)).any():
        raise PlacementError(f"prepare: slots must hold experts 0..{current.experts - 1}")
    if message.parts is not None:
        check_parts(message.parts, message.slots, current.experts)
    target = current.with_layers(layers, message.slots, message.parts)
    if target.digest != message.target_digest:
        raise PlacementError(
            f"prepare: slots lead to {target.digest}, announced was {message.target_digest}"
        )
    _check_transfers(message, current, target, rank)
    _check_maps(message, current, rank)
    return target


def _check_transfers(message: Prepare, current: Placement, target: Placement, rank: int) -> None:
    rows = message.transfers
    if rows.shape[1] != len(Col):
        raise PlacementError(
            f"prepare: transfers have {rows.shape[1]} columns, expected {len(Col)}"
        )
    ends = (rows[:, Col.SRC] == rank) | (rows[:, Col.DST] == rank)
    _demand(rows, ends, "concerns another rank")
    low, high = _bounds(message, current)
    _demand(
        rows,
        ((rows >= low) & (rows < high)).all(axis=1),
        f"leaves the bounds {low.tolist()}..{high.tolist()}",
    )
    incoming = rows[rows[:, Col.DST] == rank]
    layer, slot = incoming[:, Col.LAYER], incoming[:, Col.DST_SLOT]
    changed = current.slots[:, rank] != target.slots[:, rank]
    filled = np.zeros_like(changed, dtype=np.int32)
    np.add.at(filled, (layer, slot), 1)
    wrong = np.argwhere(filled != changed)
    if wrong.size:
        at_layer, at_slot = (int(i) for i in wrong[0])
        times = int(filled[at_layer, at_slot])
        raise PlacementError(
            f"prepare: layer {at_layer}, rank {rank}, slot {at_slot} is filled by {times} "
            f"transfers, expected {int(changed[at_layer, at_slot])}",
            layer=at_layer,
            rank=rank,
            slot=at_slot,
        )
    _demand(
        incoming,
        target.slots[layer, rank, slot] == incoming[:, Col.EXPERT],
        "brings another expert than the map names",
    )
    buffers = incoming[:, Col.DST_BUFFER]
    if np.unique(buffers).size != buffers.size:
        raise PlacementError("prepare: two transfers share a staging buffer")
    live = rows[(rows[:, Col.SRC] == rank) & (rows[:, Col.SRC_BUFFER] < 0)]
    held = current.slots[live[:, Col.LAYER], rank, live[:, Col.SRC_SLOT]]
    _demand(live, held == live[:, Col.EXPERT], "reads a slot that does not hold its expert")


def _bounds(message: Prepare, current: Placement) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return inclusive lower and exclusive upper bounds, one per column."""
    low = np.zeros(len(Col), dtype=np.int32)
    low[[Col.SRC_SLOT, Col.SRC_BUFFER]] = -1
    high = np.zeros(len(Col), dtype=np.int32)
    high[Col.ROUND], high[Col.LAYER], high[Col.EXPERT] = (
        message.rounds,
        current.layers,
        current.experts,
    )
    high[[Col.SRC, Col.DST]] = current.ranks
    high[[Col.SRC_SLOT, Col.DST_SLOT]] = current.slots_per_rank
    # Buffers are bounded by what one rank may receive; the executor refuses more than it has.
    high[[Col.SRC_BUFFER, Col.DST_BUFFER]] = current.layers * current.slots_per_rank
    return low, high


def _check_maps(message: Prepare, current: Placement, rank: int) -> None:
    n, experts = message.layers.size, current.experts
    flat = message.slots.reshape(n, -1)
    for name in ("replica_count", "log2phy", "expert_map"):
        shape = getattr(message, name).shape
        if shape != (n, experts):
            raise PlacementError(f"prepare: {name} has shape {shape}, expected {(n, experts)}")
    row = np.arange(n)[:, None]
    everyone = np.broadcast_to(np.arange(experts), (n, experts))
    _demand_names(message.log2phy, flat, everyone, row, "log2phy")
    here = message.expert_map >= 0
    own = message.slots[:, rank]
    local = np.where(here, message.expert_map, 0)
    if (local >= own.shape[1]).any() or (own[row, local][here] != everyone[here]).any():
        raise PlacementError("prepare: expert_map names a local slot that does not hold its expert")
    physical = message.physical
    if physical.shape[:2] != (n, experts) or physical.shape[2] < 1:
        raise PlacementError(
            f"prepare: physical has shape {physical.shape}, expected {(n, experts)} and at least "
            "one replica"
        )
    counts = message.replica_count
    used = np.arange(physical.shape[2]) < counts[:, :, None]
    beyond = (counts < 1) | (counts > physical.shape[2])
    if beyond.any() or (used != (physical >= 0)).any():
        raise PlacementError("prepare: physical and replica_count disagree")
    first = physical[:, :, :1]
    filled = np.where(used, physical, first).reshape(n, -1)
    _demand_names(filled, flat, np.repeat(everyone, physical.shape[2], axis=1), row, "physical")


def _demand_names(
    table: NDArray[np.int32],
    flat: NDArray[np.int32],
    expert: NDArray[np.int64],
    row: NDArray[np.int64],
    name: str,
) -> None:
    """Every entry of `table` must be a slot of `flat` that holds `expert`."""
    inside = (table >= 0) & (table < flat.shape[1])
    if not inside.all() or (flat[row, table] != expert).any():
        raise PlacementError(f"prepare: {name} names a slot that does not hold its expert")


def _demand(rows: NDArray[np.int32], good: object, complaint: str) -> None:
    """Every row must be `good` (`[m]` bool)."""
    if not np.asarray(good).all():
        raise PlacementError(
            f"prepare: transfer {rows[int(np.argmin(np.asarray(good)))].tolist()} {complaint}"
        )

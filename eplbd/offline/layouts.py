"""Where a simulation starts: the engines' layout, an evenly spread one, or a file.

Owns the even spread and the group's shape from a few numbers. Must not know heat: nothing here is
planned.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eplbd.core.placement import Placement, validate
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, PlacementError
from eplbd.traces.placements import load_placement


def group(ranks: int, slots: int, nodes: int, experts: int) -> Topology:
    """Ranks in equal consecutive blocks on nodes. Raises ConfigError where experts do not fit."""
    if nodes < 1 or ranks % nodes:
        raise ConfigError(f"{ranks} ranks on {nodes} nodes; expected equally many ranks per node")
    if ranks * slots < experts:
        least = -(-experts // max(1, ranks))
        raise ConfigError(
            f"{experts} experts do not fit on {ranks} ranks x {slots} slots; "
            f"expected at least {least} slots"
        )
    return Topology(ranks, slots, tuple(rank * nodes // ranks for rank in range(ranks)))


def unbalanced(layers: int, experts: int, ranks: int) -> Placement:
    """What serves where no balancer is enabled: the experts in order, each once.

    Where ranks do not divide experts the last ranks hold one less; they fill up with a copy of
    their own last expert, which changes no load. Raises ConfigError where there are more ranks than
    experts.
    """
    if ranks > experts:
        raise ConfigError(
            f"{experts} experts on {ranks} ranks without copies; expected an expert each"
        )
    blocks = np.array_split(np.arange(experts, dtype=np.int32), ranks)
    widest = len(blocks[0])
    rows = np.stack([np.pad(block, (0, widest - len(block)), mode="edge") for block in blocks])
    return Placement(np.broadcast_to(rows, (layers, *rows.shape)), experts)


def spread(layers: int, experts: int, topology: Topology) -> Placement:
    """Experts in order over the ranks; copies of evenly spaced experts, half the group away.

    Under even heat every rank carries about the same, which the engines' layout does not give.
    """
    ranks, per_rank = topology.ranks, topology.slots_per_rank
    blocks = np.array_split(np.arange(experts), ranks)
    extra = topology.slots - experts
    wanted = (np.arange(extra) * experts // max(1, extra)) % experts
    home = {int(e): rank for rank, block in enumerate(blocks) for e in block}
    table = [block.tolist() for block in blocks]
    for expert in wanted.tolist():
        start = home[expert] + max(1, ranks // 2)
        turns = [(start + turn) % ranks for turn in range(ranks)]
        room = [rank for rank in turns if len(table[rank]) < per_rank]
        fresh = [rank for rank in room if expert not in table[rank]]
        table[(fresh or room)[0]].append(expert)
    slots = np.array(table, dtype=np.int32)
    return Placement(np.broadcast_to(slots, (layers, *slots.shape)), experts)


def initial(
    choice: str, layers: int, experts: int, topology: Topology, recorded: Placement | None
) -> Placement:
    """The placement that `--initial` names: linear, spread, recorded, or a file's.

    Raises ConfigError: it does not fit the trace and the group.
    """
    if choice == "linear":
        return Placement.linear(layers, experts, topology.ranks, topology.slots_per_rank)
    if choice == "spread":
        return spread(layers, experts, topology)
    if choice == "recorded":
        if recorded is None:
            raise ConfigError("--initial recorded: the trace does not hold its placement")
        placement = recorded
    else:
        placement = load_placement(Path(choice))
    try:
        return validate(
            placement.slots,
            experts=experts,
            topology=topology,
            layers=layers,
            allow_duplicates=True,
            shares=placement.shares,
        )
    except PlacementError as error:
        raise ConfigError(f"--initial {choice}: {error}") from error

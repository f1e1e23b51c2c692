"""Replicate the hottest experts, pack the replicas onto the lightest ranks: DeepSeek's EPLB.

After `rebalance_experts` of deepseek-ai/EPLB, with what it leaves out: replicas never share a
rank, nothing is replicated more often than there are ranks, no heat means even replicas, and a
layer stays as it is unless moving it pays. The functions are pure; L, E, R and S are the numbers of
layers, experts, ranks and slots per rank.
"""

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd import (
    Budget,
    Heat,
    Placement,
    PolicyError,
    Register,
    Topology,
    align,
    hookimpl,
    rank_load,
)
from eplbd_policies.allowance import within

Load = NDArray[np.float64]
Counts = NDArray[np.int64]
Ids = NDArray[np.int64]


def replicate(load: Load, slots: int, most: int) -> Counts:
    """Replicas of each expert, `[L, E]`, `slots` per layer and `most` per expert.

    load: `[L, E]`, positive. One more copy at a time, to the expert that is hottest per replica;
    that minimises the hottest replica.
    """
    layers, experts = load.shape
    every = np.arange(layers)
    count = np.ones((layers, experts), np.int64)
    share = load.copy()
    for _ in range(slots - experts):
        hottest = share.argmax(1)
        count[every, hottest] += 1
        replicas = count[every, hottest]
        share[every, hottest] = np.where(replicas < most, load[every, hottest] / replicas, -np.inf)
    return count


def pack(load: Load, room: Counts, speed: Load) -> Ids:
    """Bin of each item, `[L, n]`: hottest item first, to the lightest bin with room.

    load: `[L, n]`, n the sum of `room`. room: `[bins]` items. speed: `[bins]`; a bin twice as fast
    is half as loaded by the same item.
    """
    layers, items = load.shape
    every = np.arange(layers)
    order = np.argsort(-load, axis=1, kind="stable")
    free = np.tile(room, (layers, 1))
    total = np.zeros((layers, room.size))
    bins = np.empty((layers, items), np.int64)
    for item in order.T:
        lightest = np.where(free > 0, total / speed, np.inf).argmin(1)
        bins[every, item] = lightest
        total[every, lightest] += load[every, item]
        free[every, lightest] -= 1
    return bins


def place(load: Load, count: Counts, ranks: int) -> Ids:
    """Experts of each rank, `[L, R, S]`: replicas by descending share, each to the lightest rank.

    load, count: `[L, E]`; counts of a layer sum to R * S, none exceeds R. No rank gets an expert
    twice: a replica that finds only ranks which hold its expert changes places with another one.
    """
    layers, experts = load.shape
    per_rank = int(count[0].sum()) // ranks
    every = np.arange(layers)
    share = load / count
    order = np.argsort(-share, axis=1, kind="stable")
    items = np.stack([np.repeat(order[i], count[i, order[i]]) for i in every])
    slots = np.full((layers, ranks, per_rank), -1, np.int64)
    used = np.zeros((layers, ranks), np.int64)
    total = np.zeros((layers, ranks))
    holds = np.zeros((layers, experts, ranks), np.bool_)
    for expert in items.T:
        blocked = holds[every, expert] | (used == per_rank)
        rank = np.where(blocked, np.inf, total).argmin(1)
        for i in np.flatnonzero(blocked[every, rank]):
            rank[i] = _swap(slots[i], used[i], total[i], holds[i], share[i], int(expert[i]))
        slots[every, rank, used[every, rank]] = expert
        used[every, rank] += 1
        total[every, rank] += share[every, expert]
        holds[every, expert, rank] = True
    return slots


def _swap(
    slots: Ids, used: Counts, total: Load, holds: NDArray[np.bool_], share: Load, expert: int
) -> int:
    """Free a slot for `expert` on a full rank, in one layer and in place; returns that rank.

    Some rank has room but holds `expert`. Every rank that does not is full and so holds something
    that the rank with room lacks; the lightest of them gives up what is nearest in load.
    """
    roomy = int(np.argmax(used < slots.shape[1]))
    giver = int(np.where(holds[expert], np.inf, total).argmin())
    given = np.where(
        holds[slots[giver], roomy], np.inf, np.abs(share[slots[giver]] - share[expert])
    )
    at = int(given.argmin())
    moved = slots[giver, at]
    slots[roomy, used[roomy]] = moved
    slots[giver, at] = slots[giver, -1]  # the last slot is the one that the caller fills
    used[roomy] += 1
    used[giver] -= 1
    total[roomy] += share[moved]
    total[giver] -= share[moved]
    holds[moved, roomy], holds[moved, giver] = True, False
    return giver


def rename(slots: Ids, current: NDArray[np.int32], experts: int) -> Ids:
    """The same sets of experts, `[L, R, S]`, each on the rank that holds most of it already.

    Which rank of a node gets which set changes nothing for the balance, but most of the moves.
    """
    layers, ranks, _ = slots.shape
    every = np.arange(layers)
    new = np.zeros((layers, ranks, experts), np.float32)
    old = np.zeros((layers, ranks, experts), np.float32)
    np.put_along_axis(new, slots, 1, axis=2)
    np.put_along_axis(old, current.astype(np.int64), 1, axis=2)
    common = new @ old.transpose(0, 2, 1)  # [L, set, rank]
    chosen = np.empty((layers, ranks), np.int64)
    # Ranks with the clearest claim choose first.
    for rank in np.argsort(-common.max(1).sum(0), kind="stable"):
        best = common[:, :, rank].argmax(1)
        chosen[:, rank] = best
        common[every, best] = -1
    return slots[every[:, None], chosen]


def deal(load: Load, size: Counts, groups: int) -> Ids:
    """Node of each expert, `[L, E]`, so that nodes are loaded alike for their size.

    size: `[nodes]` ranks. groups: of consecutive experts, which stay together; each node gets
    groups in proportion to its ranks. Where that does not come out even, or there are none,
    experts are dealt one by one.
    """
    layers, experts = load.shape
    if groups > 1 and not (groups * size % size.sum()).any():
        together = load.reshape(layers, groups, -1)
        home = pack(together.sum(2), _quota(groups, size), size.astype(np.float64))
        return np.repeat(home, together.shape[2], axis=1)
    return pack(load, _quota(experts, size), size.astype(np.float64))


def rebalance(
    load: Load, topology: Topology, current: NDArray[np.int32], *, hierarchical: bool, groups: int
) -> NDArray[np.int32]:
    """A placement for `load` `[L, E]`, as `[L, R, S]`, from scratch.

    hierarchical: experts are dealt to nodes first, `groups` of them together, and all replicas of
    one stay on its node, so that copies come from beside and a token's experts lie together.
    """
    layers, experts = load.shape
    per_rank = topology.slots_per_rank
    nodes = np.unique(topology.node_of, return_inverse=True)[1]
    size = np.bincount(nodes)
    home = deal(load, size, groups) if hierarchical else np.zeros(load.shape, np.int64)
    share = np.bincount(home[0], minlength=size.size)
    if share.min() < per_rank or not hierarchical:  # a rank needs as many experts as it has slots
        nodes, size, share = np.zeros_like(nodes), np.array([nodes.size]), np.array([experts])
        home = np.zeros(load.shape, np.int64)
    slots = np.empty(current.shape, np.int32)
    for node, ranks in enumerate(size):
        members = np.flatnonzero(nodes == node)
        local = np.argsort(home != node, axis=1, kind="stable")[:, : share[node]]  # its expert ids
        heat = np.take_along_axis(load, local, axis=1)
        count = replicate(heat, int(ranks) * per_rank, int(ranks))
        ids = place(heat, count, int(ranks))
        named = np.take_along_axis(local, ids.reshape(layers, -1), axis=1).reshape(ids.shape)
        slots[:, members] = rename(named, current[:, members], experts)
    return slots


def _quota(experts: int, size: Counts) -> Counts:
    """How many of each node, in proportion to its ranks; the remainder goes to the first ones."""
    exact = experts * size
    quota: Counts = exact // size.sum()
    order = np.argsort(-(exact % size.sum()), kind="stable")
    quota[order[: experts - quota.sum()]] += 1
    return quota


class Greedy:
    """Replicate and pack, layer by layer; of the layers, those whose moves pay most."""

    name = "greedy"
    eplbd_api = 1

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """min_gain: least relative cut of a layer's hottest rank that is worth moving the layer.

        hierarchical: where there are several nodes, keep all replicas of an expert on one. groups:
        of the router, for a router that limits a token to a few groups of consecutive experts
        (DeepSeek: 8); they are dealt to nodes whole, where that comes out even; 1 for none.

        Both buy locality with balance. Hottest rank above the best possible, 256 experts, heat
        lognormal: on 32 ranks of 4 nodes 0.4 % without hierarchy, 0.5 % with, 11 % in 8 groups; on
        64 ranks of 8 nodes 1.5 %, 2.1 %, 44 %.
        """

        min_gain: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.02
        hierarchical: bool = True
        groups: Annotated[int, msgspec.Meta(ge=1)] = 1

        def __post_init__(self) -> None:
            """Refuse groups that nothing would deal."""
            if self.groups > 1 and not self.hierarchical:
                raise ValueError(
                    "groups are dealt to nodes: set hierarchical = true, or groups = 1"
                )

    def __init__(self, options: Options) -> None:
        self._options = options

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """A new placement of every layer that pays, within the budget; the others as they are."""
        if current.slots_per_rank > current.experts:
            return current  # some rank would have to hold an expert twice
        if current.experts % self._options.groups:
            raise PolicyError(
                f"greedy: {current.experts} experts are not {self._options.groups} equal groups; "
                "set groups in [policy.options] to the model's number of router groups, or to 1"
            )
        total = heat.total
        # Evens out what is cold or not measured at all, and decides nothing else.
        load = total + 1e-9 * np.maximum(total.mean(1, keepdims=True), 1.0)
        fresh = rebalance(
            load,
            topology,
            current.slots,
            hierarchical=self._options.hierarchical,
            groups=self._options.groups,
        )
        target = align(current, Placement(fresh, current.experts))
        before = rank_load(current, total).max(1)
        gain = before - rank_load(target, total).max(1)
        moves = target.moves_from(current)
        pays = (gain > self._options.min_gain * before) & (moves > 0)
        layers = np.flatnonzero(pays)
        layers = layers[np.argsort(-gain[layers] / moves[layers], kind="stable")]
        chosen = within(layers, moves, budget)
        return current.with_layers(chosen, target.slots[chosen]) if chosen.size else current


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer `greedy`."""
    register(Greedy)

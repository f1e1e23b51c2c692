"""Repair the placement in force: the few moves that pay, on what the next window may bring.

For each layer by itself: the window is averaged into samples, a forecaster that has proved itself
on the window's own past sets their level, a local search repairs what is in force, and where repair
is stuck a fresh placement competes, with its moves. A layer stays as it is unless its gain is
beyond what noise alone would show. The parts are `forecast`, `board`, `search` and `fresh`.
"""

from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Register, Topology, align, even_shares, hookimpl
from eplbd_policies import weighted
from eplbd_policies.allowance import allowed, within
from eplbd_policies.board import Floats, Ints, compiled, counted, lay
from eplbd_policies.forecast import SAMPLES
from eplbd_policies.fresh import construct, rename
from eplbd_policies.outlook import Outlook, doubt, headstart, look_ahead
from eplbd_policies.search import Terms, crest, effort, moved, peak, repair
from eplbd_policies.shake import shake
from eplbd_policies.weigh import carried
from eplbd_policies.weighted import Plan

REACH = 0.04
"""Excess over the mean that a search from a fresh placement can be hoped to leave."""
LEAST = 2e-4
"""Gain of a step, of the mean rank load, that is worth the time; less where moves are cheaper."""
ROUNDING = 1e-7
WORK = 500_000_000
"""Evaluations that one proposal makes at most, give or take a layer: seconds of one core."""
RANKS_PER_STEP = 8
"""A layer that is planned may have a step for every so many ranks."""
FITS = 8
"""Times that fitting shares goes over all samples of a layer, for every expert and rank."""
DEAREST = 0.1
"""To meet a budget the price of moves is raised up to this, then layers are left out."""
STRIDE = 8.0
"""By which it is raised at once at most."""

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Factor = Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)]


class Weights(NamedTuple):
    """The options, as the compiled code takes them."""

    move_cost: float
    min_gain: float
    caution: float


@compiled
def doubled(slots: Ints) -> bool:
    """Whether some rank holds an expert twice: a search cannot start there."""
    for rank in range(slots.shape[0]):
        for slot in range(1, slots.shape[1]):
            for before in range(slot):
                if slots[rank, slot] == slots[rank, before]:
                    return True
    return False


@compiled
def settle(
    outlook: Outlook, layer: int, price: Floats, cost: float, room: int, left: Ints, slots: Ints
) -> tuple[float, int]:
    """Repair `slots` or replace them by a fresh placement, in place; the taxed peak, and moves.

    left: `[1]` evaluations that the layer may have; what they came to is taken off.
    """
    heat, weight, risk = outlook.heat[layer], outlook.weight[layer], outlook.risk[layer]
    head, least = outlook.head, max(min(LEAST, cost), ROUNDING)
    board = lay(heat, weight, risk, slots, price, head)
    best, moves = np.inf, 0
    if not doubled(slots):
        moves = repair(board, Terms(cost, least), room, left)
        best = peak(board, risk)
    # Where repair is stuck; where it was cut short, only what would pay if it moved everything.
    sure = slots.size if left[0] <= 0 else 0
    if best + cost * moves > 1.0 + REACH + cost * sure:
        other = np.empty(slots.shape, np.int64)
        afresh(outlook, layer, price, other)
        left[0] -= slots.size * slots.shape[0]
        board = lay(heat, weight, risk, other, price, head)
        if best + cost * moves > 1.0 + REACH + cost * moved(board):
            repair(board, Terms(0.0, least), slots.size, left)
            rename(other, price, head)
            left[0] -= slots.size * slots.shape[0]
            board = lay(heat, weight, risk, other, price, head)
            needed = repair(board, Terms(cost, least), slots.size, left)
            value = peak(board, risk)
            if needed <= room and value + cost * needed < best + cost * moves:
                best, moves = value, needed
                slots[:] = other
    if shake(board, Terms(cost, least), room, slots):
        board = lay(heat, weight, risk, slots, price, head)
        best, moves = peak(board, risk), moved(board)
    return best, moves


@compiled
def afresh(outlook: Outlook, layer: int, price: Floats, slots: Ints) -> None:
    """Fill `slots` for the samples' mean, by ranks where the moves are few."""
    heat, weight = outlook.heat[layer], outlook.weight[layer]
    mean = np.zeros(heat.shape[1])
    for k in range(weight.shape[0]):
        mean += weight[k] * heat[k]
    construct(mean, outlook.head, slots)
    rename(slots, price, outlook.head)


@compiled
def threshold(outlook: Outlook, layer: int, weights: Weights, slots: Ints) -> float:
    """What a layer's peak has to fall by to be touched: more than noise explains, and enough."""
    mean, count = outlook.mean[layer], counted(slots, outlook.heat.shape[2])
    chance = doubt(outlook.noise[layer], slots, count, outlook.steps, mean)
    return weights.caution * chance + weights.min_gain


@compiled
def plan(
    outlook: Outlook, price: Floats, weights: Weights, room: int, left: Ints, found: Plan
) -> None:
    """Plan the layers of `found`, which holds what is in force, for even splits.

    price: `[L, R, E]`. room: moves of a layer at most. left: `[1]` evaluations that may still be
    made. They are shared evenly by the layers that have something to gain, hottest first; what one
    leaves is the next one's. Where that is little, fewer layers have more of it: a few steps would
    gain too little to touch a layer for, in this cycle and in every later one.
    """
    before, excess = np.zeros(found.moves.shape[0]), np.zeros(found.moves.shape[0])
    least = np.zeros(found.moves.shape[0])
    for layer in range(before.shape[0]):
        if outlook.mean[layer] > 0:
            heat, weight, risk = outlook.heat[layer], outlook.weight[layer], outlook.risk[layer]
            slots = found.slots[layer]
            before[layer] = crest(heat, weight, risk, outlook.head, slots)
            least[layer] = threshold(outlook, layer, weights, slots)
            excess[layer] = before[layer] - 1.0 - least[layer]
    hot = np.argsort(-excess, kind="mergesort")[: (excess > 0).sum()]
    floor = found.slots.shape[1] // RANKS_PER_STEP + 1
    floor *= effort(found.slots[0], outlook.heat.shape[1])
    for at in range(hot.shape[0]):
        if left[0] <= 0:
            break
        part = np.array([max(left[0] // (hot.shape[0] - at), floor)])
        left[0] -= part[0]
        layer = hot[at]
        slots = found.slots[layer].copy()
        cost = weights.move_cost
        after, needed = settle(outlook, layer, price[layer], cost, room, part, slots)
        left[0] += part[0]
        if before[layer] - after > least[layer]:
            found.gain[layer], found.moves[layer] = before[layer] - after, needed
            found.slots[layer] = slots


@compiled
def weigh(
    outlook: Outlook, price: Floats, weights: Weights, room: int, most: int, now: Plan, found: Plan
) -> None:
    """Settle `found`, planned for even splits, with shares, against `now`.

    most: layers at most, hottest first; the others stay as they are now.
    """
    terms = weighted.Terms(weights.move_cost, weights.min_gain, room)
    before = np.zeros(found.moves.shape[0])
    for layer in range(before.shape[0]):
        if outlook.mean[layer] > 0:
            heat, weight, risk = outlook.heat[layer], outlook.weight[layer], outlook.risk[layer]
            slots, share = now.slots[layer], now.share[layer]
            before[layer] = carried(heat, weight, risk, outlook.head, slots, share)
    hot = np.argsort(-before, kind="mergesort")[: (before > 0).sum()]
    for layer in hot[:most]:
        least = threshold(outlook, layer, weights, now.slots[layer])
        weighted.weigh(outlook, layer, price[layer], terms, least, now, found)
    for layer in hot[most:]:
        found.gain[layer], found.moves[layer] = 0.0, 0
        found.slots[layer] = now.slots[layer]


class Incremental:
    """Few moves for the same balance: repair what is in force, start afresh only where it pays."""

    name = "incremental"
    eplbd_api = 1

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """move_cost: what one move on every rank must gain, of the layer's mean rank load.

        min_gain: least cut of a layer's peak, in the same unit, that is worth touching the layer.
        caution: how much of what noise alone explains is added to that. risk: how much a forecast's
        error counts against placements that live on few large shares. network_cost: price of a move
        from another node, one from the same node being 1. activation: tokens whose time equals that
        of reading one expert's weights; above 0 for decode that is bound by memory. samples: means
        of neighbouring steps that a placement is judged on; 1 is the window's sum.
        """

        move_cost: Share = 0.02
        min_gain: Share = 0.005
        caution: Factor = 1.0
        risk: Factor = 0.5
        network_cost: Factor = 1.5
        activation: Factor = 0.0
        samples: Annotated[int, msgspec.Meta(ge=1, le=64)] = SAMPLES

    def __init__(self, options: Options) -> None:
        self._options = options
        # Compiles, or loads what was compiled: the types and layouts of every later call.
        small = Placement(np.array([[[0, 1], [1, 2]]], np.int32), 3)
        steps, topology = np.ones((1, 1, 3), np.int32), Topology.single_node(2, 2)
        self._plan(steps, topology, small, Budget(None, None, 1.0, 1, weighted=True))

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """Repair the layers in which it pays, within the budget; the others stay as they are."""
        if current.slots_per_rank > current.experts or not len(heat.steps):
            return current  # some rank would have to hold an expert twice; or nothing was seen
        found = self._plan(heat.steps, topology, current, budget)
        layers = np.flatnonzero(found.gain > 0)
        worth = found.gain[layers] / np.maximum(found.moves[layers], 0.5)
        layers = within(layers[np.argsort(-worth, kind="stable")], found.moves, budget)
        if not layers.size:
            return current
        if not budget.weighted:
            return align(current, current.with_layers(layers, found.slots[layers]))
        slots, share = current.slots.copy(), shares_of(current)
        slots[layers], share[layers] = found.slots[layers], found.share[layers]
        return align(current, Placement(slots, current.experts, share.astype(np.float32)))

    def _plan(
        self,
        steps: NDArray[np.int32],
        topology: Topology,
        current: Placement,
        budget: Budget,
    ) -> Plan:
        options, ranks = self._options, topology.ranks
        outlook = look_ahead(
            steps,
            headstart(topology.speed),
            samples=options.samples,
            activation=options.activation,
            risk=options.risk,
        )
        price = prices(current.hosts(), topology, options.network_cost)
        now = as_plan(current)
        # Ranks move at the same time, so a layer's transfers last as long as a rank's part of them.
        cost, limit = options.move_cost / ranks, allowed(budget)
        room = current.slots.size if limit is None else limit
        left, found = np.array([WORK]), now
        while found is now or (found.moves.sum() > room and cost < DEAREST and left[0] > 0):
            weights, trial = Weights(cost, options.min_gain, options.caution), as_plan(current)
            plan(outlook, price, weights, room, left, trial)
            if budget.weighted:
                most = max(WORK // (FITS * ranks * outlook.heat[0].size), 1)
                weigh(outlook, price, weights, room, most, now, trial)
            if found is now or left[0] > 0:
                found = trial
            over = found.moves.sum() / max(room, 1)
            cost = max(min(max(over, 2.0), STRIDE) * cost, 1e-4)
        return found


def shares_of(placement: Placement) -> Floats:
    """`[L, R, S]` the fraction of its expert's tokens that each slot takes."""
    share = even_shares(placement) if placement.shares is None else placement.shares
    return share.astype(np.float64)


def as_plan(placement: Placement) -> Plan:
    """What is in force, as a plan that gains nothing."""
    layers = placement.layers
    slots, share = placement.slots.astype(np.int64), shares_of(placement)
    return Plan(slots, share, np.zeros(layers), np.zeros(layers, np.int64))


def prices(hosts: NDArray[np.bool_], topology: Topology, network_cost: float) -> Floats:
    """`[L, R, E]` price of hosting: 0 on a rank that does, 1 on its node, else `network_cost`.

    hosts: `[L, R, E]`.
    """
    price = np.full(hosts.shape, max(network_cost, 1e-3))
    node_of = np.array(topology.node_of)
    for node in np.unique(node_of):
        members = np.flatnonzero(node_of == node)
        near = np.logical_or.reduce(hosts[:, members], axis=1)
        price[:, members] = np.where(near[:, None, :], 1.0, price[:, members])
    price[hosts] = 0.0
    return price


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer `incremental`."""
    register(Incremental)

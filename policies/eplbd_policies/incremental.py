"""Repair the placement in force: the few moves that pay, on what the next window may bring.

For each layer by itself: the window is averaged into samples, a forecaster that has proved itself
on the window's own past sets their level, a local search repairs what is in force, and where repair
is stuck a fresh placement competes, with its moves. A layer stays as it is unless its gain is
beyond what noise alone would show. The parts are `forecast`, `board`, `search` and `fresh`.
"""

import math
from typing import Annotated, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Register, Topology, align, hookimpl
from eplbd_policies.allowance import allowed, within
from eplbd_policies.board import Floats, Ints, compiled, lay
from eplbd_policies.forecast import SAMPLES, forecast, sample
from eplbd_policies.fresh import construct, rename
from eplbd_policies.search import POWER, Terms, moved, peak, repair
from eplbd_policies.shake import shake

RISK_LIMIT = 2.0
"""Beyond it a placement would be all insurance."""
REACH = 0.04
"""Excess over the mean that a search from a fresh placement can be hoped to leave."""
LEAST = 2e-4
"""Gain of a step, of the mean rank load, that is worth the time; less where moves are cheaper."""
ROUNDING = 1e-7
STEPS_PER_SLOT = 4
"""The search ends by itself in fewer than one step per slot; this only bounds it."""
DEAREST = 0.1
"""To meet a budget the price of moves is raised up to this, then layers are left out."""
STRIDE = 8.0
"""By which it is raised at once at most."""

Planned: TypeAlias = tuple[Ints, Floats, Ints]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Factor = Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)]


class Weights(NamedTuple):
    """The options, as the compiled code takes them."""

    move_cost: float
    min_gain: float
    caution: float
    risk: float


@compiled
def judge(heat: Floats, risk: float, level: Floats, weight: Floats) -> float:
    """Bring the samples `[K, E]` to the forecast level and to a mean rank load of 1, in place.

    weight: `[K]`, out. level: `[E]`, scratch. Returns the tax on uneven shares: with independent
    relative errors e of experts, the mean of the p-norm over them grows with a load's squares as by
    (p - 1) / 2 x e^2.
    """
    samples, experts = heat.shape
    error = forecast(heat, level)
    mean = np.zeros(experts)
    for k in range(samples):
        for expert in range(experts):
            mean[expert] += heat[k, expert] / samples
    overall = mean.sum() / experts
    for k in range(samples):
        weight[k] = 0.0
        for expert in range(experts):
            if mean[expert] > 0:
                heat[k, expert] *= level[expert] / mean[expert]
            heat[k, expert] += 1e-9 * overall
            weight[k] += heat[k, expert]
    total = weight.sum()
    for k in range(samples):
        heat[k] /= max(weight[k], 1e-300)
        weight[k] /= max(total, 1e-300)
    return min(risk * error * (POWER - 1.0) / 2.0, RISK_LIMIT)


@compiled
def doubt(noise: Floats, slots: Ints, count: Ints, steps: int, mean: float) -> float:
    """What the hottest rank may carry above the mean by chance alone, relative to the mean.

    noise: `[E]` variance of a step. mean: tokens of the mean rank in a step. The expected maximum
    of R normal variables is below sqrt(2 ln R) of their deviations.
    """
    ranks, per_rank = slots.shape
    total = 0.0
    for rank in range(ranks):
        for slot in range(per_rank):
            expert = slots[rank, slot]
            total += noise[expert] / (count[expert] * count[expert])
    deviation = math.sqrt(total / ranks / steps) / max(mean, 1e-300)
    return deviation * math.sqrt(2.0 * math.log(max(ranks, 2)))


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
    heat: Floats, weight: Floats, risk: float, price: Floats, cost: float, room: int, slots: Ints
) -> tuple[float, int]:
    """Repair `slots` or replace them by a fresh placement, in place; the taxed peak, and moves."""
    ranks, per_rank = slots.shape
    limit = STEPS_PER_SLOT * slots.size
    least = max(min(LEAST, cost), ROUNDING)
    best, moves = np.inf, 0
    if not doubled(slots):
        board = lay(heat, weight, risk, slots, price)
        moves = repair(board, Terms(cost, least), room, limit)
        best = peak(board, risk)
    other = np.empty((ranks, per_rank), np.int64)
    mean = np.zeros(heat.shape[1])
    for k in range(weight.shape[0]):
        mean += weight[k] * heat[k]
    construct(mean, other)
    rename(other, price)
    board = lay(heat, weight, risk, other, price)
    if best + cost * moves > 1.0 + REACH + cost * moved(board):
        repair(board, Terms(0.0, least), slots.size, limit)
        rename(other, price)
        board = lay(heat, weight, risk, other, price)
        needed = repair(board, Terms(cost, least), slots.size, limit)
        if needed <= room and peak(board, risk) + cost * needed < best + cost * moves:
            slots[:] = other
    shake(heat, weight, risk, price, Terms(cost, least), room, slots)
    board = lay(heat, weight, risk, slots, price)
    return peak(board, risk), moved(board)


@compiled
def plan(
    heat: Floats,
    noise: Floats,
    steps: int,
    current: Ints,
    price: Floats,
    weights: Weights,
    room: int,
) -> tuple[Ints, Floats, Ints]:
    """Plan every layer: slots `[L, R, S]`, relative gains `[L]` and moves `[L]`.

    heat: `[L, K, E]`. noise: `[L, E]`. current: `[L, R, S]`. price: `[L, R, E]`.
    """
    layers, ranks, _ = current.shape
    planned = current.copy()
    gain, moves = np.zeros(layers), np.zeros(layers, np.int64)
    level, weight = np.empty(heat.shape[2]), np.empty(heat.shape[1])
    for layer in range(layers):
        samples = heat[layer].copy()
        mean = samples.sum() / weight.shape[0] / ranks
        if mean <= 0:
            continue
        risk = judge(samples, weights.risk, level, weight)
        samples *= ranks
        board = lay(samples, weight, risk, planned[layer], price[layer])
        before = peak(board, risk)
        least = weights.caution * doubt(noise[layer], planned[layer], board.copies, steps, mean)
        least += weights.min_gain
        if before - 1.0 <= least:
            continue
        after, needed = settle(
            samples, weight, risk, price[layer], weights.move_cost, room, planned[layer]
        )
        if before - after <= least:
            planned[layer] = current[layer]
            continue
        gain[layer], moves[layer] = before - after, needed
    return planned, gain, moves


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
        of reading one expert's weights; above 0 for decode that is bound by memory.
        """

        move_cost: Share = 0.02
        min_gain: Share = 0.005
        caution: Factor = 1.0
        risk: Factor = 0.5
        network_cost: Factor = 1.5
        activation: Factor = 0.0

    def __init__(self, options: Options) -> None:
        self._options = options
        # Compiles, or loads what was compiled: the types and layouts of every later call.
        small = np.array([[[0, 1], [1, 2]]], np.int32)
        self._plan(np.ones((1, 1, 3), np.int32), small, Topology.single_node(2, 2), None)

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """Repair the layers in which it pays, within the budget; the others stay as they are."""
        if current.slots_per_rank > current.experts or not len(heat.steps):
            return current  # some rank would have to hold an expert twice; or nothing was seen
        planned, gain, moves = self._plan(heat.steps, current.slots, topology, allowed(budget))
        layers = np.flatnonzero(moves)
        worth = gain[layers] / moves[layers]
        layers = within(layers[np.argsort(-worth, kind="stable")], moves, budget)
        if not layers.size:
            return current
        return align(current, current.with_layers(layers, planned[layers]))

    def _plan(
        self,
        steps: NDArray[np.int32],
        slots: NDArray[np.int32],
        topology: Topology,
        limit: int | None,
    ) -> Planned:
        options = self._options
        count, layers, experts = steps.shape
        heat = np.empty((layers, min(SAMPLES, count), experts))
        noise = np.empty((layers, experts))
        sample(np.ascontiguousarray(steps), options.activation, heat, noise)
        price = prices(slots, experts, topology, options.network_cost)
        # Ranks move at the same time, so a layer's transfers last as long as a rank's part of them.
        cost, current = options.move_cost / topology.ranks, slots.astype(np.int64)
        room = slots[0].size * len(slots) if limit is None else limit
        found: Planned | None = None
        while found is None or (found[2].sum() > room and cost < DEAREST):
            weights = Weights(cost, options.min_gain, options.caution, options.risk)
            found = plan(heat, noise, count, current, price, weights, room)
            over = found[2].sum() / max(room, 1)
            cost = max(min(max(over, 2.0), STRIDE) * cost, 1e-4)
        return found


def prices(
    slots: NDArray[np.int32], experts: int, topology: Topology, network_cost: float
) -> Floats:
    """`[L, R, E]` price of hosting: 0 on a rank that does, 1 on its node, else `network_cost`."""
    layers, ranks, _ = slots.shape
    hosts = np.zeros((layers, ranks, experts), np.bool_)
    np.put_along_axis(hosts, slots.astype(np.intp), values=True, axis=2)
    price = np.full((layers, ranks, experts), max(network_cost, 1e-3))
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

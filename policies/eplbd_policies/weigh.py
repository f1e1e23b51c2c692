"""Shares of replicas: how much of an expert's tokens each slot best takes, on samples of heat.

Owns the fit of shares to a placement, and a placement made for shares; compiled, for one layer. It
must not know forecasts, budgets or what is in force. Letters as in `board`.

With shares the floor falls: ranks that hold replicas of one expert even out between them, and so do
all that are linked through others (LPLB solves the same per batch, by linear programming).
"""

import math
from typing import NamedTuple

import numpy as np

from eplbd_policies.board import Floats, Ints, compiled, taxed

SWEEPS = 24
"""Over all experts, at each sharpness; most fits end by themselves."""
HALVINGS = 12
"""Of the part of an expert's tokens that one step shifts."""
STILL = 3e-4
"""A sweep that shifts less, of the mean rank's load, is the last."""
SHARPNESS = (1, 3, 5)
"""Squarings: the norm's exponent is 2, 8, then 32. The sharpest alone sees only the hottest rank,
and ends where that is one of two."""


class Scales(NamedTuple):
    """A layer whose shares are being fitted. `load`, `share` and `urgency` change in place."""

    heat: Floats
    """`[K, E]`."""
    risk: float
    load: Floats
    """`[R, K]` taxed."""
    share: Floats
    """`[R, S]`."""
    urgency: Floats
    """`[K]`."""


@compiled
def raised(v: float, squarings: int) -> float:
    """`v` to the power of 2 ** squarings."""
    for _ in range(squarings):
        v = v * v
    return v


@compiled
def load_up(
    heat: Floats, risk: float, head: Floats, slots: Ints, share: Floats, load: Floats
) -> None:
    """`[R, K]` taxed loads of all ranks, head starts `[R]` included, into `load`."""
    for rank in range(slots.shape[0]):
        load[rank] = head[rank]
        for slot in range(slots.shape[1]):
            for k in range(heat.shape[0]):
                load[rank, k] += taxed(heat[k, slots[rank, slot]] * share[rank, slot], risk)


@compiled
def highest(load: Floats, weight: Floats) -> float:
    """Weighted mean over samples of the hottest rank's load, `[R, K]`."""
    peak = 0.0
    for k in range(weight.shape[0]):
        peak += weight[k] * load[:, k].max()
    return peak


@compiled
def split_evenly(slots: Ints, experts: int, share: Floats) -> None:
    """1 / replicas of its expert, for each slot, into `share` `[R, S]`."""
    count = np.zeros(experts)
    for expert in slots.ravel():
        count[expert] += 1.0
    for rank in range(slots.shape[0]):
        for slot in range(slots.shape[1]):
            share[rank, slot] = 1.0 / count[slots[rank, slot]]


@compiled
def slope(scales: Scales, expert: int, place: Ints, added: float, squarings: int) -> float:
    """What the norm grows by per further part of the expert's tokens at a place, after `added`.

    place: `[2]` rank and slot of a replica.
    """
    share, total = scales.share[place[0], place[1]], 0.0
    for k in range(scales.urgency.shape[0]):
        tokens = scales.heat[k, expert]
        then = taxed(tokens * (share + added), scales.risk) - taxed(tokens * share, scales.risk)
        then = max(scales.load[place[0], k] + then, 1e-300)
        marginal = tokens * (1.0 + 2.0 * scales.risk * tokens * (share + added))
        total += scales.urgency[k] * raised(then, squarings) / then * marginal
    return total


@compiled
def give(scales: Scales, expert: int, place: Ints, added: float) -> None:
    """Add a part of the expert's tokens to a place; its rank's load follows."""
    rank, slot = place[0], place[1]
    then = scales.share[rank, slot] + added
    for k in range(scales.urgency.shape[0]):
        tokens = scales.heat[k, expert]
        grown = taxed(tokens * then, scales.risk)
        scales.load[rank, k] += grown - taxed(tokens * scales.share[rank, slot], scales.risk)
    scales.share[rank, slot] = then


@compiled
def shift(scales: Scales, expert: int, places: Ints, squarings: int) -> float:
    """Shift a part of one expert's tokens from its dearest replica to its cheapest; which part.

    places: `[n, 2]` rank and slot of its replicas.
    """
    dearest, cheapest, most, least = -1, -1, -np.inf, np.inf
    for at in range(places.shape[0]):
        here = slope(scales, expert, places[at], 0.0, squarings)
        if scales.share[places[at, 0], places[at, 1]] > 0 and here > most:
            dearest, most = at, here
        if here < least:
            cheapest, least = at, here
    if dearest == cheapest or most <= least * (1.0 + 1e-9):
        return 0.0
    giver, taker = places[dearest], places[cheapest]
    low, high = 0.0, scales.share[giver[0], giver[1]]
    for _ in range(HALVINGS):
        half = (low + high) / 2.0
        there = slope(scales, expert, taker, half, squarings)
        if there < slope(scales, expert, giver, -half, squarings):
            low = half
        else:
            high = half
    give(scales, expert, giver, -low)
    give(scales, expert, taker, low)
    return low


@compiled
def urge(scales: Scales, weight: Floats, squarings: int) -> None:
    """Find what each sample counts, as a factor of its ranks' powers."""
    for k in range(weight.shape[0]):
        total = 0.0
        for rank in range(scales.load.shape[0]):
            total += raised(scales.load[rank, k], squarings)
        norm = total
        for _ in range(squarings):
            norm = math.sqrt(norm)
        scales.urgency[k] = weight[k] * norm / max(total, 1e-300)


@compiled
def index(slots: Ints, experts: int) -> tuple[Ints, Ints]:
    """`[R * S, 2]` places, those of an expert together; and `[E + 1]` where each one's begin."""
    per_rank = slots.shape[1]
    order = np.argsort(slots.ravel(), kind="mergesort")
    places = np.empty((order.shape[0], 2), np.int64)
    first = np.zeros(experts + 1, np.int64)
    for at in range(order.shape[0]):
        places[at, 0], places[at, 1] = order[at] // per_rank, order[at] % per_rank
        first[slots[places[at, 0], places[at, 1]] + 1] += 1
    return places, np.cumsum(first)


@compiled
def fit(
    heat: Floats, weight: Floats, risk: float, head: Floats, slots: Ints, share: Floats
) -> float:
    """Improve `share` `[R, S]` in place, by shifts between two replicas; the taxed peak.

    heat: `[K, E]`, mean rank load of the samples 1. weight: `[K]`, sum 1. share: a valid split.
    """
    samples, experts = heat.shape
    places, first = index(slots, experts)
    load = np.empty((slots.shape[0], samples))
    load_up(heat, risk, head, slots, share, load)
    best, kept = highest(load, weight), share.copy()
    mean = (heat * weight.reshape(samples, 1)).sum(0)
    scales = Scales(heat, risk, load, share, np.empty(samples))
    for squarings in SHARPNESS:
        for _ in range(SWEEPS):
            shifted = 0.0
            for expert in range(experts):
                if first[expert + 1] - first[expert] > 1:
                    urge(scales, weight, squarings)
                    held = places[first[expert] : first[expert + 1]]
                    shifted += shift(scales, expert, held, squarings) * mean[expert]
            peak = highest(load, weight)
            if peak < best:
                best = peak
                kept[:] = share
            if shifted < STILL:
                break
    share[:] = kept
    return best


@compiled
def carried(
    heat: Floats, weight: Floats, risk: float, head: Floats, slots: Ints, share: Floats
) -> float:
    """The taxed peak under these shares."""
    load = np.empty((slots.shape[0], heat.shape[0]))
    load_up(heat, risk, head, slots, share, load)
    return highest(load, weight)

"""Where the engine takes shares: per layer new shares alone, with moves, or an even split.

Owns the choice between what is in force, a plan made for even splits, and a layer made for shares,
each with the shares that fit it; compiled. Shares are used where those fitted to the window's first
half beat the even split in its second. It must not know budgets over layers. Letters as in `board`.
"""

from typing import NamedTuple

import numpy as np

from eplbd_policies.board import Floats, Ints, compiled, lay
from eplbd_policies.chain import chain
from eplbd_policies.forecast import TESTED
from eplbd_policies.fresh import rename
from eplbd_policies.outlook import Outlook
from eplbd_policies.search import moved
from eplbd_policies.weigh import carried, fit, split_evenly

HEAVY = (1, 2, 4, 8, 16)
"""How many of the hottest experts a layer made for shares is linked by."""


class Plan(NamedTuple):
    """Of every layer; changed in place."""

    slots: Ints
    """`[L, R, S]`."""
    share: Floats
    """`[L, R, S]`."""
    gain: Floats
    """`[L]` of the mean rank load."""
    moves: Ints
    """`[L]`."""


class Terms(NamedTuple):
    """What a change must bring, as parts of the mean rank load."""

    cost: float
    """Of one move at price 1."""
    proof: float
    """By which shares must beat the even split on held-out samples."""
    room: int
    """Moves of a layer at most."""


@compiled
def proven(seen: Floats, head: Floats, slots: Ints, proof: float) -> bool:
    """Whether shares fitted to the older half of the samples `[K, E]` pay in the newer one.

    To the mean of that half, which takes a fraction of the time and finds the lasting part.
    """
    samples, experts = seen.shape
    half = samples // 2
    past, future = seen[:half].sum(0), seen[half:].copy()
    if samples < TESTED or past.sum() <= 0 or future.sum() <= 0:
        return False
    weight = future.sum(1) / future.sum()
    for k in range(future.shape[0]):
        future[k] *= slots.shape[0] / max(future[k].sum(), 1e-300)
    mean = (past * (slots.shape[0] / past.sum())).reshape(1, experts)
    share = np.empty(slots.shape)
    split_evenly(slots, experts, share)
    even = carried(future, weight, 0.0, head, slots, share)
    fit(mean, np.ones(1), 0.0, head, slots, share)
    return even - carried(future, weight, 0.0, head, slots, share) > proof


@compiled
def suit(outlook: Outlook, layer: int, slots: Ints, share: Floats, terms: Terms) -> float:
    """Fit `share` `[R, S]`, a valid split of `slots`, or make it even; the taxed peak."""
    heat, weight, risk = outlook.heat[layer], outlook.weight[layer], outlook.risk[layer]
    if proven(outlook.seen[layer], outlook.head, slots, terms.proof):
        return fit(heat, weight, risk, outlook.head, slots, share)
    split_evenly(slots, heat.shape[1], share)
    return carried(heat, weight, risk, outlook.head, slots, share)


@compiled
def linked(
    outlook: Outlook, layer: int, price: Floats, terms: Terms, best: float, slots: Ints
) -> int:
    """Put the likeliest layer made for shares into `slots`; its moves, -1 if none is promising.

    best: the taxed peak, moves included, that it has to beat. Judged on the samples' mean.
    """
    heat, weight, risk = outlook.heat[layer], outlook.weight[layer], outlook.risk[layer]
    experts = heat.shape[1]
    mean = (heat * weight.reshape(weight.shape[0], 1)).sum(0).reshape(1, experts)
    moves, other, share = -1, slots.copy(), np.empty(slots.shape)
    for heavy in HEAVY:
        if heavy >= min(slots.shape[0], experts) or not chain(mean[0], heavy, other):
            continue
        rename(other, price, outlook.head)
        needed = moved(lay(heat, weight, risk, other, price, outlook.head))
        if needed > terms.room or 1.0 + terms.cost * needed >= best:
            continue
        split_evenly(other, experts, share)
        value = fit(mean, np.ones(1), risk, outlook.head, other, share) + terms.cost * needed
        if value < best:
            best, moves = value, needed
            slots[:] = other
    return moves


@compiled
def weigh(
    outlook: Outlook, layer: int, price: Floats, terms: Terms, least: float, now: Plan, plan: Plan
) -> None:
    """Settle one layer of `plan`, which holds what even splits would do, against what is `now`.

    price: `[R, E]`. least: cut of the peak for which a layer is touched.
    """
    heat, weight, risk = outlook.heat[layer], outlook.weight[layer], outlook.risk[layer]
    slots, share = now.slots[layer].copy(), now.share[layer].copy()
    before = carried(heat, weight, risk, outlook.head, slots, share)
    after = suit(outlook, layer, slots, share, terms)
    best, moves = after, 0
    if plan.moves[layer] > 0:
        other, its = plan.slots[layer].copy(), share.copy()
        split_evenly(other, heat.shape[1], its)
        value = suit(outlook, layer, other, its, terms)
        if value + terms.cost * plan.moves[layer] < best:
            after, moves = value, plan.moves[layer]
            best = after + terms.cost * moves
            slots, share = other, its
    other, its = slots.copy(), share.copy()
    needed = linked(outlook, layer, price, terms, best, other)
    if needed >= 0:
        split_evenly(other, heat.shape[1], its)
        value = suit(outlook, layer, other, its, terms)
        if value + terms.cost * needed < best:
            after, moves, slots, share = value, needed, other, its
    if before - after <= least:
        after, moves, slots, share = before, 0, now.slots[layer], now.share[layer]
    plan.gain[layer], plan.moves[layer] = before - after, moves
    plan.slots[layer], plan.share[layer] = slots, share

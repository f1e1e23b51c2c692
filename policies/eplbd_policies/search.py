"""Local search from a placement: the exchange or copy that cools the hottest rank most per move.

Owns what is tried, in which order, and when the search stops; compiled. It must not know forecasts,
budgets over layers or policies. Letters as in `board`.
"""

from typing import NamedTuple

import numpy as np

from eplbd_policies.board import (
    POWER,
    SHARP_POWER,
    Board,
    Floats,
    Ints,
    View,
    compiled,
    copy,
    copy_gain,
    counted,
    look,
    lost,
    measure,
    swap,
    swap_gain,
    taxed,
    up,
)

CANDIDATES = 12
"""Steps that are evaluated on all samples; the others go by a weighted mean of the samples. More of
them, or further ranks to relieve than the hottest, fit the window better and the next one no
better, at three times the time."""
ABREAST = 256
"""Ranks that a step looks at beside the hottest, the coolest ones: in a crowd, one is as good as
the next."""
SWAP, COPY = 0, 1


class Terms(NamedTuple):
    """What a step must bring, as a part of the mean rank load."""

    cost: float
    """Of one move at price 1."""
    least: float
    """To be worth the search's time."""


class Picks(NamedTuple):
    """The best candidates so far, best first."""

    value: Floats
    """`[CANDIDATES]`, 0 where there is none."""
    what: Ints
    """`[CANDIDATES, 4]`: SWAP, rank, own slot, its slot; or COPY, rank, expert, its slot."""


@compiled
def offer(
    picks: Picks, known: int, value: float, kind: int, rank: int, first: int, slot: int
) -> int:
    """Keep a candidate if it is among the best; how many there are now."""
    at = min(known, CANDIDATES - 1)
    while at > 0 and picks.value[at - 1] < value:
        picks.value[at] = picks.value[at - 1]
        picks.what[at] = picks.what[at - 1]
        at -= 1
    picks.value[at] = value
    picks.what[at, 0] = kind
    picks.what[at, 1] = rank
    picks.what[at, 2] = first
    picks.what[at, 3] = slot
    return min(known + 1, CANDIDATES)


@compiled
def swap_price(price: Floats, hot: int, rank: int, given: int, taken: int) -> float:
    """Of `hot` giving `given` to `rank` for `taken`; what is undone is refunded."""
    given_price: float = price[rank, given] - price[hot, given]
    taken_price: float = price[hot, taken] - price[rank, taken]
    return given_price + taken_price


@compiled
def screen_swaps(
    board: Board, view: View, hot: int, scale: float, cost: float, picks: Picks, known: int
) -> int:
    """Offer every exchange of a replica of `hot` for a lighter one of another rank."""
    per_rank = board.slots.shape[1]
    before, sharp = view.power[hot], board.sharp
    refund = 2.0 * cost * board.dearest
    for rank in view.order:
        if not view.near[rank]:
            continue
        both = before + view.power[rank]
        # No exchange does better than to make the two ranks equal, at no price.
        most = (both - 2.0 * up((view.load[hot] + view.load[rank]) / 2.0, sharp)) * scale
        if most <= picks.value[CANDIDATES - 1] or rank == hot:
            continue
        for own in range(per_rank):
            given = board.slots[hot, own]
            if board.hosts[rank, given]:
                continue
            lightest = up(view.load[hot] - view.share[given], sharp)
            most = (both - lightest - view.power[rank]) * scale + refund
            if most <= picks.value[CANDIDATES - 1]:
                continue
            for slot in range(per_rank):
                taken = board.slots[rank, slot]
                lighter = view.share[given] - view.share[taken]
                if lighter <= 0 or board.hosts[hot, taken]:
                    continue
                cooler, warmer = view.load[hot] - lighter, view.load[rank] + lighter
                value = (both - up(cooler, sharp) - up(warmer, sharp)) * scale
                if value + refund <= picks.value[CANDIDATES - 1]:
                    continue
                value -= cost * swap_price(board.price, hot, rank, given, taken)
                if value > picks.value[CANDIDATES - 1]:
                    known = offer(picks, known, value, SWAP, rank, own, slot)
    return known


@compiled
def screen_copies(
    board: Board, view: View, hot: int, scale: float, cost: float, picks: Picks, known: int
) -> int:
    """Offer a further replica of each expert of `hot`, in place of any spare one elsewhere."""
    ranks, per_rank = board.slots.shape
    before, sharp = view.power[hot], board.sharp
    refund = cost * board.dearest
    for own in range(per_rank):
        expert = board.slots[hot, own]
        if board.copies[expert] >= ranks:
            continue
        less = taxed(view.heat[expert] / (board.copies[expert] + 1), view.risk[0])
        relief = before - up(view.load[hot] - view.share[expert] + less, sharp)
        for rank in range(ranks):
            most = (relief + view.power[rank]) * scale + refund
            if most <= picks.value[CANDIDATES - 1] or rank == hot or board.hosts[rank, expert]:
                continue
            if not view.near[rank]:
                continue
            for slot in range(per_rank):
                spare = board.slots[rank, slot]
                if board.copies[spare] < 2:
                    continue
                then = up(view.load[rank] - view.share[spare] + less, sharp)
                cooler = relief + view.power[rank] - then
                price = cost * (board.price[rank, expert] - board.price[rank, spare])
                if cooler * scale - price <= picks.value[CANDIDATES - 1]:
                    continue
                its = up(view.load[rank] + view.more[spare], sharp) - view.power[rank]
                least = view.losses[spare] * (1.0 - 1e-9) - its
                if (cooler - least) * scale - price <= picks.value[CANDIDATES - 1]:
                    continue
                value = (cooler - lost(board, view, rank, slot)) * scale - price
                if value > picks.value[CANDIDATES - 1]:
                    known = offer(picks, known, value, COPY, rank, expert, slot)
    return known


@compiled
def screen_drops(
    board: Board, view: View, hot: int, scale: float, cost: float, picks: Picks, known: int
) -> int:
    """Offer `hot` a further replica of a lighter expert in place of each of its spare ones."""
    before, sharp = view.power[hot], board.sharp
    for slot in range(board.slots.shape[1]):
        spare = board.slots[hot, slot]
        if board.copies[spare] < 2:
            continue
        loss = lost(board, view, hot, slot)
        for expert in range(view.heat.shape[0]):
            if board.hosts[hot, expert]:
                continue
            less = taxed(view.heat[expert] / (board.copies[expert] + 1), view.risk[0])
            lighter = view.share[spare] - less
            if lighter <= 0:
                continue
            value = (before - up(view.load[hot] - lighter, sharp) - loss) * scale
            value -= cost * (board.price[hot, expert] - board.price[hot, spare])
            if value > picks.value[CANDIDATES - 1]:
                known = offer(picks, known, value, COPY, hot, expert, slot)
    return known


@compiled
def swap_moves(price: Floats, hot: int, rank: int, given: int, taken: int) -> int:
    """Moves that an exchange adds; less than 0 where it undoes some."""
    added = int(price[rank, given] > 0) + int(price[hot, taken] > 0)
    return added - int(price[hot, given] > 0) - int(price[rank, taken] > 0)


@compiled
def best_pick(
    board: Board, hot: int, terms: Terms, room: int, picks: Picks, known: int, total: Floats
) -> tuple[int, int]:
    """The candidate that gains most on all samples, -1 if none does; and the moves it adds."""
    cost, best, chosen, adds = terms.cost, terms.least, -1, 0
    for at in range(known):
        kind, rank, first, slot = picks.what[at]
        there = board.slots[rank, slot]
        if kind == SWAP:
            given = board.slots[hot, first]
            moves = swap_moves(board.price, hot, rank, given, there)
            if moves > 0 and moves > room:
                continue
            gain = swap_gain(board, hot, rank, given, there, total)
            gain -= cost * swap_price(board.price, hot, rank, given, there)
        else:
            moves = int(board.price[rank, first] > 0) - int(board.price[rank, there] > 0)
            if moves > 0 and moves > room:
                continue
            gain = copy_gain(board, rank, first, there, total)
            gain -= cost * (board.price[rank, first] - board.price[rank, there])
        if gain > best:
            best, chosen, adds = gain, at, moves
    return chosen, adds


@compiled
def moved(board: Board) -> int:
    """Replicas on ranks that do not hold the expert now."""
    count = 0
    for rank in range(board.slots.shape[0]):
        for slot in range(board.slots.shape[1]):
            count += board.price[rank, board.slots[rank, slot]] > 0
    return count


@compiled
def effort(slots: Ints, samples: int) -> int:
    """What one step of a search comes to, in evaluations: on each rank, of all pairs of slots.

    And of its samples, of which four take the time of a pair.
    """
    ranks, per_rank = slots.shape
    return int(ranks * (per_rank * per_rank + samples // 4))


@compiled
def repair(board: Board, terms: Terms, room: int, left: Ints) -> int:
    """Improve the placement until no step gains more than its moves cost; the moves it needs.

    room: moves at most. left: `[1]` evaluations that may still be made, in which steps are counted.
    """
    ranks, samples = board.load.shape
    experts, per_rank = board.copies.shape[0], board.slots.shape[1]
    view = View(
        np.empty(ranks),
        np.empty(ranks),
        np.empty(experts),
        np.empty(experts),
        np.empty(1),
        np.empty((ranks, per_rank)),
        np.empty(experts),
        np.empty(experts),
        np.empty(ranks, np.int64),
        np.empty(ranks, np.uint8),
    )
    picks = Picks(np.empty(CANDIDATES), np.empty((CANDIDATES, 4), np.int64))
    hot, total, touched = np.empty(ranks), np.empty(samples), np.zeros(ranks, np.uint8)
    room -= moved(board)
    while left[0] > 0:
        left[0] -= effort(board.slots, samples)
        measure(board, hot)
        rank = int(np.argmax(hot))
        look(board, rank, total, view)
        view.near[:] = touched
        view.near[view.order[:ABREAST]] = 1
        picks.value[:] = 0.0
        scale = hot[rank] / (SHARP_POWER if board.sharp else POWER) / view.power[rank]
        known = screen_swaps(board, view, rank, scale, terms.cost, picks, 0)
        known = screen_copies(board, view, rank, scale, terms.cost, picks, known)
        known = screen_drops(board, view, rank, scale, terms.cost, picks, known)
        chosen, moves = best_pick(board, rank, terms, room, picks, known, total)
        if chosen < 0:
            break
        kind, other, first, slot = picks.what[chosen]
        if kind == SWAP:
            swap(board, rank, other, first, slot)
        else:
            copy(board, other, first, slot)
        touched[rank] = touched[other] = 1
        room -= moves
    return moved(board)


@compiled
def peak(board: Board, risk: float) -> float:
    """The placement's `crest`, taxed by `risk`."""
    return crest(board.heat, board.weight, risk, board.head, board.slots)


@compiled
def crest(heat: Floats, weight: Floats, risk: float, head: Floats, slots: Ints) -> float:
    """Mean over samples of the hottest rank's load, taxed by `risk`; the mean rank's load is 1.

    Head starts `[R]` are part of it.
    """
    ranks, per_rank = slots.shape
    copies, worst = counted(slots, heat.shape[1]), 0.0
    for k in range(weight.shape[0]):
        hottest = 0.0
        for rank in range(ranks):
            load = head[rank]
            for slot in range(per_rank):
                expert = slots[rank, slot]
                load += taxed(heat[k, expert] / copies[expert], risk)
            hottest = max(hottest, load)
        worst += weight[k] * hottest
    return worst

"""One layer under search: who holds what, and how hot every rank is in every sample of heat.

Owns the arithmetic of an exchange and of a copy, compiled. It must not know which of them to try,
forecasts or budgets. K, E, R and S are the numbers of samples, experts, ranks and slots per rank.

A placement is judged on K samples of heat. Within a sample, the load of the hottest rank is
smoothed to a norm of all ranks' loads: the maximum itself does not change when one of two equally
hot ranks is relieved, so a search that follows it stops there. It is the 32-norm, and the 128-norm
in a crowd of ranks, where the 32-norm no longer tells the hottest from many warm ones; on few ranks
the sharper one sees too little beside the hottest. A replica counts its share
and a tax on the share's square, `risk`, because a rank that lives on few large shares follows each
of their changes; that is what spreads a hot expert before its heat demands it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.uint8]

TINY = 1e-300
CROWD = 128
"""Ranks beyond which the norm is the sharper one."""
POWER, SHARP_POWER = 32.0, 128.0
TOLD = 1e-14
"""Part of a sharp norm's sum of powers below which a difference from it is rounding, no gain."""
FAINT = 1e-100
"""Sum of powers below which a sample is scaled anew."""

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile, once for all later processes; division by zero as numpy has it."""
    return cast("Function", njit(cache=True, error_model="numpy")(function))


class Board(NamedTuple):
    """One layer under search. Arrays are changed in place."""

    heat: Floats
    """`[K, E]`, scaled so that the mean rank load of each sample is 1."""
    weight: Floats
    """`[K]` of each sample, sum 1."""
    risk: float
    slots: Ints
    """`[R, S]` experts."""
    price: Floats
    """`[R, E]` cost of hosting the expert at the rank: 0 where it is already."""
    dearest: float
    """Of the prices."""
    copies: Ints
    """`[E]` replicas."""
    holders: Ints
    """`[E, R]` ranks, or more; the first `copies` are valid."""
    hosts: Flags
    """`[R, E]`."""
    share: Floats
    """`[E, K]` taxed load of each replica."""
    load: Floats
    """`[R, K]` taxed."""
    power: Floats
    """`[R, K]` of `load`, scaled."""
    total: Floats
    """`[K]` sum of `power` over ranks."""
    norm: Floats
    """`[K]`."""
    head: Floats
    """`[R]` what each rank counts as carrying before it has anything: see `outlook.headstart`."""
    sharp: int
    """1 if the norm is the 128-norm, else 0."""
    scale: Floats
    """`[K]` what loads are multiplied by, so that the sharp norm's powers stay finite; else 1."""


class View(NamedTuple):
    """The layer in the samples in which one rank is hot, averaged by how hot it is there."""

    load: Floats
    """`[R]`."""
    power: Floats
    """`[R]` of `load`."""
    heat: Floats
    """`[E]`."""
    share: Floats
    """`[E]` of each replica."""
    risk: Floats
    """`[1]` the board's, in this view's unit."""
    loss: Floats
    """`[R, S]` what the other holders' powers gain if the slot's replica goes; below 0 unless it
    was asked for: see `lost`."""
    more: Floats
    """`[E]` what every other holder takes on if a replica goes."""
    losses: Floats
    """`[E]` what all holders' powers gain if each takes on that."""
    order: Ints
    """`[R]` ranks, coolest first."""
    near: Flags
    """`[R]` ranks that a step may involve: the coolest, and those touched before."""


@compiled
def up(v: float, sharp: int) -> float:
    """The 32nd power, or the 128th."""
    v = v * v
    v = v * v
    v = v * v
    v = v * v
    v = v * v
    if sharp:
        v = v * v
        v = v * v
    return v


@compiled
def down(v: float, sharp: int) -> float:
    """The 32nd root, or the 128th."""
    v = math.sqrt(math.sqrt(math.sqrt(math.sqrt(math.sqrt(v)))))
    return math.sqrt(math.sqrt(v)) if sharp else v


@compiled
def taxed(share: float, risk: float) -> float:
    """Load of a replica and the risk that it brings."""
    return share + risk * share * share


@compiled
def counted(slots: Ints, experts: int) -> Ints:
    """`[E]` replicas of each expert."""
    count = np.zeros(experts, np.int64)
    for expert in slots.ravel():
        count[expert] += 1
    return count


@compiled
def lay(
    heat: Floats, weight: Floats, risk: float, slots: Ints, price: Floats, head: Floats
) -> Board:
    """Set up a layer for the search; `slots` is used in place."""
    samples, experts = heat.shape
    ranks, per_rank = slots.shape
    most = max(ranks, counted(slots, experts).max())  # more only where a rank holds one twice
    count = np.zeros(experts, np.int64)
    holders = np.zeros((experts, most), np.int64)
    hosts = np.zeros((ranks, experts), np.uint8)
    for rank in range(ranks):
        for slot in range(per_rank):
            expert = slots[rank, slot]
            holders[expert, count[expert]] = rank
            count[expert] += 1
            hosts[rank, expert] = 1
    share = np.empty((experts, samples))
    load = np.zeros((ranks, samples))
    for expert in range(experts):
        for k in range(samples):
            share[expert, k] = taxed(heat[k, expert] / count[expert], risk)
    for rank in range(ranks):
        load[rank] = head[rank]
        for slot in range(per_rank):
            for k in range(samples):
                load[rank, k] += share[slots[rank, slot], k]
    sharp, scale = int(ranks > CROWD), np.ones(samples)
    if sharp:
        for k in range(samples):
            scale[k] = 1.0 / max(load[:, k].max(), TINY)
    return Board(
        heat,
        weight,
        risk,
        slots,
        price,
        price.max(),
        count,
        holders,
        hosts,
        share,
        load,
        np.empty((ranks, samples)),
        np.empty(samples),
        np.empty(samples),
        head,
        sharp,
        scale,
    )


@compiled
def measure(board: Board, hot: Floats) -> None:
    """Bring the norms up to date, and `hot` `[R]`, each rank's part in them."""
    ranks, samples = board.load.shape
    sharp = board.sharp
    board.total[:] = 0.0
    for rank in range(ranks):
        for k in range(samples):
            board.power[rank, k] = up(board.load[rank, k] * board.scale[k], sharp)
            board.total[k] += board.power[rank, k]
    for k in range(samples):
        if sharp and board.total[k] < FAINT:
            rescale(board, k)
        board.norm[k] = down(board.total[k], sharp) / board.scale[k]
    for rank in range(ranks):
        hot[rank] = 0.0
        for k in range(samples):
            part = board.power[rank, k] / max(board.total[k], TINY)
            hot[rank] += board.weight[k] * board.norm[k] * part


@compiled
def rescale(board: Board, k: int) -> None:
    """Bring the powers of one sample back to where they can be told from nothing."""
    board.scale[k] = 1.0 / max(board.load[:, k].max(), TINY)
    board.total[k] = 0.0
    for rank in range(board.load.shape[0]):
        board.power[rank, k] = up(board.load[rank, k] * board.scale[k], board.sharp)
        board.total[k] += board.power[rank, k]


@compiled
def look(board: Board, rank: int, weight: Floats, view: View) -> None:
    """Fill `view` for `rank`; `weight` `[K]` is scratch."""
    ranks, samples = board.load.shape
    total = 0.0
    for k in range(samples):
        weight[k] = board.weight[k] * board.power[rank, k] / max(board.total[k], TINY)
        total += weight[k]
    scale = 0.0
    for k in range(samples):
        weight[k] /= total
        scale += weight[k] * board.norm[k]
    for other in range(ranks):
        seen = 0.0
        for k in range(samples):
            seen += weight[k] * board.load[other, k]
        view.load[other] = seen / scale
        view.power[other] = up(view.load[other], board.sharp)
    view.risk[0] = board.risk * scale
    view.heat[:] = 0.0
    for k in range(samples):
        if weight[k] > 1e-6:
            for expert in range(view.heat.shape[0]):
                view.heat[expert] += weight[k] * board.heat[k, expert] / scale
    for expert in range(view.heat.shape[0]):
        view.share[expert] = taxed(view.heat[expert] / board.copies[expert], view.risk[0])
    for expert in range(view.heat.shape[0]):
        count = board.copies[expert]
        view.more[expert] = view.losses[expert] = 0.0
        if count > 1:
            less = taxed(view.heat[expert] / (count - 1), view.risk[0])
            view.more[expert] = less - view.share[expert]
            for at in range(count):
                holder = board.holders[expert, at]
                then = up(view.load[holder] + view.more[expert], board.sharp)
                view.losses[expert] += then - view.power[holder]
    view.loss[:] = -1.0
    view.order[:] = np.argsort(view.load, kind="mergesort")


@compiled
def lost(board: Board, view: View, rank: int, slot: int) -> float:
    """What the powers of the other holders gain if that slot's replica goes: 0 or more."""
    if view.loss[rank, slot] < 0:
        view.loss[rank, slot] = loss(board, view, rank, board.slots[rank, slot])
    found: float = view.loss[rank, slot]
    return found


@compiled
def loss(board: Board, view: View, rank: int, expert: int) -> float:
    """What the powers of the other holders gain if `rank` drops its replica of `expert`."""
    count = board.copies[expert]
    if count < 2:
        return 0.0
    more = taxed(view.heat[expert] / (count - 1), view.risk[0]) - view.share[expert]
    total = 0.0
    for at in range(count):
        holder = board.holders[expert, at]
        if holder != rank:
            total += up(view.load[holder] + more, board.sharp) - view.power[holder]
    return total


@compiled
def gained(board: Board, total: Floats) -> float:
    """Weighted cut of the norms if the sums of powers became `total` `[K]`, which is spent."""
    told = TOLD if board.sharp else 0.0
    for k in range(total.shape[0]):
        then = max(total[k], told * board.total[k], TINY)
        total[k] = down(then, board.sharp) / board.scale[k]
    gain = 0.0
    for k in range(total.shape[0]):
        gain += board.weight[k] * (board.norm[k] - total[k])
    return gain


@compiled
def swap_gain(board: Board, hot: int, rank: int, given: int, taken: int, total: Floats) -> float:
    """Cut of the norms by an exchange; `total` `[K]` is scratch."""
    sharp = board.sharp
    for k in range(total.shape[0]):
        lighter = board.share[given, k] - board.share[taken, k]
        total[k] = board.total[k] - board.power[hot, k] - board.power[rank, k]
        cooler, warmer = board.load[hot, k] - lighter, board.load[rank, k] + lighter
        total[k] += up(cooler * board.scale[k], sharp) + up(warmer * board.scale[k], sharp)
    return gained(board, total)


@compiled
def copy_gain(board: Board, rank: int, expert: int, spare: int, total: Floats) -> float:
    """Cut of the norms if `rank` holds `expert` in place of `spare`; `total` `[K]` is scratch."""
    more, fewer, sharp = board.copies[expert] + 1, board.copies[spare] - 1, board.sharp
    for k in range(total.shape[0]):
        then = board.load[rank, k] - board.share[spare, k]
        then += taxed(board.heat[k, expert] / more, board.risk)
        total[k] = board.total[k] - board.power[rank, k] + up(then * board.scale[k], sharp)
    for at in range(more - 1):
        holder = board.holders[expert, at]
        both = board.hosts[holder, spare]
        for k in range(total.shape[0]):
            then = board.load[holder, k] - board.share[expert, k]
            then += taxed(board.heat[k, expert] / more, board.risk)
            if both:
                then += taxed(board.heat[k, spare] / fewer, board.risk) - board.share[spare, k]
            total[k] += up(then * board.scale[k], sharp) - board.power[holder, k]
    for at in range(fewer + 1):
        holder = board.holders[spare, at]
        if holder == rank or board.hosts[holder, expert]:
            continue
        for k in range(total.shape[0]):
            then = board.load[holder, k] - board.share[spare, k]
            then += taxed(board.heat[k, spare] / fewer, board.risk)
            total[k] += up(then * board.scale[k], sharp) - board.power[holder, k]
    return gained(board, total)


@compiled
def swap(board: Board, hot: int, rank: int, own: int, slot: int) -> None:
    """Exchange slot `own` of `hot` with `slot` of `rank`."""
    given, taken = board.slots[hot, own], board.slots[rank, slot]
    board.slots[hot, own], board.slots[rank, slot] = taken, given
    for k in range(board.load.shape[1]):
        lighter = board.share[given, k] - board.share[taken, k]
        board.load[hot, k] -= lighter
        board.load[rank, k] += lighter
    for at in range(board.copies[given]):
        if board.holders[given, at] == hot:
            board.holders[given, at] = rank
    for at in range(board.copies[taken]):
        if board.holders[taken, at] == rank:
            board.holders[taken, at] = hot
    board.hosts[hot, given], board.hosts[rank, given] = 0, 1
    board.hosts[rank, taken], board.hosts[hot, taken] = 0, 1


@compiled
def recount(board: Board, expert: int, count: int) -> None:
    """Divide an expert's heat by another number of replicas; its holders' loads follow."""
    for k in range(board.load.shape[1]):
        share = taxed(board.heat[k, expert] / count, board.risk)
        for at in range(board.copies[expert]):
            board.load[board.holders[expert, at], k] += share - board.share[expert, k]
        board.share[expert, k] = share


@compiled
def copy(board: Board, rank: int, expert: int, slot: int) -> None:
    """Put a further replica of `expert` into `slot` of `rank`, in place of a spare one."""
    spare = board.slots[rank, slot]
    recount(board, expert, board.copies[expert] + 1)
    recount(board, spare, board.copies[spare] - 1)
    for k in range(board.load.shape[1]):
        board.load[rank, k] += board.share[expert, k] - board.share[spare, k]
    board.slots[rank, slot] = expert
    board.holders[expert, board.copies[expert]] = rank
    board.copies[expert] += 1
    kept = 0
    for at in range(board.copies[spare]):
        if board.holders[spare, at] != rank:
            board.holders[spare, kept] = board.holders[spare, at]
            kept += 1
    board.copies[spare] -= 1
    board.hosts[rank, spare], board.hosts[rank, expert] = 0, 1

"""FlashTree: replica counts and places of one layer's experts, searched together.

Owns the compiled numerics: greedy allotment of copies, packing by risk, and the layered search that
looks ahead by packing the remainder too. It must not know windows, budgets or which layers are
worth it. After FlashLB in vllm-ascend, with what it lacks: no expert has more replicas than there
are ranks or two on one rank, a replica that finds no rank changes places with another one, several
branches survive a level of the tree, and packing prefers the rank that holds the expert already.

Everything is deterministic, on one thread, without fast-math. Plain loops instead of array
expressions: they run as fast and compile several times faster. E, R, K and S are the numbers of
experts, ranks, slots per rank and samples; float64 and int64 throughout, C-contiguous.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Load = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Layer(NamedTuple):
    """One layer as the search sees it; a tuple that numba understands."""

    samples: Load
    """`[E, S]`, each sample scaled to a mean rank load of 1."""
    mean: Load
    """`[E]`."""
    cov: Load
    """`[E, E]`."""
    home: Flags
    """`[E, R]`, who holds what now."""
    z: float
    """Risk of a rank: the mean of its load plus z times its standard deviation."""


class Ranks(NamedTuple):
    """Ranks that are being filled."""

    rows: Ids
    """`[R, K]`, of which the first `used` slots of a rank are filled."""
    used: Ids
    """`[R]`."""
    load: Load
    """`[R]`, mean over samples."""
    var: Load
    """`[R]`, its variance."""


compiled = njit(cache=True, error_model="numpy")

UNSEEN = 0.1
"""Standard deviation of an expert's heat that a window does not show, in parts of its mean. Without
it, a window of few steps knows no risk."""

KEEPS = np.array([8.0, 4.0, 2.0, 1.5, 1.0, 0.5])
"""How strongly `settle` prefers what is there already, from most to least."""


@compiled
def covariance(samples: Load, mean: Load) -> Load:
    """`[E, E]` of `samples` `[E, S]` around `mean` `[E]`, with what they do not show added."""
    experts, steps = samples.shape
    total = np.zeros((experts, experts))
    apart = np.empty(experts)
    for step in range(steps):
        for a in range(experts):
            apart[a] = (samples[a, step] - mean[a]) / np.sqrt(steps)
        for a in range(experts):
            for b in range(experts):
                total[a, b] += apart[a] * apart[b]
    for a in range(experts):
        total[a, a] += (UNSEEN * mean[a]) ** 2
    return total


@compiled
def rank_by(key: Load, order: Ids) -> None:
    """Sort expert ids in place by descending `key`, equal ones by id; quick if nearly sorted."""
    for i in range(1, order.size):
        expert = order[i]
        at = i
        while at > 0 and (
            key[order[at - 1]] < key[expert]
            or (key[order[at - 1]] == key[expert] and order[at - 1] > expert)
        ):
            order[at] = order[at - 1]
            at -= 1
        order[at] = expert


@compiled
def copies(weight: Load, members: Ids, most: int, gains: Ids) -> None:
    """Fill `gains` with who gets the next copy: the member with the highest weight per replica.

    weight: `[E]`. members: expert ids. -1 from where all members have `most` replicas.
    """
    count = np.ones(members.size, np.int64)
    for i in range(gains.size):
        best = -1
        highest = -1.0
        for m in range(members.size):
            share = weight[members[m]] / count[m]
            if count[m] < most and share > highest:
                best, highest = m, share
        if best < 0:
            gains[i:] = -1
            return
        gains[i] = members[best]
        count[best] += 1


@compiled
def tally(rows: Ids, count: Ids) -> None:
    """Fill `count` `[E]` with the replicas that `rows` `[R, K]` hold."""
    count[:] = 0
    for rank in range(rows.shape[0]):
        for slot in range(rows.shape[1]):
            count[rows[rank, slot]] += 1


@compiled
def peak(samples: Load, rows: Ids, count: Ids) -> float:
    """Sum over samples of the largest rank load. samples: `[E, S]`. count: `[E]` of `rows`."""
    steps = samples.shape[1]
    top = np.zeros(steps)
    load = np.empty(steps)
    for rank in range(rows.shape[0]):
        load[:] = 0.0
        for slot in range(rows.shape[1]):
            expert = rows[rank, slot]
            part = 1.0 / count[expert]
            for step in range(steps):
                load[step] += samples[expert, step] * part
        for step in range(steps):
            top[step] = max(top[step], load[step])
    total = 0.0
    for step in range(steps):
        total += top[step]
    return total


@compiled
def _holds(ranks: Ranks, rank: int, expert: int) -> bool:
    for slot in range(ranks.used[rank]):  # noqa: SIM110  # numba knows no generators
        if ranks.rows[rank, slot] == expert:
            return True
    return False


@compiled
def _recount(layer: Layer, ranks: Ranks, rank: int, count: Ids) -> None:
    """Sum up the mean and the variance of a rank's load."""
    load = var = 0.0
    for i in range(ranks.used[rank]):
        a = ranks.rows[rank, i]
        load += layer.mean[a] / count[a]
        for j in range(ranks.used[rank]):
            b = ranks.rows[rank, j]
            var += layer.cov[a, b] / (count[a] * count[b])
    ranks.load[rank] = load
    ranks.var[rank] = var


@compiled
def _give_way(layer: Layer, ranks: Ranks, count: Ids, expert: int) -> int:
    """Make room for `expert`, which every rank with room holds, and say where.

    A rank that does not hold it is full, so it holds something that the roomy one lacks, and passes
    on what is nearest in load. Of such ranks the lightest gives way.
    """
    rows, used, load = ranks.rows, ranks.used, ranks.load
    roomy = giver = at = -1
    for rank in range(used.size):
        if used[rank] < rows.shape[1] and roomy < 0:
            roomy = rank
        if not _holds(ranks, rank, expert) and (giver < 0 or load[rank] < load[giver]):
            giver = rank
    share, nearest = layer.mean[expert] / count[expert], np.inf
    for slot in range(used[giver]):
        other = rows[giver, slot]
        away = abs(layer.mean[other] / count[other] - share)
        if away < nearest and not _holds(ranks, roomy, other):
            at, nearest = slot, away
    rows[roomy, used[roomy]] = rows[giver, at]
    used[roomy] += 1
    used[giver] -= 1
    rows[giver, at] = rows[giver, used[giver]]
    _recount(layer, ranks, roomy, count)
    return giver


@compiled
def _place(layer: Layer, ranks: Ranks, count: Ids, expert: int, keep: float) -> None:
    """Put a replica of `expert` on the rank with room whose risk is least then."""
    share = layer.mean[expert] / count[expert]
    own = layer.cov[expert, expert] / count[expert]
    alone = layer.z * np.sqrt(max(own / count[expert], 0.0))
    best, least, spread = -1, np.inf, 0.0
    for rank in range(ranks.used.size):
        level = ranks.load[rank] + share
        if layer.home[expert, rank]:
            level -= keep * share
        floor = level + alone if ranks.used[rank] == 0 else level
        full = ranks.used[rank] == ranks.rows.shape[1]
        if full or floor >= least or _holds(ranks, rank, expert):
            continue
        mixed = own
        for slot in range(ranks.used[rank]):
            other = ranks.rows[rank, slot]
            mixed += 2.0 * layer.cov[expert, other] / count[other]
        total = max(ranks.var[rank] + mixed / count[expert], 0.0)
        risk = level + layer.z * np.sqrt(total)
        if risk < least:
            best, least, spread = rank, risk, total
    crowded = best < 0
    if crowded:
        best = _give_way(layer, ranks, count, expert)
    ranks.rows[best, ranks.used[best]] = expert
    ranks.used[best] += 1
    ranks.load[best] += share
    ranks.var[best] = spread
    if crowded:
        _recount(layer, ranks, best, count)


@compiled
def pack(layer: Layer, keep: float, count: Ids, order: Ids, rows: Ids) -> float:
    """Fill `rows` `[R, K]`, heaviest replica first, each where the risk is least; -> `peak`.

    keep: on a rank that holds the expert now, the risk counts that many times the replica's share
    less. count: `[E]`, sums to R * K, none above R. order: all experts; is sorted in place.
    """
    size = rows.shape[0]
    ranks = Ranks(rows, np.zeros(size, np.int64), np.zeros(size), np.zeros(size))
    share = np.empty(count.size)
    for expert in range(count.size):
        share[expert] = layer.mean[expert] / count[expert]
    rank_by(share, order)
    for i in range(order.size):
        for _ in range(count[order[i]]):
            _place(layer, ranks, count, order[i], keep)
    return peak(layer.samples, rows, count)


@compiled
def _count(gains: Ids, chosen: Ids, level: int, count: Ids) -> int:
    """Fill `count` `[E]`: groups before `level` get `chosen` copies, the others the rest; -> sum.

    The sum is less than all slots where a group cannot take that many.
    """
    count[:] = 1
    total = count.size
    left = gains.shape[2]
    for group in range(level + 1):
        taken = chosen[group] if group < level else left
        for i in range(taken):
            expert = gains[0 if group < level else 1, group, i]
            if expert >= 0:
                count[expert] += 1
                total += 1
        left -= taken
    return total


@compiled
def _insert(nodes: Ids, value: Load, branch: Ids, worth: float) -> None:
    """Keep `nodes`, ordered by `value`, the best that were offered."""
    at = value.size
    while at > 0 and worth < value[at - 1]:
        at -= 1
    for node in range(value.size - 1, at, -1):
        value[node] = value[node - 1]
        for i in range(branch.size):
            nodes[node, i] = nodes[node - 1, i]
    if at < value.size:
        value[at] = worth
        for i in range(branch.size):
            nodes[at, i] = branch[i]


@compiled
def _gains(layer: Layer, depth: int, spare: int) -> tuple[Ids, Ids]:
    """Who gains copies, in order: `[2, depth, spare]`, and the group of each expert, `[E]`.

    Experts, riskiest first, are cut into `depth` groups. First row: greedily within the group;
    second row: within it and all after it. Any number of copies is then a look-up.
    """
    experts, most = layer.home.shape
    weight, order = np.empty(experts), np.arange(experts)
    for expert in range(experts):  # the least bit, so that what is cold is replicated evenly
        weight[expert] = layer.mean[expert] + layer.z * np.sqrt(layer.cov[expert, expert]) + 1e-12
    rank_by(weight, order)
    gains, group = np.empty((2, depth, spare), np.int64), np.empty(experts, np.int64)
    for level in range(depth):
        low, high = experts * level // depth, experts * (level + 1) // depth
        for i in range(low, high):
            group[order[i]] = level
        copies(weight, order[low:high], most, gains[0, level])
        copies(weight, order[low:], most, gains[1, level])
    return gains, group


@compiled
def search(layer: Layer, keep: float, tree: Ids, rows: Ids) -> float:
    """Fill `rows` `[R, K]` with the best placement that the tree holds; -> its `peak`.

    A level of the tree decides how many copies the next group of experts gets, within `width` of
    what greedy allotment over it and all after it would give; each choice is judged by allotting
    the rest greedily and packing everything. The `beam` best choices survive a level. tree: depth,
    width, beam.
    """
    depth, width, beam = tree[0], tree[1], tree[2]
    spare = rows.size - layer.mean.size
    gains, group = _gains(layer, depth, spare)
    trial, count, order = np.empty_like(rows), np.empty_like(group), np.arange(group.size)
    chosen, value = np.zeros((beam, depth), np.int64), np.full(beam, np.inf)
    _count(gains, chosen[0], 0, count)
    best = pack(layer, keep, count, order, rows)
    value[0] = best
    for level in range(depth - 1):
        grown, ranking = np.zeros((beam, depth), np.int64), np.full(beam, np.inf)
        for node in range(beam):
            if value[node] == np.inf:
                break
            branch = chosen[node].copy()
            left, natural = spare, 0
            for i in range(level):
                left -= branch[i]
            for i in range(left):
                natural += gains[1, level, i] >= 0 and group[gains[1, level, i]] == level
            for extra in range(max(0, natural - width), min(left, natural + width) + 1):
                branch[level] = extra
                worth = value[node]  # at `natural`: what the look-ahead assumed already
                if extra != natural:
                    if _count(gains, branch, level + 1, count) < rows.size:
                        continue
                    worth = pack(layer, keep, count, order, trial)
                if worth < best:
                    best = worth
                    _copy(trial, rows)
                _insert(grown, ranking, branch, worth)
        chosen, value = grown, ranking
    return best


@compiled
def _copy(source: Ids, target: Ids) -> None:
    for rank in range(source.shape[0]):
        for slot in range(source.shape[1]):
            target[rank, slot] = source[rank, slot]


@compiled
def settle(layer: Layer, limit: float, rows: Ids) -> None:
    """Pack the same replicas again, as close to home as a peak within `limit` allows."""
    count = np.empty(layer.mean.size, np.int64)
    tally(rows, count)
    trial, order = np.empty_like(rows), np.arange(count.size)
    for i in range(KEEPS.size):
        if pack(layer, KEEPS[i], count, order, trial) <= limit:
            _copy(trial, rows)
            return


@compiled
def plan(samples: Load, current: Ids, risk: Load, tree: Ids) -> tuple[Ids, Load]:
    """A placement `[L, R, K]` of every layer, and the peaks of it and of `current`, `[2, L]`.

    samples: `[L, E, S]`. risk: z, keep, and what part of the peak may be given away for fewer
    moves. tree: depth, width, beam.
    """
    layers, experts, steps = samples.shape
    planned, peaks = np.empty_like(current), np.empty((2, layers))
    mean, count = np.empty(experts), np.empty(experts, np.int64)
    for i in range(layers):
        home = np.zeros((experts, current.shape[1]), np.bool_)
        for rank in range(current.shape[1]):
            for slot in range(current.shape[2]):
                home[current[i, rank, slot], rank] = True
        for expert in range(experts):
            mean[expert] = 0.0
            for step in range(steps):
                mean[expert] += samples[i, expert, step] / steps
        layer = Layer(samples[i], mean, covariance(samples[i], mean), home, risk[0])
        best = search(layer, risk[1], tree, planned[i])
        settle(layer, best * (1.0 + risk[2]), planned[i])
        for which, rows in enumerate((planned[i], current[i])):
            tally(rows, count)
            peaks[which, i] = peak(samples[i], rows, count)
    return planned, peaks

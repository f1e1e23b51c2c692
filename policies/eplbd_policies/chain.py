"""A layer made for shares: ranks linked by replicas of the heaviest experts, which even them out.

Owns the construction (McNaughton's wrap-around rule of 1959, with a limit of slots); compiled, for
one layer. It must not know what is in force nor which shares come of it. Letters as in `board`.
"""

import numpy as np

from eplbd_policies.board import Floats, Ints, compiled


@compiled
def pack(heat: Floats, lights: Ints, slots: Ints, used: Ints, load: Floats, limit: int) -> None:
    """Deal `lights`, heaviest first, each to the lightest rank with fewer than `limit` experts."""
    ranks = slots.shape[0]
    for expert in lights:
        chosen = -1
        for rank in range(ranks):
            if used[rank] < limit and (chosen < 0 or load[rank] < load[chosen]):
                chosen = rank
        slots[chosen, used[chosen]] = expert
        used[chosen] += 1
        load[chosen] += heat[expert]


@compiled
def roomiest(slots: Ints, used: Ints, load: Floats, expert: int, free: int) -> int:
    """The least loaded rank with `free` slots or more that does not hold `expert`; -1 if none."""
    chosen = -1
    for rank in range(slots.shape[0]):
        if slots.shape[1] - used[rank] < free or (slots[rank, : used[rank]] == expert).any():
            continue
        if chosen < 0 or load[rank] < load[chosen]:
            chosen = rank
    return chosen


@compiled
def chain(heat: Floats, heavy: int, slots: Ints) -> bool:
    """Fill `slots` `[R, S]` for `heat` `[E]`, sum R; whether that came out.

    All but the `heavy` hottest experts are dealt whole. Each hot one then fills rank after rank up
    to the mean, and the next begins where it ends; what slots are left get the hottest again.
    """
    ranks, per_rank = slots.shape
    experts = heat.shape[0]
    if experts - heavy > ranks * (per_rank - 1):
        return False
    order = np.argsort(-heat, kind="mergesort")
    used, load = np.zeros(ranks, np.int64), np.zeros(ranks)
    pack(heat, order[heavy:], slots, used, load, per_rank - 1)
    linked = -1
    for expert in order[:heavy]:
        left = heat[expert]
        while left > 1e-9:
            rank = linked
            if rank < 0:
                # The last of it ends in a rank that has room for the next one as well.
                rank = roomiest(slots, used, load, expert, 2)
                if rank < 0 or 1.0 - load[rank] <= left:
                    rank = roomiest(slots, used, load, expert, 1)
            if rank < 0:
                return False
            linked = -1
            slots[rank, used[rank]] = expert
            used[rank] += 1
            taken = min(left, max(1.0 - load[rank], 0.0))
            left -= taken
            load[rank] += taken
            if taken <= 0.0:
                break
            if load[rank] < 1.0 - 1e-9 and used[rank] < per_rank:
                linked = rank
    for expert in order:
        while True:
            rank = roomiest(slots, used, load, expert, 1)
            if rank < 0:
                break
            slots[rank, used[rank]] = expert
            used[rank] += 1
    return bool((used == per_rank).all())

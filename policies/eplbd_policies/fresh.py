"""A layer from nothing: replicas for the hottest, the heaviest replica to the lightest rank.

Owns greedy replication and packing (after DeepSeek's EPLB), and the renaming of ranks that makes
most of what is in force stay; compiled, for one layer. It is where a local search starts that is
stuck in the placement in force. Letters as in `board`.
"""

import numpy as np

from eplbd_policies.board import Flags, Floats, Ints, compiled


@compiled
def replicate(heat: Floats, slots: int, ranks: int) -> Ints:
    """Replicas `[E]` of each expert: one more to the hottest per replica, never more than ranks."""
    experts = heat.shape[0]
    count = np.ones(experts, np.int64)
    for _ in range(slots - experts):
        best, chosen = -1.0, 0
        for expert in range(experts):
            share = heat[expert] / count[expert]
            if share > best and count[expert] < ranks:
                best, chosen = share, expert
        count[chosen] += 1
    return count


@compiled
def construct(heat: Floats, head: Floats, slots: Ints) -> None:
    """Fill `slots` `[R, S]` for `heat` `[E]`, positive; no rank gets an expert twice.

    head: `[R]` what ranks count as carrying before, of the mean rank load. Needs S <= E and
    E <= R * S.
    """
    ranks, per_rank = slots.shape
    count = replicate(heat, ranks * per_rank, ranks)
    share = heat / count
    order = np.argsort(-share, kind="mergesort")
    used = np.zeros(ranks, np.int64)
    load = head * (heat.sum() / ranks)
    hosts = np.zeros((ranks, heat.shape[0]), np.uint8)
    for expert in order:
        for _ in range(count[expert]):
            chosen = -1
            for rank in range(ranks):
                free = used[rank] < per_rank and not hosts[rank, expert]
                if free and (chosen < 0 or load[rank] < load[chosen]):
                    chosen = rank
            if chosen < 0:
                chosen = make_room(slots, used, load, hosts, share, expert)
            slots[chosen, used[chosen]] = expert
            used[chosen] += 1
            load[chosen] += share[expert]
            hosts[chosen, expert] = 1


@compiled
def make_room(
    slots: Ints, used: Ints, load: Floats, hosts: Flags, share: Floats, expert: int
) -> int:
    """Free a slot on a full rank without `expert`; returns that rank.

    Some rank has room but holds `expert`. Every rank that does not is full, and so holds something
    that the rank with room lacks; the lightest of them gives up what is nearest in load.
    """
    ranks, per_rank = slots.shape
    roomy, giver = -1, -1
    for rank in range(ranks):
        if used[rank] < per_rank and roomy < 0:
            roomy = rank
        if not hosts[rank, expert] and (giver < 0 or load[rank] < load[giver]):
            giver = rank
    nearest, at = np.inf, 0
    for slot in range(per_rank):
        held = slots[giver, slot]
        apart = abs(share[held] - share[expert])
        if not hosts[roomy, held] and apart < nearest:
            nearest, at = apart, slot
    given = slots[giver, at]
    slots[roomy, used[roomy]] = given
    slots[giver, at] = slots[giver, per_rank - 1]
    used[roomy] += 1
    used[giver] -= 1
    load[roomy] += share[given]
    load[giver] -= share[given]
    hosts[roomy, given], hosts[giver, given] = 1, 0
    return giver


@compiled
def rename(slots: Ints, price: Floats, head: Floats) -> None:
    """Give each set of experts in `slots` `[R, S]` to the rank where hosting it costs least.

    price: `[R, E]`. head: `[R]`; sets stay among ranks of equal ones. The clearest saving first,
    which comes within a few moves of an assignment by the Hungarian method and takes a fraction of
    its time.
    """
    ranks, per_rank = slots.shape
    cost = np.zeros((ranks, ranks))  # of set, at rank
    wherever = np.ascontiguousarray(price.T)
    for group in range(ranks):
        for slot in range(per_rank):
            cost[group] += wherever[slots[group, slot]]
    old, flat = slots.copy(), cost.ravel()
    dearest = flat.max()  # most pairs of a large group, and in no need of sorting
    saving = np.flatnonzero(flat < dearest)
    saving = saving[np.argsort(flat[saving], kind="mergesort")]
    order = np.concatenate((saving, np.flatnonzero(flat == dearest)))
    given = np.zeros(ranks, np.uint8)
    taken = np.zeros(ranks, np.uint8)
    for pair in order:
        group, rank = pair // ranks, pair % ranks
        if not given[group] and not taken[rank] and head[group] == head[rank]:
            given[group], taken[rank] = 1, 1
            slots[rank] = old[group]

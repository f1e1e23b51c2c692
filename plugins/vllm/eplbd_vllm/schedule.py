"""The order in which an expert's replicas take their turns, as tables that engines read.

Owns rows of turns: for each expert the slots that take one turn after the other, over and over.
Where a plan splits evenly a row names each replica once. Where it gives shares, a replica stands in
the row as often as its share says, well mixed, and the row's length stands where engines keep the
number of replicas. So an engine that deals in turn, or picks by a hash modulo that number, realises
shares without knowing of them: in `eplbd_vllm.selection`, in vLLM's own kernel, in the tables of
vllm-ascend. It must not know devices or when a table changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplbd.core.shares import WHOLE
from eplbd.errors import TransferError

_LONGEST = 256
"""Turns in a row at most: a share is then met within 0.4 % of its expert's tokens, and the rows of
all experts stay in a device's cache."""


def rows_of_turns(
    physical: NDArray[np.int32],
    replica_count: NDArray[np.int32],
    parts: NDArray[np.int32] | None,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return rows `[n, experts, width]` int32, -1 padded, and their lengths `[n, experts]` int32.

    physical, replica_count: as in `Maps`. parts: `[n, ranks, slots_per_rank]` in parts of
    `shares.WHOLE`, or None for even splits. width: room for one row in the engine's table; a share
    is met within 1 / width, and one below that may get no turn. Raises TransferError where the
    table has no room for the replicas of an expert.
    """
    n, experts, most = physical.shape
    if most > width:
        raise TransferError(
            f"maps: an expert has {most} replicas, the engine's table has room for {width}"
        )
    rows = np.full((n, experts, width), -1, dtype=np.int32)
    rows[:, :, :most] = physical
    length = replica_count.astype(np.int32)
    if parts is not None:
        row = np.arange(n)[:, None, None]
        taken = np.where(physical < 0, 0, parts.reshape(n, -1)[row, physical])
        least = np.where(physical < 0, WHOLE, taken).min(axis=2)
        # Even splits settle to parts that differ by one where the whole does not divide.
        uneven = np.nonzero(taken.max(axis=2) - least > 1)
        count = _turns(taken[uneven], min(width, _LONGEST))
        length[uneven] = count.sum(axis=1)
        rows[uneven] = _mixed(count, physical[uneven], width)
    return rows, length


def at_turns(
    rows: NDArray[np.int32], length: NDArray[np.int32], turns: NDArray[np.integer]
) -> NDArray[np.int32]:
    """`[n, turns, experts]` int32: the slots whose turn it is, where one table serves for a while.

    rows, length: of `rows_of_turns`. turns: `[turns]`, at least 0. Expert e takes turn t at entry
    `(t + e) % length`: neighbouring experts begin at neighbouring replicas, or the first replicas
    got the odd turns of all.

    A rank that routes every token of an expert to one slot (vllm-ascend's log2phy) has its own
    number for its turn. One that deals by a table of turns (vllm-ascend's routing table, row =
    token modulo rows) takes `rank + arange(rows)`.
    """
    n, experts, _ = rows.shape
    expert = np.arange(experts)
    entry = (turns[:, None] + expert) % length[:, None, :]
    chosen: NDArray[np.int32] = rows[np.arange(n)[:, None, None], expert, entry]
    return chosen


def _turns(taken: NDArray[np.int32], longest: int) -> NDArray[np.int64]:
    """`[rows, replicas]`: turns of each replica, in the least numbers that say the same.

    taken: `[rows, replicas]` parts of `WHOLE`. The largest remainders get the turns that are left,
    the first of equal ones first.
    """
    share = taken.astype(np.int64) * longest
    count, remainder = np.divmod(share, WHOLE)
    left = longest - count.sum(axis=1, keepdims=True)
    order = np.argsort(-remainder, axis=1, kind="stable")
    more = np.arange(taken.shape[1]) < left
    np.put_along_axis(count, order, np.take_along_axis(count, order, axis=1) + more, axis=1)
    return count // np.gcd.reduce(count, axis=1, keepdims=True)


def _mixed(count: NDArray[np.int64], slots: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """`[rows, width]` int32, -1 padded: each of `slots` (`[rows, replicas]`) `count` times, mixed.

    The j-th of c turns falls due at (j + 1/2) / c of the row, so a stretch of turns anywhere in
    the row holds close to its share of each replica.
    """
    rows, replicas = count.shape
    of_row, replica = (np.repeat(i.ravel(), count.ravel()) for i in np.indices((rows, replicas)))
    before = np.cumsum(count.ravel()) - count.ravel()
    turn = np.arange(of_row.size) - np.repeat(before, count.ravel())
    order = np.lexsort((replica, (turn + 0.5) / count[of_row, replica], of_row))
    total = count.sum(axis=1)
    entry = np.arange(of_row.size) - np.repeat(np.cumsum(total) - total, total)
    mixed = np.full((rows, width), -1, dtype=np.int32)
    mixed[of_row, entry] = slots[of_row, replica[order]]
    return mixed

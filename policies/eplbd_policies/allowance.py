"""What a budget of moves or bytes lets through, for policies that move layers whole.

Owns the arithmetic only; which layer is worth how much is the policy's.
"""

import numpy as np
from numpy.typing import NDArray

from eplbd import Budget


def allowed(budget: Budget) -> int | None:
    """Moves that the budget pays for; None for any number."""
    limits = [] if budget.moves is None else [budget.moves]
    if budget.bytes is not None:
        limits.append(budget.bytes // max(budget.expert_bytes, 1))
    return min(limits, default=None)


def within(
    layers: NDArray[np.int64], moves: NDArray[np.int64], budget: Budget
) -> NDArray[np.int64]:
    """The first of `layers` whose moves fit; one that is too dear does not stop cheaper ones.

    layers: `[n]` layer indices, most wanted first. moves: `[L]` of every layer.
    """
    limit = allowed(budget)
    if limit is None:
        return layers
    chosen = []
    for layer in layers:
        if moves[layer] <= limit:
            chosen.append(layer)
            limit -= int(moves[layer])
    return np.array(chosen, np.int64)

"""What a budget of moves or bytes lets through: of whole layers, or of steps within them.

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


def prefixes(courses: list[NDArray[np.float64]], limit: int | None) -> list[int]:
    """How many steps of each layer to take, most relief per transfer first, within `limit`.

    courses: of each layer, `[2, n + 1]` for n steps: the peak in tokens after each, from none on,
    and the transfers until then.
    """
    if limit is None:
        return [int(course[0].argmin()) for course in courses]
    chosen = [0] * len(courses)
    while True:
        best = (0.0, 0, 0)
        for layer, (peaks, transfers) in enumerate(courses):
            now = chosen[layer]
            costs = transfers[now + 1 :] - transfers[now]
            worth = np.where(costs <= limit, (peaks[now] - peaks[now + 1 :]) / costs, 0.0)
            if worth.size and worth.max() > best[0]:
                best = (float(worth.max()), layer, now + 1 + int(worth.argmax()))
        worth_most, layer, step = best
        if worth_most == 0.0:
            return chosen
        limit -= int(courses[layer][1, step] - courses[layer][1, chosen[layer]])
        chosen[layer] = step

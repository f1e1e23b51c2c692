"""A random placement, or random exchanges within a budget: for tests, and a floor to compare with.

Owns no state: chance is drawn from the seed and the placement in force, so the same question has
the same answer and the next one another. L, E, R and S are the numbers of layers, experts, ranks
and slots per rank.
"""

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Register, Topology, align, hookimpl
from eplbd_policies.allowance import allowed

Slots = NDArray[np.int32]


def scatter(experts: int, ranks: int, per_rank: int, rng: np.random.Generator) -> Slots:
    """One layer, `[R, S]`: every expert somewhere, the copies of random ones, none twice on a rank.

    Needs S <= E <= R * S. Each expert takes the emptiest ranks: then none is ever left without
    enough ranks that have room (Gale and Ryser, constructively).
    """
    count = np.ones(experts, np.int64)
    for _ in range(ranks * per_rank - experts):
        count[rng.choice(np.flatnonzero(count < ranks))] += 1
    slots = np.empty((ranks, per_rank), np.int32)
    used = np.zeros(ranks, np.int64)
    for expert in rng.permutation(experts):
        homes = np.lexsort((rng.random(ranks), used))[: count[expert]]
        slots[homes, used[homes]] = expert
        used[homes] += 1
    return slots


def exchange(slots: Slots, times: int, rng: np.random.Generator) -> Slots:
    """`[L, R, S]` after at most `times` exchanges of two experts between two ranks of a layer.

    An exchange that would put an expert twice on a rank is skipped.
    """
    slots = slots.copy()
    layers, ranks, per_rank = slots.shape
    for _ in range(times if ranks > 1 else 0):
        layer = slots[rng.integers(layers)]
        a, b = rng.choice(ranks, 2, replace=False)
        i, j = rng.integers(per_rank, size=2)
        if layer[a, i] not in layer[b] and layer[b, j] not in layer[a]:
            layer[a, i], layer[b, j] = layer[b, j], layer[a, i]
    return slots


class Random:
    """A fresh random placement; under a budget of moves, as many random exchanges as it allows."""

    name = "random"
    eplbd_api = 1

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """seed: another one gives other placements."""

        seed: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __init__(self, options: Options) -> None:
        self._seed = options.seed

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """Somewhere else, whatever the heat."""
        layers, ranks, per_rank = current.slots.shape
        if per_rank > current.experts:
            return current  # some rank would have to hold an expert twice
        rng = np.random.default_rng((self._seed, int(current.digest, 16)))
        moves = allowed(budget)
        if moves is not None:  # an exchange is two moves
            return Placement(exchange(current.slots, moves // 2, rng), current.experts)
        slots = [scatter(current.experts, ranks, per_rank, rng) for _ in range(layers)]
        return align(current, Placement(np.stack(slots), current.experts))


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer `random`."""
    register(Random)

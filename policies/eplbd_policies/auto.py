"""Ask several policies and take, layer by layer, whichever has proved better on held-out steps.

The first candidate is the one to beat. All propose from the older part of the window; the newest
steps, which none of them has seen, judge. Another candidate takes a layer over only where it saves
more than a margin and more than chance explains, its moves counted; it is then asked about the
whole window for these layers alone. Where none does, the answer is the first candidate's, as if it
had been asked alone.

Knows no clock: the same question must have the same answer, so time is bounded by who is named.
Each candidate is asked once about the older part, and once about the whole window of the layers it
won. Where that is too long for the deadline, name cheaper ones. L, E and T are the numbers of
layers, experts and held-out steps.
"""

from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Policy, Register, Topology, hookimpl, rank_load
from eplbd_policies.allowance import allowed, within
from eplbd_policies.board import Floats, Ints
from eplbd_policies.flashlb import FlashLB
from eplbd_policies.greedy import Greedy
from eplbd_policies.incremental import Incremental
from eplbd_policies.swift import Swift

CANDIDATES: dict[str, Callable[[], Policy]] = {
    Incremental.name: lambda: Incremental(Incremental.Options()),
    FlashLB.name: lambda: FlashLB(FlashLB.Options()),
    Swift.name: lambda: Swift(Swift.Options()),
    Greedy.name: lambda: Greedy(Greedy.Options()),
}

HELD_OUT = 4
"""One part in so many, the newest, is held out."""
BATCHES = 8
"""Means of so many runs of neighbouring steps estimate the noise of the mean of all of them."""
SHORTEST = 2 * BATCHES * HELD_OUT
"""Steps of a window at least; a part held out of a shorter one judges nobody."""
DEVIATIONS = 2.36
"""Of the noise that a saving has to exceed: by chance one in 40 does (Student's t, 7 degrees)."""


def noise(saved: Floats) -> Floats:
    """`[L]` standard error of the mean of `saved` `[T, L]`.

    By batch means (Conway, 1963): neighbouring steps resemble each other, so their scatter says
    less than their number; means of runs of them come nearer to being independent.
    """
    means = np.stack([batch.mean(0) for batch in np.array_split(saved, BATCHES)])
    error: Floats = means.std(0, ddof=1) / np.sqrt(BATCHES)
    return error


def part_of(heat: Heat, current: Placement, layers: Ints) -> tuple[Heat, Placement]:
    """The same question about these layers alone."""
    if layers.size == current.layers:
        return heat, current
    steps = heat.steps[:, layers]
    steps.setflags(write=False)
    shares = None if current.shares is None else current.shares[layers]
    return Heat(steps, heat.phase), Placement(current.slots[layers], current.experts, shares)


def hottest(placement: Placement, steps: NDArray[np.int32], topology: Topology) -> Floats:
    """`[T, L]` load of the rank that takes longest: over its speed, the mean rank's being 1."""
    speed = np.array(topology.speed) / np.mean(topology.speed)
    load: Floats = (rank_load(placement, steps) / speed).max(-1)
    return load


class Auto:
    """A portfolio: per layer the candidate that would have served the newest steps best."""

    name = "auto"
    eplbd_api = 1

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """candidates: names of policies; the first is the one that the others have to beat.

        Each has its default options. margin: what another must save at least, as a part of the
        layer's mean rank load; noise is added. move_cost: what one move on every rank counts for in
        that unit.
        """

        candidates: tuple[str, ...] = ("incremental", "flashlb")
        margin: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.01
        move_cost: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.02

        def __post_init__(self) -> None:
            """Refuse what there is not, and what would be asked twice."""
            known = ", ".join(CANDIDATES)
            if not self.candidates:
                raise ValueError(f"candidates is empty: name at least one of {known}")
            for name in self.candidates:
                if name not in CANDIDATES:
                    raise ValueError(f"candidates: there is no '{name}'; there are {known}")
            if len(set(self.candidates)) < len(self.candidates):
                raise ValueError("candidates: one is named twice; name each once")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._candidates = [CANDIDATES[name]() for name in options.candidates]

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """Each layer as its winner proposes for the whole window, within the budget."""
        winner = self._winners(heat, topology, current, budget)
        target = current
        for which, candidate in enumerate(self._candidates):
            layers = np.flatnonzero(winner == which)
            if not layers.size:
                continue
            seen, own = part_of(heat, current, layers)
            proposal = candidate.propose(seen, topology, own, budget)
            if layers.size == current.layers:
                return proposal
            target = target.with_layers(layers, proposal.slots, proposal.parts())
        moves, limit = target.moves_from(current), allowed(budget)
        if limit is None or moves.sum() <= limit:
            return target
        newest = heat.steps[-(len(heat.steps) // HELD_OUT) :]
        gain = (hottest(current, newest, topology) - hottest(target, newest, topology)).sum(0)
        order = np.argsort(-gain / np.maximum(moves, 1), kind="stable")
        layers = within(order, moves, budget)
        return current.with_layers(layers, target.slots[layers], target.parts()[layers])

    def _winners(self, heat: Heat, topology: Topology, current: Placement, budget: Budget) -> Ints:
        """`[L]` which candidate each layer is left to."""
        winner = np.zeros(current.layers, np.int64)
        held = len(heat.steps) // HELD_OUT
        if len(heat.steps) < SHORTEST or len(self._candidates) < 2:
            return winner
        older, newest = Heat(heat.steps[:-held], heat.phase), heat.steps[-held:]
        mean = newest.sum((0, 2), dtype=np.float64) / held / current.ranks
        first, most = np.zeros(()), np.zeros(current.layers)
        for which, candidate in enumerate(self._candidates):
            proposal = candidate.propose(older, topology, current, budget)
            paid = hottest(proposal, newest, topology) / np.maximum(mean, 1e-9)
            paid += self._options.move_cost / current.ranks * proposal.moves_from(current)
            if which == 0:
                first = paid
            saved = first - paid
            surplus = saved.mean(0) - self._options.margin - DEVIATIONS * noise(saved)
            better = (surplus > most) & (mean > 0)
            winner[better], most[better] = which, surplus[better]
        return winner


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer `auto`."""
    register(Auto)

"""Replicas and places searched together on per-step heat, after vllm-ascend's FlashLB.

What decides is the risk of a rank, the mean of its load plus z standard deviations, over episodes
of the window; what is minimised is the peak that a synchronous step pays, averaged over the
episodes. Only layers that gain are moved, and of the ways to place what was found the one nearest
to the placement in force. Knows no state: the window itself says which layers need it, so that the
same question has the same answer. The search is `flashtree`; nodes are all the same to it. L, E, R,
K, S and T are the numbers of layers, experts, ranks, slots per rank, episodes and steps.
"""

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from eplbd import Budget, Heat, Placement, Register, Topology, align, hookimpl
from eplbd_policies.allowance import within
from eplbd_policies.flashtree import plan

KEEP = 0.1
"""Preference for a rank that holds the expert already, in parts of the replica's load: it breaks
near ties in the search, for a sixth fewer moves at the same peak."""

WORK = 10_000
"""A layer of that many slots x ranks keeps one branch of the tree, a smaller one more."""

WIDE = 300_000
"""A layer of more slots x ranks than that over `width` tries fewer choices on each level of the
tree: a choice costs as much as the layer is large, and there are the most of them where it is."""

BEAM = 64
"""The most branches that a level of the tree keeps."""


def episodes(steps: NDArray[np.int32], ranks: int, most: int) -> NDArray[np.float64]:
    """`[L, E, S]` heat of at most `most` equal parts of the window, each at a mean rank load of 1.

    steps: `[T, L, E]`, T at least 1. A part without heat in a layer is 0 there.
    """
    starts = np.arange(min(most, len(steps))) * len(steps) // min(most, len(steps))
    heat = np.add.reduceat(steps, starts, axis=0, dtype=np.float64)
    heat *= ranks / np.maximum(heat.sum(2, keepdims=True), 1.0)
    return np.ascontiguousarray(heat.transpose(1, 2, 0))


def rename(planned: NDArray[np.int64], current: NDArray[np.int32], experts: int) -> None:
    """Give each set of experts of one layer, `[R, K]`, to the rank that makes the moves fewest.

    In place. Which rank gets which set changes nothing for the balance.
    """
    held = np.zeros((len(current), experts), np.bool_)
    held[np.arange(len(current))[:, None], current] = True
    rank, chosen = linear_sum_assignment(held[:, planned].sum(2), maximize=True)
    planned[rank] = planned[chosen]


class FlashLB:
    """Search replicas and places together, layer by layer; move the layers that gain most."""

    name = "flashlb"
    eplbd_api = 1

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """min_gain: least relative cut of a layer's peak that is worth moving the layer.

        episodes: parts of the window that are weighed against each other. z: standard deviations
        of its load that a rank's risk adds to the mean. slack: part of the peak that is given away
        for fewer moves. depth, width: levels of the tree, and choices to either side of the greedy
        one that each tries, fewer in the largest layers. layers: most layers that one proposal
        moves; 0 for any number.
        """

        min_gain: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.02
        episodes: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
        z: Annotated[float, msgspec.Meta(ge=0.0, le=10.0)] = 1.0
        slack: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.01
        depth: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8
        width: Annotated[int, msgspec.Meta(ge=0, le=64)] = 8
        layers: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __init__(self, options: Options) -> None:
        self._options = options
        # Compiles, or loads what was compiled: the types and layouts of every later call.
        self._plan(np.ones((1, 2, 1)), np.array([[[0, 1]]], np.int32))

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """A new placement of every layer that pays, within the budget; the others as they are."""
        if current.slots_per_rank > current.experts or not len(heat.steps):
            return current  # some rank would have to hold an expert twice; or nothing was seen
        samples = episodes(heat.steps, current.ranks, self._options.episodes)
        planned, (after, before) = self._plan(samples, current.slots)
        pays = np.flatnonzero(before - after > self._options.min_gain * before)
        for layer in pays:
            rename(planned[layer], current.slots[layer], current.experts)
        if not pays.size:
            return current
        target = align(current, current.with_layers(pays, planned[pays]))
        moves = target.moves_from(current)
        gain = (before - after)[pays] / np.maximum(moves[pays], 1)
        layers = within(pays[np.argsort(-gain, kind="stable")], moves, budget)
        layers = layers[: self._options.layers or None]
        return current.with_layers(layers, target.slots[layers]) if layers.size else current

    def _plan(
        self, samples: NDArray[np.float64], slots: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A placement `[L, R, K]`, and the peaks of it and of `slots`, `[2, L]`."""
        options = self._options
        size = slots[0].size * slots.shape[1]
        beam, width = min(max(WORK // size, 1), BEAM), min(max(WIDE // size, 1), options.width)
        tree = np.array([options.depth, width, beam], np.int64)
        risk = np.array([options.z, KEEP, options.slack])
        planned, peaks = plan(samples, slots.astype(np.int64), risk, tree)
        return planned, peaks


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer `flashlb`."""
    register(FlashLB)

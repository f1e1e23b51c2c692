"""Made-up problems for policies: every shape, heat and history that one was ever seen to fail on.

Owns the problems, each from its own fixed seed. Must not know what is asked of an answer; that is
`eplbd.testing`. There is no heat that is not a number and none below zero: it is counted in int32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eplbd.core.heat import Budget, Heat
from eplbd.core.orders import Orders
from eplbd.core.placement import Placement, even_shares
from eplbd.core.topology import Topology

RANDOM_PROBLEMS = 60

Steps = NDArray[np.int32]

_TIGHT = ("skewed heat", "no heat", "all heat on one expert")
"""Heats that are asked about under budgets, too."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a name for error messages."""

    name: str
    heat: Heat
    topology: Topology
    current: Placement
    budget: Budget


SHAPES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    # layers, experts, slots per rank, nodes of the ranks
    "small": (2, 8, 3, (0, 0, 0, 0)),
    "one rank": (2, 4, 4, (0,)),
    "two ranks": (2, 8, 5, (0, 0)),
    "no redundant slots": (2, 16, 4, (0, 0, 0, 0)),
    "two slots per rank": (3, 8, 2, (0,) * 8),
    "fewer experts than some ranks would like": (2, 6, 2, (0, 0, 0, 0)),
    "every rank holds everything": (2, 4, 4, (0, 0, 0)),
    "more redundant slots than ranks": (2, 32, 8, (0,) * 8),
    "odd sizes": (3, 30, 5, (0,) * 7),
    "two nodes": (2, 16, 5, (0, 0, 1, 1)),
    "three nodes": (2, 32, 6, (0, 0, 1, 1, 2, 2)),
    "uneven nodes": (2, 30, 7, (3, 3, 0, 3, 1)),
    "a node for every rank": (2, 16, 5, (0, 1, 2, 3)),
    "interleaved nodes": (2, 16, 5, (1, 0, 1, 0)),
}


def problems(*, large: bool = True, deadline_s: float = 5.0) -> Iterator[Problem]:
    """The problems of `check_policy`, cheapest first."""
    free = Budget(None, None, deadline_s, 1000)
    kinds: dict[str, Callable[[Steps], object]] = {
        "skewed heat": np.shape,  # as it is
        "no heat": lambda steps: steps.fill(0),
        "all heat on one expert": _one_expert,
        "a layer without heat": lambda steps: steps[:, 0].fill(0),
        "a layer with a tenth of the tokens": lambda steps: np.floor_divide(
            steps[:, 0], 10, out=steps[:, 0]
        ),
        "counts beyond 32 bits in sum": lambda steps: np.maximum(steps, 1 << 30, out=steps),
        "the largest count there is": _largest,
    }
    for shape, (layers, experts, per_rank, node_of) in SHAPES.items():
        topology = Topology(len(node_of), per_rank, node_of)
        for seed, (kind, change) in enumerate(kinds.items()):
            name = shape if seed == 0 else f"{shape}, {kind}"
            heat = heat_of(layers, experts, 8, seed, change)
            yield from _questions(name, heat, topology, free, tight=kind in _TIGHT)
        yield from _weighted(shape, heat_of(layers, experts, 8, 7), topology, free)
    yield from _histories(free)
    yield from _unlike(free)
    yield from _random(free)
    if large:
        nodes = tuple(rank // 8 for rank in range(32))
        current = Placement.linear(58, 256, 32, 9)
        heat = heat_of(58, 256, 64, 0)
        yield Problem("58 x 256 on 32 x 9", heat, Topology(32, 9, nodes), current, free)


def _questions(
    name: str, heat: Heat, topology: Topology, free: Budget, *, tight: bool
) -> Iterator[Problem]:
    """One problem from two placements in force, and where it is tight under budgets as well."""
    _, layers, experts = heat.steps.shape
    linear = Placement.linear(layers, experts, topology.ranks, topology.slots_per_rank)
    turned = Placement(np.roll(linear.slots[:, ::-1], 1, axis=2), experts)
    yield Problem(name, heat, topology, linear, free)
    yield Problem(f"{name}, ranks turned round", heat, topology, turned, free)
    for budget, what in (
        (replace(free, moves=0), "no moves allowed"),
        (replace(free, moves=4), "4 moves allowed"),
        (replace(free, bytes=3500), "bytes for 3 moves"),
        (replace(free, moves=9, bytes=0), "no bytes allowed"),
    )[: 4 * tight]:
        yield Problem(f"{name}, {what}", heat, topology, linear, budget)


def _weighted(name: str, heat: Heat, topology: Topology, free: Budget) -> Iterator[Problem]:
    """An engine that takes shares: with none in force, with some, and without room to move."""
    _, layers, experts = heat.steps.shape
    current = Placement.linear(layers, experts, topology.ranks, topology.slots_per_rank)
    yield Problem(f"{name}, weighted", heat, topology, current, replace(free, weighted=True))
    tight = replace(free, moves=0, weighted=True)
    yield Problem(f"{name}, weighted, no moves allowed", heat, topology, current, tight)
    shares = even_shares(current)
    for layer, expert in np.argwhere(current.replicas() > 1):
        own = np.flatnonzero(current.slots[layer] == expert)
        shares[layer].flat[own] = np.eye(len(own), dtype=np.float32)[0]
    uneven = Placement(current.slots, experts, shares)
    weighted = replace(free, weighted=True)
    yield Problem(f"{name}, weighted, shares in force", heat, topology, uneven, weighted)


def _histories(free: Budget) -> Iterator[Problem]:
    """Windows and placements that follow on another: what one answered before must not matter."""
    topology = Topology.single_node(4, 3)
    current = Placement.linear(2, 8, 4, 3)
    for steps, name in (
        (1, "a window of one step"),
        (32, "a longer window than last time"),
        (2, "a shorter window than last time"),
        (0, "an empty window"),
    ):
        yield from _questions(name, heat_of(2, 8, steps, 9), topology, free, tight=steps > 2)
    heat = heat_of(2, 8, 32, 9).steps
    noise = np.random.default_rng(10).normal(1.0, 0.01, heat.shape)
    noisy = (heat * noise).astype(np.int32)
    noisy.setflags(write=False)
    yield Problem("1 % of noise", Heat(noisy, "all"), topology, current, free)
    wide = Topology.single_node(8, 5)
    twice = Placement.linear(2, 32, 8, 5).slots.copy()
    twice[:, 0, -1] = twice[:, 0, 0]
    duplicated = Placement(twice, 32)
    name = "an expert twice on a rank in force"
    yield Problem(name, heat_of(2, 32, 16, 11), wide, duplicated, free)
    name = "an expert on more slots than there are ranks"
    crowded = Placement(np.array([[[0, 1, 2, 0], [0, 3, 1, 0]]] * 2, dtype=np.int32), 4)
    narrow = Topology.single_node(2, 4)
    yield from (
        Problem(f"{name}{what}", heat_of(2, 4, 16, 13), narrow, crowded, budget)
        for what, budget in (("", free), (", 1 move allowed", replace(free, moves=1)))
    )


def _unlike(free: Budget) -> Iterator[Problem]:
    """Ranks that are not like the others: slow ones, and one that is drained or masked.

    Of that one a policy is not told: it is shown the group without it.
    """
    nodes = (0, 0, 0, 1, 1, 1)
    current, heat = Placement.linear(2, 16, 6, 4), heat_of(2, 16, 16, 12)
    for name, speed in (
        ("a rank of half the speed", (1.0, 1.0, 0.5, 1.0, 1.0, 1.0)),
        ("no two ranks of one speed", (3.0, 0.7, 1.0, 1.3, 0.01, 2.0)),
    ):
        topology = Topology(6, 4, nodes, speed)
        yield from _questions(name, heat, topology, free, tight=True)
        yield from _weighted(name, heat, topology, free)
    masked = Orders(drained=frozenset({1}))
    for name, slow in (("a rank is masked", 1.0), ("a rank is masked, another one slow", 0.5)):
        whole = Topology(6, 4, nodes, (1.0, 1.0, 1.0, slow, 1.0, 1.0))
        shown, topology = masked.seen(current), masked.topology(whole)
        yield Problem(name, heat, topology, shown, free)
        yield Problem(f"{name}, 4 moves allowed", heat, topology, shown, replace(free, moves=4))
        yield Problem(f"{name}, weighted", heat, topology, shown, replace(free, weighted=True))


def _random(free: Budget) -> Iterator[Problem]:
    """Small problems of any shape and skew."""
    for seed in range(RANDOM_PROBLEMS):
        rng = np.random.default_rng(seed)
        ranks, experts = int(rng.integers(2, 13)), int(rng.integers(8, 49))
        per_rank = min(-(-experts // ranks) + int(rng.integers(0, 3)), experts)
        topology = Topology(ranks, per_rank, tuple(rng.integers(0, 3, ranks).tolist()))
        heat = heat_of(2, experts, 8, seed, sigma=float(rng.choice([0.3, 1.0, 2.0, 3.0])))
        current = Placement.linear(2, experts, ranks, per_rank)
        budget = replace(free, moves=int(rng.integers(0, 20)), weighted=bool(rng.integers(2)))
        chosen = free if rng.integers(2) else budget
        yield Problem(f"random problem {seed}", heat, topology, current, chosen)


def heat_of(
    layers: int,
    experts: int,
    steps: int,
    seed: int,
    change: Callable[[Steps], object] | None = None,
    *,
    sigma: float = 1.0,
) -> Heat:
    """Poisson counts around a lognormal popularity, read-only."""
    rng = np.random.default_rng(seed)
    popularity = rng.lognormal(0.0, sigma, (layers, experts))
    tokens = 200 * experts * popularity / popularity.sum(1, keepdims=True)
    counts = rng.poisson(tokens, (steps, layers, experts)).astype(np.int32)
    if change is not None:
        change(counts)
    counts.setflags(write=False)
    return Heat(counts, "all")


def _one_expert(steps: Steps) -> None:
    steps.fill(0)
    steps[:, :, -1] = 100_000


def _largest(steps: Steps) -> None:
    steps[:, :, 0] = np.iinfo(np.int32).max

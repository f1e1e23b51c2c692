"""Problems small enough for an exact answer: how far from the optimum each policy stays.

Owns the problems. The optimum comes from exhaustion (`tests.policies.optimum`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from eplbd import Budget, Heat, Placement, Topology, rank_load
from tests.bench.fronts.ours import DEADLINE_S, Nodes, Point, Solve, new
from tests.policies.asked import start
from tests.policies.optimum import optimum

TOY = (600, 560, 120, 120, 20, 10, 10, 10)
"""vllm-ascend's documented example: 8 experts on 8 ranks of 2 slots."""
WEIGHTED = "toy with shares"
SHAPES = ((8, 4, 3), (10, 5, 3), (12, 4, 4))
"""Experts, ranks, slots per rank."""
SIGMAS = (0.7, 1.2)


@dataclass(frozen=True, slots=True)
class Problem:
    """A load that does not change. least: what the hottest rank has to carry."""

    name: str
    loads: tuple[int, ...]
    ranks: int
    slots: int
    least: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The hottest rank's load under a policy's placement; an error instead, where there is one."""

    problem: Problem
    policy: str
    hottest: float
    error: str = ""

    @property
    def excess(self) -> float:
        """Above the optimum, relative to it."""
        return self.hottest / self.problem.least - 1.0


def problems() -> list[Problem]:
    """The toy and seeded lognormal loads."""
    rng = np.random.default_rng(1)
    asked: list[tuple[str, tuple[int, ...], int, int]] = [("toy", TOY, 8, 2)]
    for experts, ranks, slots in SHAPES:
        for sigma in SIGMAS:
            loads = np.maximum(1, 1000 * rng.lognormal(0.0, sigma, experts)).astype(int)
            name = f"{experts}e {ranks}x{slots} ln{sigma}"
            asked.append((name, tuple(int(load) for load in loads), ranks, slots))
    return [Problem(*one, optimum(one[1], one[2], one[3])) for one in asked]


def solve(problem: Problem, name: str, make: Callable[[], Solve]) -> Answer:
    """Ask once, from the initial layout."""
    heat = np.repeat(np.array(problem.loads, np.int32)[None, None], 64, axis=0)
    initial = start(1, len(problem.loads), problem.ranks, problem.slots)
    nodes = Nodes(nodes=1, groups=1, devices_per_node=problem.ranks)
    try:
        slots = make()(heat, initial.slots.astype(np.int64), problem.ranks, problem.slots, nodes)
    except Exception as error:  # noqa: BLE001  # the supervisor of strangers' code
        return Answer(problem, name, float("nan"), type(error).__name__)
    placement = Placement(np.asarray(slots, np.int32), len(problem.loads))
    return Answer(problem, name, float(rank_load(placement, heat[0]).max()))


def with_shares(name: str) -> Answer:
    """The toy where the engine takes shares: nothing stands between a placement and the mean."""
    problem = replace(problems()[0], name=WEIGHTED, least=sum(TOY) / 8)
    heat = np.repeat(np.array(TOY, np.int32)[None, None], 64, axis=0)
    heat.setflags(write=False)
    initial = start(1, len(TOY), problem.ranks, problem.slots)
    topology = Topology.single_node(problem.ranks, problem.slots)
    budget = Budget(None, None, DEADLINE_S, 1, weighted=True)
    placement = new(Point(name)).propose(Heat(heat, "all"), topology, initial, budget)
    return Answer(problem, name, float(rank_load(placement, heat[0]).max()))


def answers(makers: Mapping[str, Callable[[], Solve]]) -> list[Answer]:
    """Every policy on every problem."""
    return [solve(one, name, make) for one in problems() for name, make in makers.items()]

"""Our points: which policy with which options and budget, asked the way the bench asks peers.

Owns the sweep. A policy is known by its name alone, through the plugins' catalogue.
"""

import time
from collections.abc import Callable
from typing import TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Policy, Topology
from eplbd.plugins import Catalogue, installed

DEADLINE_S = 60.0
MOVE_COSTS = (0.001, 0.003, 0.006, 0.04, 0.08, 0.15, 0.3, 0.6)
"""The sweep of the front; the default is a point of its own."""
MIN_GAINS = (0.04, 0.08, 0.15, 0.3)
"""The sweep of `flashlb`, which has no price of a move: what it leaves alone, and how much."""
BUDGETS = (0.005, 0.02, 0.05, 0.1, 0.2)
"""Moves of a plan, as a part of all slots."""
EXACT: dict[str, float] = {
    "samples": 1,
    "move_cost": 0.0,
    "min_gain": 0.0,
    "caution": 0.0,
    "risk": 0.0,
}
"""No forecast, no insurance and free moves: how near the search comes to the window's own bound."""
ALONE = ("auto", "swift", "flashlb", "greedy")
"""Policies that are a single point, where they are installed."""
WEIGHTED = ("incremental",)
"""Policies that produce shares."""

Solve = Callable[[NDArray[np.int32], NDArray[np.int64], int, int, "Nodes"], NDArray[np.int64]]


class Nodes(TypedDict):
    """A topology, as the bench gives it."""

    nodes: int
    groups: int
    devices_per_node: int


class Point(msgspec.Struct, frozen=True):
    """One policy as an operator could configure it. part: budget, of all slots; None for none."""

    policy: str
    options: dict[str, float] = {}
    part: float | None = None

    @property
    def name(self) -> str:
        """`incremental`, `incremental move_cost=0.001`, `... to the bound`, `incremental 0.5%`."""
        if self.options == EXACT:
            return f"{self.policy} to the bound"
        words = [f"{key}={value:g}" for key, value in self.options.items()]
        budget = [] if self.part is None else [f"{self.part * 100:g}%"]
        return " ".join([self.policy, *words, *budget])


def points() -> list[Point]:
    """The shipped default first, then the sweeps and the policies without one."""
    there = {plugin.name for plugin in installed()}
    repair = [Point("incremental")]
    repair += [Point("incremental", {"move_cost": cost}) for cost in MOVE_COSTS]
    repair += [Point("incremental", part=part) for part in BUDGETS]
    repair.append(Point("incremental", EXACT))
    search = [Point("flashlb", {"min_gain": gain}) for gain in MIN_GAINS]
    everything = [*repair, *map(Point, ALONE), *search]
    return [point for point in everything if point.policy in there]


def new(point: Point) -> Policy:
    """An instance of its own: a policy may remember."""
    plugins = [plugin for plugin in installed() if plugin.name == point.policy]
    policy = Catalogue(plugins).find(point.policy).policy
    options = getattr(policy, "Options", None)
    if options is None:
        return policy()
    return policy(msgspec.convert(point.options, options))  # type: ignore[call-arg]


def entrant(point: Point, cpu_s: list[float]) -> Callable[[], Solve]:
    """A factory of what the bench calls; each call appends its CPU seconds to `cpu_s`."""

    def make() -> Solve:
        policy = new(point)

        def solve(
            heat: NDArray[np.int32],
            old: NDArray[np.int64],
            devices: int,
            slots: int,
            topology: Nodes,
        ) -> NDArray[np.int64]:
            start = time.process_time()
            node_of = tuple(rank // topology["devices_per_node"] for rank in range(devices))
            steps = heat.view()
            steps.setflags(write=False)
            answer = policy.propose(
                Heat(steps, "all"),
                Topology(devices, slots, node_of),
                Placement(old.astype(np.int32), heat.shape[2]),
                Budget(moves_of(point, old.size), None, DEADLINE_S, 1),
            )
            cpu_s.append(time.process_time() - start)
            return answer.slots.astype(np.int64)

        return solve

    return make


def moves_of(point: Point, slots: int) -> int | None:
    """The budget of a plan over `slots` slots of all layers."""
    return None if point.part is None else int(point.part * slots)

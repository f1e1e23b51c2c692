"""Ranks of unequal speed: `incremental` gives each what it can carry."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Topology, rank_load
from eplbd_policies.auto import Auto
from eplbd_policies.incremental import Incremental
from tests.policies.asked import counts

LAYERS, EXPERTS, RANKS, SLOTS, STEPS = 4, 64, 8, 10, 64
SLOW, HALF = 3, 0.5
EQUAL = Topology(RANKS, SLOTS, (0, 0, 0, 0, 1, 1, 1, 1))
UNEQUAL = replace(EQUAL, speed=tuple(HALF if rank == SLOW else 1.0 for rank in range(RANKS)))
START = Placement.linear(LAYERS, EXPERTS, RANKS, SLOTS)

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def steps() -> NDArray[np.int32]:
    window = counts(LAYERS, EXPERTS, 2 * STEPS)
    window.setflags(write=False)
    return window


def answer(
    steps: NDArray[np.int32],
    topology: Topology,
    current: Placement = START,
    *,
    weighted: bool = False,
) -> Placement:
    budget = Budget(None, None, 10.0, 1, weighted=weighted)
    heat = Heat(steps[:STEPS], "all")
    return Incremental(Incremental.Options()).propose(heat, topology, current, budget)


def time_of(placement: Placement, steps: NDArray[np.int32]) -> float:
    """What steps that were not seen take: the slowest rank of every layer, in sum."""
    load = rank_load(placement, steps[STEPS:]) / np.array(UNEQUAL.speed)
    return float(load.max(-1).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_a_rank_of_half_the_speed_gets_half_the_heat(
    steps: NDArray[np.int32], *, weighted: bool
) -> None:
    placed = answer(steps, UNEQUAL, weighted=weighted)
    load = rank_load(placed, steps[STEPS:]).sum((0, 1))
    others = np.delete(load, SLOW).mean()
    assert load[SLOW] / others == pytest.approx(HALF, abs=0.1)


@pytest.mark.parametrize("weighted", [False, True])
def test_steps_take_less_time(steps: NDArray[np.int32], *, weighted: bool) -> None:
    """Twice as long as the others is what the slow rank takes of an even part."""
    blind, seeing = (answer(steps, each, weighted=weighted) for each in (EQUAL, UNEQUAL))
    ideal = steps[STEPS:].sum() / sum(UNEQUAL.speed)
    assert time_of(blind, steps) > 1.8 * ideal
    assert time_of(seeing, steps) < 1.25 * ideal


def test_only_ratios_count(steps: NDArray[np.int32]) -> None:
    doubled = replace(UNEQUAL, speed=tuple(2 * each for each in UNEQUAL.speed))
    assert answer(steps, doubled) == answer(steps, UNEQUAL)
    assert answer(steps, replace(EQUAL, speed=(0.3,) * RANKS)) == answer(steps, EQUAL)


def test_a_rank_that_recovers_gets_its_part_back_and_nothing_moves_then(
    steps: NDArray[np.int32],
) -> None:
    slow = answer(steps, UNEQUAL)
    assert answer(steps, UNEQUAL, slow).moves_from(slow).sum() <= 2
    again = answer(steps, EQUAL, slow)
    load: Floats = rank_load(again, steps[STEPS:]).sum((0, 1))
    assert load[SLOW] / np.delete(load, SLOW).mean() == pytest.approx(1.0, abs=0.1)


def test_a_portfolio_judges_by_time(steps: NDArray[np.int32]) -> None:
    """Greedy evens out the loads, and leads where all ranks are alike."""
    candidates = ("greedy", "incremental")
    policy = Auto(Auto.Options(candidates=candidates, move_cost=0.0))
    budget = Budget(None, None, 10.0, 1)
    answer = policy.propose(Heat(steps[:STEPS], "all"), UNEQUAL, START, budget)
    load = rank_load(answer, steps[STEPS:]).sum((0, 1))
    assert load[SLOW] / np.delete(load, SLOW).mean() == pytest.approx(HALF, abs=0.1)

"""Ranks of unequal speed: declared or found, and what plans are judged by then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.assembly import Step
from eplbd.core.cycle import Cycle, Stage
from eplbd.core.events import Note, Reconfigured
from eplbd.core.gain import Gains
from eplbd.core.heat import Heat
from eplbd.core.orders import Orders
from eplbd.core.overview import overview
from eplbd.core.placement import Placement
from eplbd.core.settings import BalanceSettings
from eplbd.core.speed import Speeds, declared
from eplbd.core.topology import Topology
from tests.sim.world import QUICK, World

RANKS = 4
EQUAL = (1.0,) * RANKS
FORWARD_S = 0.02


def found(speeds: Speeds) -> tuple[float, ...]:
    return speeds.now({}, measured=True)


def run(speeds: Speeds, times: list[float], loads: list[float], figures: int = 20) -> None:
    """Forwards of all ranks, and then a look."""
    for _ in range(figures):
        for rank, seconds in enumerate(times):
            speeds.observe(rank, seconds)
    speeds.learn(np.array(loads))


def test_equal_times_show_nothing_whatever_the_load() -> None:
    """Host times of an engine that waits for all ranks in each layer."""
    speeds = Speeds(RANKS)
    run(speeds, [FORWARD_S] * RANKS, [10, 40, 10, 10])
    assert found(speeds) == EQUAL


def test_who_takes_longer_for_no_more_is_slow() -> None:
    speeds = Speeds(RANKS)
    run(speeds, [FORWARD_S, 2 * FORWARD_S, FORWARD_S, FORWARD_S], [10] * RANKS)
    assert found(speeds) == (1.0, 0.5, 1.0, 1.0)


def test_who_takes_longer_for_more_is_not() -> None:
    speeds = Speeds(RANKS)
    run(speeds, [FORWARD_S, 2 * FORWARD_S, FORWARD_S, FORWARD_S], [10, 20, 10, 10])
    assert found(speeds) == EQUAL


@pytest.mark.parametrize("figures", [1, 16])
def test_few_figures_show_nothing(figures: int) -> None:
    speeds = Speeds(RANKS)
    run(speeds, [FORWARD_S, 2 * FORWARD_S, FORWARD_S, FORWARD_S], [10] * RANKS, figures)
    assert found(speeds) == EQUAL


def test_a_rank_that_was_not_scheduled_for_once_is_not_slow() -> None:
    speeds = Speeds(RANKS)
    for _ in range(8):
        speeds.observe(1, 10.0)
    run(speeds, [FORWARD_S] * RANKS, [10] * RANKS)
    assert found(speeds) == EQUAL


@given(st.floats(0.95, 1.05), st.integers(0, RANKS - 1))
def test_noise_moves_nothing(off: float, rank: int) -> None:
    speeds = Speeds(RANKS)
    times = [FORWARD_S * (off if each == rank else 1.0) for each in range(RANKS)]
    run(speeds, times, [10] * RANKS)
    assert found(speeds) == EQUAL


@given(st.floats(0.3, 1.0), st.floats(0.0, 0.5))
def test_times_even_out_if_heat_follows(true: float, fixed: float) -> None:
    """An engine that spends a fixed part of its time elsewhere, and a policy that does its best."""
    speeds, times = Speeds(RANKS), np.ones(RANKS)
    for _ in range(12):
        known = np.array(found(speeds))
        loads = known / known.mean()
        speed = np.array([true, 1.0, 1.0, 1.0])
        times = FORWARD_S * (fixed + loads / speed)
        run(speeds, times.tolist(), loads.tolist())
    usual = float(np.median(times))
    assert abs(usual / times[0] - 1.0) < 0.2 or found(speeds)[0] == 0.25
    assert abs(found(speeds)[0] - found(speeds)[1]) <= 1.0 - true + 0.2, "no more than it is slow"


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
def test_whatever_is_measured_speeds_are_within_bounds(times: list[float]) -> None:
    speeds = Speeds(2)
    for each in times:
        speeds.observe(0, each)
        speeds.observe(1, FORWARD_S)
        speeds.learn(np.array([1.0, 1.0]))
    assert all(0.25 <= speed <= 2.0 for speed in found(speeds))


def test_what_is_declared_counts_more_than_what_was_measured() -> None:
    speeds = Speeds(RANKS)
    run(speeds, [FORWARD_S, 2 * FORWARD_S, FORWARD_S, FORWARD_S], [10] * RANKS)
    assert speeds.now({1: 0.8, 2: 0.9}, measured=True) == (1.0, 0.8, 0.9, 1.0)
    assert speeds.now({2: 0.9}, measured=False) == (1.0, 1.0, 0.9, 1.0)


def test_declarations_name_a_rank_of_every_group_or_of_one() -> None:
    entries = ("3=0.5", "m:3=0.7", "m:a:1=2", "other:2=0.1", "99=0.1")
    assert declared(entries, "m", 8) == {3: 0.7}
    assert declared(entries, "else", 8) == {3: 0.5}
    assert declared(entries, "m:a", 8) == {3: 0.5, 1: 2.0}


# --- what plans are judged by -------------------------------------------------------------------

HALF = replace(Topology.single_node(2, 3), speed=(1.0, 0.5))
EVEN = Placement(np.array([[[0, 1, 2], [3, 4, 5]]], dtype=np.int32), 6)
RELIEVED = np.array([[[0, 1, 4], [3, 2, 5]]], dtype=np.int32)
"""Rank 1 gives its hottest away."""


def heat(steps: int = 16) -> Heat:
    tokens = np.array([30, 30, 10, 10, 50, 10], dtype=np.int32)
    return Heat(np.tile(tokens, (steps, 1, 1)), "all")


def planning(topology: Topology) -> Cycle:
    cycle = Cycle(BalanceSettings(min_steps=4, par_trigger=1.0), topology, layers=1, experts=6)
    assert cycle.consider(heat(), EVEN, "p", 0.0) is not None or topology.speed == (1.0, 1.0)
    return cycle


def test_a_half_as_fast_rank_counts_as_twice_as_hot() -> None:
    """70 tokens on each: even for equal ranks, 4/3 of the mean time for these."""
    cycle = planning(HALF)
    assert cycle.tally.par_before == pytest.approx(140 / 105)
    assert cycle.answered(RELIEVED, EVEN, 0.0, 0.0) == ""
    assert cycle.stage is Stage.MOVING
    assert cycle.tally.gain_predicted == pytest.approx(1 - 110 / 140)
    assert cycle.tally.par_predicted == pytest.approx(110 / 85)


def test_equal_ranks_rest_on_even_loads() -> None:
    assert planning(Topology.single_node(2, 3)).stage is Stage.RESTING


def test_drained_ranks_are_left_out_of_the_speeds() -> None:
    topology = replace(Topology.single_node(3, 3), speed=(0.5, 0.7, 1.0))
    assert Orders(drained=frozenset({0})).topology(topology).speed == (0.7, 1.0)


# --- in the daemon ------------------------------------------------------------------------------


def test_policies_see_what_is_declared_from_the_next_question_on() -> None:
    world = World()
    world.settle()
    assert world.node is not None
    balance = replace(QUICK.balance, rank_speed=("1=0.5",))
    world.feed(Reconfigured(replace(QUICK, balance=balance)))
    for _ in range(10):
        if weighed(world):
            break
        world.settle()
    assert weighed(world) == ["1: 0.50"]
    balancer = world.node.balancers["sim"]
    assert balancer.group.topology is not None
    assert balancer.cycle is not None
    for topology in (balancer.group.topology, balancer.cycle.topology):
        assert topology.speed == (1.0, 0.5, 1.0)
    assert balancer.gains.speed.tolist() == [1.0, 0.5, 1.0]
    world.settle()
    assert len(weighed(world)) == 1
    assert balancer.ledger is not None
    steps = balancer.ledger.since(-1)[::-1]  # a few: all of them are looked at
    times = np.stack([step.load.T for step in steps]) / np.array([1.0, 0.5, 1.0])
    observed = overview(world.node).groups[0].observed_par
    assert observed is not None
    assert observed == pytest.approx((times.max(-1) / times.mean(-1)).mean(0))


def weighed(world: World) -> list[object]:
    notes = [effect for effect in world.log if isinstance(effect, Note)]
    return [note.fields["speeds"] for note in notes if note.event == "ranks weighed by their speed"]


def test_gains_are_measured_as_they_were_promised() -> None:
    """70 tokens on each of two ranks, then 110 and 30, of which the second takes twice as long."""
    gains = Gains(0.5, 0.0)
    gains.speed = np.array(HALF.speed)
    target = Placement(RELIEVED, 6)
    gains.promise(1 - 110 / 140, EVEN, [step([70, 70])])
    assert gains.measure([step([110, 30])], target) == pytest.approx(1 - 110 / 140)
    assert gains.broken == 0


def step(load: list[int]) -> Step:
    return Step(
        forward=0,
        epoch=0,
        phase=3,
        dummy=False,
        torn=False,
        tokens=sum(load),
        heat=heat(1).steps[0],
        load=np.array(load, dtype=np.int32)[:, None],
        routed=np.array(load, dtype=np.int64),
    )

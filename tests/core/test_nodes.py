"""The protocol across nodes, under faults: a leader, its relays, and a network that fails.

As `test_protocol` for one node, whose faults are among these. The seeds are others': a schedule of
this world has more to do between any two faults.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import strategies as st

from tests.core.test_protocol import inject
from tests.seeds import sweep
from tests.sim.nodes import Nodes
from tests.sim.schedule import look_for_faults, survive
from tests.sim.world import PATIENT, Shape

HARMS = (
    *("relay dies", "relay dies", "relay restarts", "relay restarts"),
    *("leader moves", "leader moves", "cut", "cut", "cut for long"),
    *("drop", "repeat", "delay", "delay", "reorder", "reorder"),
)

SHAPES = [
    (Shape(layers=2, experts=5, ranks=4, slots_per_rank=3), 2),
    (Shape(layers=1, experts=4, ranks=3, slots_per_rank=2), 3),
    (Shape(layers=1, experts=4, ranks=2, slots_per_rank=2), 2),
]


def harm(world: Nodes, chance: random.Random) -> str:
    """Do the world one harm: a third of them are of a single node."""
    if chance.random() < 1 / 3:
        return inject(world, chance)
    node = chance.randrange(1, world.nodes)
    what = chance.choice(HARMS)
    match what:
        case "relay dies":
            world.kill_relay(node)
        case "relay restarts":
            world.kill_relay(node)
            world.start_relay(node)
        case "leader moves":
            world.move_leader()
        case "cut":
            world.cut_network(node, chance.uniform(0.1, 1.0))
        case "cut for long":
            world.cut_network(node, 5.0)
        case _:
            world.disturb_network(node, what, upward=chance.random() < 0.5)
    return what


def made(seed: int) -> Nodes:
    shape, nodes = SHAPES[seed % len(SHAPES)]
    return Nodes(shape=shape, nodes=nodes, seed=seed)


@pytest.mark.parametrize("seed", sweep(240))
def test_group_on_several_nodes_survives_faults(seed: int) -> None:
    """Any schedule of up to six faults: maps agree at all times, and then balancing resumes."""
    survive(made(seed), harm, random.Random(seed), before=(200, 1500), between=400)


@pytest.mark.parametrize("seed", range(6))
def test_without_faults_nothing_aborts(seed: int) -> None:
    world = made(seed)
    world.settings = replace(PATIENT, cluster=replace(PATIENT.cluster, interval_s=0.1))
    world.kill_daemon()
    world.start_daemon()
    for _ in range(3):
        world.settle()
    assert world.aborted == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_group_that_restarts_is_taken_up_anew(seed: int) -> None:
    world = made(seed)
    world.settle()
    world.restart_group()
    world.settle()


def test_hypothesis_finds_no_schedule_that_breaks_it() -> None:
    look_for_faults(st.integers(0, 2**16).map(made), harm, steps=(100, 600), examples=40)

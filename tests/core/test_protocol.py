"""The protocol under faults: a whole group in a simulated world, driven by chance.

Faults are drawn from a budget, and going on is far likelier than failing: a schedule in which
faults are as likely as progress never reaches the states in which they matter. `make mutants` shows
what this suite notices.
"""

import random

import pytest
from hypothesis import strategies as st

from eplbd.core import messages as m
from eplbd.core.events import EpochEnded
from eplbd.core.placement import Placement
from tests.seeds import sweep
from tests.sim.schedule import look_for_faults, survive
from tests.sim.world import PATIENT, Shape, World

HARMS = (
    *("drop", "drop", "repeat", "delay", "delay", "delay", "reorder", "partition"),
    *("echo", "echo", "slow register"),
    *("dies", "dies", "restart", "kill", "stop", "go on", "fail", "corrupt", "refuse"),
)

ORDERS = (m.Welcome, m.Prepare, m.Stage, m.Arm, m.Confirm, m.Abort)
"""Orders after which a daemon may die with some of them given and others not."""

SHAPES = [
    Shape(layers=2, experts=5, ranks=3, slots_per_rank=3),
    Shape(layers=1, experts=4, ranks=2, slots_per_rank=2),
    Shape(layers=3, experts=4, ranks=4, slots_per_rank=2),
]


def inject(world: World, chance: random.Random) -> str:
    """Do the world one harm."""
    rank = chance.randrange(len(world.ranks))
    harm = chance.choice(HARMS)
    match harm:
        case "drop" | "repeat" | "delay" | "reorder":
            world.disturb(rank, harm, upward=chance.random() < 0.5)
        case "dies":
            world.dies_at = chance.choice(ORDERS)
        case "echo":
            world.echo(2.0)
        case "restart":
            world.kill_daemon()
            world.start_daemon(stale=chance.random() < 0.5)
        case "kill":
            world.kill_daemon()
        case "fail" | "corrupt":
            world.transport.pending[harm] = rank
        case "refuse":
            world.ranks[rank].refuse_next = "no memory"
        case "stop":
            world.ranks[rank].stopped = True
        case "go on":
            for me in world.ranks:
                me.stopped = False
        case "partition":
            world.up[rank].clear()
            world.down[rank].clear()
        case _:
            # Answers of the register come late: everything else goes on meanwhile.
            world.hold_register(rank)
    return harm


@pytest.mark.parametrize("seed", sweep(240))
def test_group_survives_faults(seed: int) -> None:
    """Any schedule of up to six faults: maps agree at all times, and then balancing resumes."""
    world = World(shape=SHAPES[seed % len(SHAPES)], seed=seed)
    survive(world, inject, random.Random(seed), before=(50, 500), between=200)


@pytest.mark.parametrize("seed", range(10))
def test_group_that_restarts_is_taken_up_anew(seed: int) -> None:
    world = World(seed=seed)
    world.run(100 + 40 * seed)
    world.restart_group()
    world.settle()
    assert {me.agent.placement.digest for me in world.ranks} != set()


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_nothing_aborts(seed: int) -> None:
    world = World(seed=seed, shape=SHAPES[seed % len(SHAPES)], settings=PATIENT)
    for _ in range(3):
        world.settle()
    assert world.aborted == 0


@pytest.mark.parametrize("seed", sweep(60))
def test_shares_survive_faults(seed: int) -> None:
    """Also where epochs bring shares, with transfers and without, and leaders learn them back."""
    world = World(shape=SHAPES[seed % len(SHAPES)], seed=seed, weighted=True)
    survive(world, inject, random.Random(seed), before=(50, 500), between=200)


def test_shares_alone_settle_without_a_transfer() -> None:
    """Of the epochs that settle some bring nothing but shares."""
    world = World(seed=1, weighted=True)
    ended: list[EpochEnded] = []
    while not any(epoch.moves == 0 for epoch in ended):
        world.settle()
        ended = [e for e in world.log if isinstance(e, EpochEnded) and e.outcome == "settled"]
    alone = next(epoch for epoch in ended if epoch.moves == 0)
    assert (alone.rounds, alone.bytes) == (0, 0)


def test_a_new_leader_learns_the_shares_in_force() -> None:
    world = World(seed=2, weighted=True)
    while world.ranks[0].agent.placement.shares is None:
        world.settle()
    world.kill_daemon()
    world.start_daemon()
    held: Placement | None = None
    while held is None:
        world.run(1)
        assert world.node is not None
        held = next((b.group.placement for b in world.node.balancers.values()), None)
    assert held.shares is not None
    assert {me.agent.placement for me in world.ranks} == {held}


def apart(world: World, rank: int) -> None:
    """Do something random that brings a rank and its daemon nothing from each other."""
    ways = [
        action
        for action in world.actions()
        if getattr(action, "func", None) not in (world.deliver_up, world.deliver_down)
        or getattr(action, "args", None) != (rank,)
    ]
    world.random.choice(ways)()


@pytest.mark.parametrize("seed", range(6))
def test_an_order_from_an_epoch_that_was_closed_meanwhile_holds_up_nothing(seed: int) -> None:
    """The rank was lost, came back idle, and only then is told to prepare what is over."""
    world, rank = World(seed=seed), 2
    while not any(isinstance(order, m.Prepare) for order in world.down[rank]):
        world.run(1)
    assert world.node is not None
    group = world.node.balancers["sim"].group
    late = next(order for order in world.down[rank] if isinstance(order, m.Prepare))
    while group.leader is not None:
        world.up[rank].clear()
        world.down[rank].clear()
        apart(world, rank)
    while rank in group.unsettled:
        world.run(1)
    world.ranks[rank].heard(late)
    assert world.ranks[rank].agent.pending == late.epoch
    world.settle()


def test_hypothesis_finds_no_schedule_that_breaks_it() -> None:
    worlds = st.builds(World, shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**16))
    look_for_faults(worlds, inject, steps=(60, 300), examples=60)

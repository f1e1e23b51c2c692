"""Orders until further notice: pinned experts stay, drained ranks can be spared."""

from __future__ import annotations

import numpy as np
import pytest

from eplbd.core import commands as c
from eplbd.core.orders import EVERY_LAYER, PINS_MAX, Orders
from eplbd.core.placement import Placement
from tests.core.test_modes import somewhere
from tests.sim.commanded import CALM, TIGHT, WIDE, Commanded, hosts, led

# --- pins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_pinned_expert_stays_and_others_move(layer: int | None, seed: int) -> None:
    world = led(seed=seed)
    world.told(c.Pause())
    world.run(400)
    start = world.placement()
    where = {at: hosts(start, at, 3) for at in ((0, 1) if layer is None else (layer,))}
    assert "until you unpin it" in world.told(c.Pin(3, layer))
    world.told(c.Resume())
    base = world.settled
    for _ in range(40):
        world.run(100)
        for me in world.ranks:
            assert {at: hosts(me.agent.placement, at, 3) for at in where} == where
    if layer is not None:
        assert world.settled > base, "the other layer is balanced"
    world.told(c.Unpin(3, layer))
    world.until(
        lambda: any(
            hosts(world.ranks[0].agent.placement, at, 3) != held for at, held in where.items()
        )
    )


def test_pins_are_remembered_and_named() -> None:
    world = led()
    world.told(c.Pin(3))
    world.told(c.Pin(2, 0))
    assert world.kept["sim"].pins == {(EVERY_LAYER, 3), (0, 2)}
    assert "pinned there already" in world.refused(c.Pin(3, 1))
    assert "pinned in every layer" in world.refused(c.Unpin(3, 1))
    assert "pinned experts: [2, 3]" in world.refused(c.Unpin(4))
    assert "expert is 5, expected 0 to 4" in world.refused(c.Pin(5))
    assert "layer is 2, expected 0 to 1" in world.refused(c.Pin(0, 2))
    world.told(c.Unpin(3))
    world.told(c.Unpin(2, 0))
    assert not world.kept
    assert world.node is not None
    world.node.orders["sim"] = Orders(pins=frozenset((0, e) for e in range(PINS_MAX)))
    assert "the most" in world.refused(c.Pin(1, 1))


def test_what_moves_a_pinned_expert_is_refused_by_name() -> None:
    world = led(settings=CALM)
    start = world.placement()
    wanted = somewhere(9, WIDE)
    at = next(e for e in range(5) if hosts(start, 0, e) != hosts(wanted, 0, e))
    world.told(c.Pin(at, 0))
    refused = world.refused(c.GoTo("", "load", "nine", wanted))
    assert refused == f"nine: layer 0: it moves expert {at}, which is pinned; unpin it first"


# --- drains -------------------------------------------------------------------------------------


def spared(placement: Placement, rank: int) -> bool:
    """Whether every expert is on some other rank."""
    others = np.delete(placement.hosts(), rank, axis=1)
    return bool(others.any(axis=1).all())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_drained_rank_can_be_spared_from_then_on(seed: int, weighted: bool) -> None:
    world = Commanded(seed=seed, shape=TIGHT, weighted=weighted)
    world.ready()
    mark = len(world.effects)
    assert "is drained" in world.told(c.Drain(2))
    world.until(lambda: spared(world.ranks[0].agent.placement, 2))
    base, asked = world.settled, len(world.effects)
    for _ in range(40):
        world.run(100)
        for me in world.ranks:
            assert spared(me.agent.placement, 2), world.story()
    assert world.settled > base, "the other ranks are balanced"
    assert {ask.topology.ranks for ask in world.asks(asked)} == {3}
    if weighted:
        parts = world.ranks[0].agent.placement.parts()
        assert not parts[:, 2].any(), "no tokens go there"
    assert any(ended.policy == "drain" for ended in world.ended(mark))
    world.told(c.Undrain(2))
    later = len(world.effects)
    world.until(lambda: any(ask.topology.ranks == 4 for ask in world.asks(later)))


def test_a_new_life_of_the_group_is_drained_again() -> None:
    world = led(seed=9, shape=TIGHT)
    world.told(c.Drain(1))
    world.until(lambda: spared(world.ranks[0].agent.placement, 1))
    world.kill_daemon()
    world.start_daemon()
    world.restart_group()
    mark = len(world.effects)
    world.until(lambda: any(ended.policy == "drain" for ended in world.ended(mark)))
    assert spared(world.placement(), 1)
    assert all(ask.topology.ranks == 3 for ask in world.asks(mark))


def test_a_drain_that_cannot_be_is_refused() -> None:
    world = led(settings=CALM)
    assert "rank is 4, expected 0 to 3" in world.refused(c.Drain(4))
    world.told(c.Drain(0))
    world.until(lambda: spared(world.placement(), 0))
    assert "drained already" in world.refused(c.Drain(0))
    assert "is not drained; drained: [0]" in world.refused(c.Undrain(1))
    world.told(c.Drain(3))
    world.until(lambda: world.node is not None and not world.node.balancers["sim"].group.leader)
    assert "there are 3 slots for 5 experts" in world.refused(c.Drain(1))
    sole = Placement(world.placement().slots, 5)
    rows = sole.slots.copy()
    rows[:] = [[0, 1, 2], [3, 1, 2], [3, 1, 2], [4, 1, 2]]
    refused = world.refused(c.GoTo("", "load", "sole", Placement(rows, 5)))
    assert "leaves expert 0 on no rank but drained ones (0, 3)" in refused


def test_ranks_that_the_group_does_not_have_any_more_are_not_drained() -> None:
    world = led(seed=2, shape=TIGHT)
    assert world.node is not None
    world.node.orders["sim"] = Orders(drained=frozenset({2, 3, 9}))
    world.restart_group()
    mark = len(world.effects)
    world.until(lambda: bool(world.notes("order refused")))
    assert world.node.balancers["sim"].orders.drained == {2, 3}
    assert "6 slots for 8 experts" in str(world.notes("order refused")[0].fields["reason"])
    asked = len(world.asks(mark))
    world.run(2000)
    assert len(world.asks(mark)) == asked, "nobody plans against an order that does not hold"
    assert len(world.notes("order refused")) == 1
    world.told(c.Undrain(2))
    world.until(lambda: len(world.asks(mark)) > asked)


def test_all_ranks_drained_is_an_order_that_cannot_hold() -> None:
    everywhere = Orders(drained=frozenset(range(4)))
    assert everywhere.sole(somewhere(1, WIDE)) == (0, 0)

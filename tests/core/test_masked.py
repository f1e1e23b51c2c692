"""Masked ranks, to which an engine gives no tokens: spared like drained ones, while they say so."""

from __future__ import annotations

from eplbd.core import commands as c
from tests.core.test_orders import spared
from tests.sim.commanded import TIGHT, WIDE, led


def test_a_masked_rank_is_spared_and_comes_back() -> None:
    world = led(seed=4, shape=TIGHT)
    world.ranks[2].masked = True
    world.until(lambda: bool(world.notes("rank masked by the engine")))
    mark = len(world.effects)
    world.until(lambda: spared(world.ranks[0].agent.placement, 2))
    asked, base = len(world.effects), world.settled
    for _ in range(20):
        world.run(100)
        assert spared(world.ranks[0].agent.placement, 2), world.story()
    assert world.settled > base, "the other ranks are balanced"
    assert {ask.topology.ranks for ask in world.asks(asked)} == {3}
    assert any(ended.policy == "drain" for ended in world.ended(mark)), "sole copies come first"
    world.ranks[2].masked = False
    later = len(world.effects)
    world.until(lambda: any(ask.topology.ranks == 4 for ask in world.asks(later)))
    for event in ("rank masked by the engine", "rank serves again"):
        assert [note.fields["rank"] for note in world.notes(event)] == [2]


def test_masks_and_drains_add_up_and_each_is_lifted_alone() -> None:
    world = led(seed=5, shape=WIDE)
    assert world.node is not None
    world.told(c.Drain(0))
    world.ranks[3].masked = True
    balancer = world.node.balancers["sim"]
    world.until(lambda: balancer.orders.drained == {0, 3})
    world.told(c.Undrain(0))
    assert balancer.orders.drained == {3}
    assert not world.kept, "what an engine says is nobody's order"
    world.ranks[3].masked = False
    world.until(lambda: not balancer.orders.drained)


def test_a_group_of_masked_ranks_alone_stays_as_it_is() -> None:
    world = led(seed=6, shape=WIDE)
    for me in world.ranks:
        me.masked = True
    world.until(lambda: bool(world.notes("order refused")))
    asked = len(world.effects)
    world.run(1000)
    assert not world.asks(asked)

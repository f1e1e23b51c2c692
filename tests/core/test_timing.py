"""Timing: figures reach who needs them, and none of an epoch that is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eplbd.core import messages as m
from eplbd.core.balancer import Balancer
from eplbd.core.overview import overview
from eplbd.core.settings import TransferSettings
from eplbd.core.topology import Link
from eplbd.errors import RemoteProtocolError
from tests.sim.world import QUICK, World


def balancer(world: World) -> Balancer:
    world.settle()
    assert world.node is not None
    return world.node.balancers["sim"]


def test_a_pulse_reaches_pace_and_speeds() -> None:
    timing = balancer(World()).timing
    timing.heard(0, m.Pulse(1, forward_s=0.02, gap_s=0.01))
    assert timing.pacer.forward_s == pytest.approx(0.02)
    assert timing.pacer.bubble_s == pytest.approx(0.03)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), 1e9])
def test_what_is_no_duration_is_refused(seconds: float) -> None:
    timing = balancer(World()).timing
    with pytest.raises(RemoteProtocolError, match="gap_s"):
        timing.heard(0, m.Pulse(1, gap_s=seconds))


def test_an_epoch_that_is_over_teaches_nothing() -> None:
    found = balancer(World())
    assert found.group.leader is None or found.group.leader.epoch < 99
    found.timing.heard(0, m.Staged(found.group.term, 99, transfer_s=5.0, bytes_received=10))
    assert found.pacer.used == 0.0


def test_configured_links_pace_the_next_epoch_and_a_reload_changes_them() -> None:
    settings = replace(QUICK, transfer=TransferSettings(network_bytes_per_s=1000.0))
    timing = balancer(World(settings=settings)).timing
    timing.links.spans = True
    timing.heard(0, m.Pulse(1, forward_s=1.0))
    assert timing.links.bytes_per_s(Link.NETWORK) == 1000.0
    assert timing.pacer.current.crossings is not None
    timing.reconfigure(QUICK)
    assert timing.pacer.current.crossings is None


def test_an_epoch_that_was_late_is_told_with_what_its_links_carry() -> None:
    world = World()
    found = balancer(world)
    timing, group = found.timing, found.group
    for _ in range(10_000):
        if group.leader is not None:
            break
        world.run(1)
    leader, plan = group.leader, found.epoch_plan
    assert leader is not None
    assert plan is not None
    timing.heard(0, m.Pulse(1, forward_s=0.01))
    room_s = plan.rounds * (leader.stride + 1) * 0.01
    for factor, notes in ((0.9, 0), (4.0, 1), (4.0, 1), (0.9, 1)):
        for rank in range(3):
            done = m.Staged(
                leader.term, leader.epoch, transfer_s=factor * room_s, stage_s=9.0, bytes_received=1
            )
            timing.heard(rank, done)
        timing.settled(leader, plan)
        said = [note for note in group.out if getattr(note, "event", "") == "links limit rounds"]
        assert len(said) == notes
        assert world.node is not None
        (seen,) = overview(world.node).groups
        assert (seen.budget.node_bytes_per_s > 0) == bool(notes), "and it can be seen"
        assert seen.budget.node_bytes_per_s == timing.links.bytes_per_s(Link.NODE)

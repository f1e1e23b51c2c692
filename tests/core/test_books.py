"""The books of a rebalance: what is measured, and when nothing is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplbd.core.events import CycleEnded, Effect, PolicyAnswered
from eplbd.core.placement import Placement, par
from tests.core.test_modes import Noted
from tests.sim.world import QUICK


class Watched(Noted):
    """Keeps what was in force when each rebalance was closed."""

    def __post_init__(self) -> None:
        self.closed: list[tuple[CycleEnded, Placement]] = []
        super().__post_init__()

    def perform(self, effect: Effect) -> None:
        super().perform(effect)
        if isinstance(effect, CycleEnded) and self.node is not None:
            placement = self.node.balancers["sim"].group.placement
            assert placement is not None
            self.closed.append((effect, placement))


def test_realised_par_is_measured_under_the_new_map_alone() -> None:
    """Heat is the same in every step: only what ran under the new map can give its figure."""
    world = Watched(seed=14)
    world.until(lambda: sum(ended.par_realised > 0 for ended, _ in world.closed) > 3)
    figures = []
    for ended, placement in world.closed:
        split = world.heat() // placement.replicas()  # as the world's ranks count, in each slot
        layer = np.arange(placement.layers)[:, None, None]
        loads = split[layer, placement.slots].sum(axis=2)
        if ended.par_realised:  # else no heat came in time
            assert ended.par_realised == pytest.approx(par(loads).mean())
            figures.append(ended.par_realised)
    assert len(set(figures)) > 1


class Content(Noted):
    """The policy proposes what is there."""

    def answer_policy(self) -> None:
        ask = self.proposals.popleft()
        self.feed(PolicyAnswered(ask.request, ask.current.slots, 0.01))


def test_load_that_has_not_changed_is_not_asked_about_again() -> None:
    """Until the horizon is over."""
    world = Content(seed=15, settings=replace(QUICK, balance=replace(QUICK.balance, horizon_s=30)))
    world.until(lambda: bool(world.of(CycleEnded)))
    began = world.now
    world.until(lambda: len(world.of(CycleEnded)) > 1)
    assert {ended.outcome for ended in world.of(CycleEnded)} == {"unchanged"}
    assert world.now - began > 29


def test_moves_that_were_too_dear_are_believed_to_be_cheaper_each_time() -> None:
    """Nothing is measured of moves that are never made."""
    world = Noted(seed=16)
    world.until(lambda: bool(world.of(CycleEnded)))
    assert world.node is not None
    pacer = world.node.balancers["sim"].pacer
    pacer.observe(forward_s=1.0, staging_forward_s=2.0)
    pacer.pace()
    costs = [pacer.round_cost_s]
    for _ in range(4):
        refused = len([e for e in world.of(CycleEnded) if "does not pay" in e.reason])
        world.until(
            lambda known=refused: (  # type: ignore[misc]
                len([e for e in world.of(CycleEnded) if "does not pay" in e.reason]) > known
            )
        )
        costs.append(pacer.round_cost_s)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 2

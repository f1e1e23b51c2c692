"""Policies asked before there is any heat: even heat, on the layouts that engines start with."""

from __future__ import annotations

import numpy as np
import pytest

from eplbd import Heat, Placement, Topology
from eplbd.core.group import Group
from eplbd.core.opening import Opening
from eplbd.core.placement import par, rank_load, validate
from eplbd.core.settings import BalanceSettings, Settings
from tests.hellos import hello
from tests.policies.asked import BALANCES, FREE, claiming, fresh


def assumed(layers: int, experts: int) -> Heat:
    """What the daemon assumes of a group that has reported nothing."""
    said = hello(layers=layers, experts=experts, slots_per_rank=experts)
    settings = Settings(balance=BalanceSettings(opening="spread"))
    group = Group(said, settings, stored_term=0, now=0.0)
    opening = Opening(group, None)
    nothing = Heat(np.empty((0, layers, experts), dtype=np.int32), "all")
    assert opening.heat(nothing, group) is nothing
    heat = opening.heat(nothing, group)
    assert opening.assumed
    return heat


def engine_layout(layers: int, experts: int, ranks: int, slots: int) -> Placement:
    """vLLM's: experts in order, then copies of the first ones, all on the last ranks."""
    row = np.arange(ranks * slots, dtype=np.int32) % experts
    return Placement(np.tile(row.reshape(1, ranks, slots), (layers, 1, 1)), experts)


@pytest.mark.slow
@pytest.mark.parametrize("name", claiming(BALANCES))
@pytest.mark.parametrize(("experts", "ranks", "slots"), [(64, 8, 9), (60, 4, 16), (256, 32, 9)])
def test_copies_are_spread(name: str, experts: int, ranks: int, slots: int) -> None:
    current, heat = engine_layout(2, experts, ranks, slots), assumed(2, experts)
    topology = Topology(ranks, slots, tuple(rank // 4 for rank in range(ranks)))
    before = par(rank_load(current, heat.steps[:1])).mean()
    proposal = fresh(name).propose(heat, topology, current, FREE)
    target = validate(
        proposal.slots, experts=experts, topology=topology, layers=2, allow_duplicates=False
    )
    after = par(rank_load(target, heat.steps[:1])).mean()
    assert after - 1 <= (before - 1) / 2, f"from {before:.4f}"

"""Ranks that can be spared: after a drain, and all the way from one placement to the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eplbd.core.drain import drained
from eplbd.core.orders import EVERY_LAYER, Orders
from eplbd.core.placement import Placement, rank_load, validate
from eplbd.core.plan import Plan
from eplbd.errors import PlacementError
from tests.core.arrangements import Group, holds, pairs, weighted
from tests.core.memory import Memory

Case = tuple[Group, Placement, Placement, Orders]


@st.composite
def spared(draw: st.DrawFn) -> Case:
    """A group with two placements of it, and ranks that have to go, most often few enough."""
    group, current, target = draw(pairs())
    ranks = st.integers(0, group.topology.ranks - 1)
    return group, current, target, Orders(drained=draw(st.frozensets(ranks, min_size=1)))


def without_heat(placement: Placement) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.zeros((placement.layers, placement.experts), dtype=np.int64)


def room(group: Group, orders: Orders) -> bool:
    return len(orders.kept(group.topology.ranks)) * group.topology.slots_per_rank >= group.experts


@given(spared(), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_is_drained_is_nowhere_alone(case: Case, shares: bool, seed: int) -> None:
    group, current, _, orders = case
    rng = np.random.default_rng(seed)
    heat = rng.integers(0, 1000, (group.layers, group.experts))
    if not room(group, orders):
        with pytest.raises(PlacementError, match="drain fewer ranks"):
            drained(current, orders, heat, weighted=shares)
        return
    found = drained(current, orders, heat, weighted=shares)
    assert orders.sole(found) is None
    validate(
        found.slots,
        experts=group.experts,
        topology=group.topology,
        layers=group.layers,
        allow_duplicates=current.has_duplicates,
        shares=found.shares,
    )
    if shares:
        assert not found.parts()[:, sorted(orders.drained)].any()


@given(spared())
def test_no_more_is_moved_than_what_was_alone(case: Case) -> None:
    group, current, _, orders = case
    assume(room(group, orders))
    found = drained(current, orders, without_heat(current), weighted=False)
    kept = current.slots[:, orders.kept(current.ranks)].reshape(group.layers, -1)
    alone = sum(group.experts - len(set(row)) for row in kept.tolist())
    assert np.count_nonzero(found.slots != current.slots) == alone
    assert (drained(found, orders, without_heat(current), weighted=False)) == found


def test_a_drained_rank_is_left_with_cold_experts() -> None:
    rows = np.array([[[0, 1], [2, 3], [4, 0], [1, 2]]], dtype=np.int32)
    heat = np.array([[900, 800, 50, 40, 10]])
    orders = Orders(drained=frozenset({0}))
    found = drained(Placement(rows, 5), orders, heat, weighted=False)
    assert sorted(found.slots[0, 0].tolist()) == [2, 4]
    before, after = rank_load(Placement(rows, 5), heat), rank_load(found, heat)
    assert after[0, 0] < before[0, 0] / 10


def test_what_is_pinned_is_not_moved_for_it() -> None:
    rows = np.array([[[0, 1], [2, 1], [2, 1]]], dtype=np.int32)
    heat = np.zeros((1, 3))
    pin = Orders(drained=frozenset({0}), pins=frozenset({(EVERY_LAYER, 0)}))
    with pytest.raises(PlacementError, match="layer 0: expert 0 has its only replica there and is"):
        drained(Placement(rows, 3), pin, heat, weighted=False)
    others = Orders(drained=frozenset({0}), pins=frozenset({(0, 1), (0, 2)}))
    with pytest.raises(PlacementError, match="every replica that could give way to it is pinned"):
        drained(Placement(rows, 3), others, heat, weighted=False)


@pytest.mark.slow
@settings(max_examples=200)
@given(spared(), st.integers(1, 2), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_rank_can_be_spared_on_the_way(
    case: Case, experts_per_rank: int, shares: bool, seed: int
) -> None:
    """What a policy proposes for the other ranks, carried out epoch by epoch."""
    group, current, other, orders = case
    assume(room(group, orders))
    start = drained(current, orders, without_heat(current), weighted=shares)
    goal = drained(other, orders, without_heat(other), weighted=shares)
    proposal = orders.seen(goal)
    if shares:
        proposal = weighted(proposal, np.random.default_rng(seed))
    target = orders.completed(proposal, start, weighted=shares)
    plan = Plan(start, target, group.topology, spared=orders.drained)
    memory = Memory(start, buffers=experts_per_rank)
    while (epoch := plan.next_epoch(experts_per_rank)) is not None:
        memory.run(epoch)
        assert orders.sole(epoch.target) is None
        if shares:
            assert not epoch.target.parts()[:, sorted(orders.drained)].any()
        plan.settled()
    assert holds(memory.placement()) == holds(target)


@given(spared())
def test_what_is_seen_completes_to_what_was(case: Case) -> None:
    group, current, _, orders = case
    assume(room(group, orders))
    start = drained(current, orders, without_heat(current), weighted=False)
    seen = orders.seen(start)
    assert seen.ranks == orders.topology(group.topology).ranks
    assert orders.completed(seen, start, weighted=False) == start

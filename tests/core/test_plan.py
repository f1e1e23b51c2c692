"""Plans: alignment, and epochs carried out on a model of the ranks' memories."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.placement import Placement, validate
from eplbd.core.plan import EpochPlan, Plan, align
from eplbd.core.rounds import Col
from eplbd.core.shares import WHOLE, even_parts
from eplbd.core.topology import Topology
from eplbd.errors import LocalProtocolError, PlacementError
from tests.core.arrangements import Group, holds, pairs, splits
from tests.core.memory import Memory

Case = tuple[Group, Placement, Placement]


def fresh_slots(current: Placement, target: Placement) -> int:
    """The least number of slots to write: gained experts of every rank, as multisets."""
    return sum(
        (Counter(new) - Counter(old)).total()
        for old_layer, new_layer in zip(holds(current), holds(target), strict=True)
        for old, new in zip(old_layer, new_layer, strict=True)
    )


def most_duplicates(*placements: Placement) -> Counter[tuple[int, int, int]]:
    """How often each (layer, rank) holds each expert at most in any of the placements."""
    most: Counter[tuple[int, int, int]] = Counter()
    for placement in placements:
        layers, ranks, _ = placement.slots.shape
        most |= Counter(
            (layer, rank, expert)
            for layer in range(layers)
            for rank in range(ranks)
            for expert in placement.slots[layer, rank].tolist()
        )
    return most


def same_epoch(a: EpochPlan | None, b: EpochPlan | None) -> bool:
    if a is None or b is None:
        return a is b
    return (
        (a.base_digest, a.target, a.rounds) == (b.base_digest, b.target, b.rounds)
        and np.array_equal(a.layers, b.layers)
        and np.array_equal(a.transfers, b.transfers)
    )


# --- alignment ----------------------------------------------------------------------------------


@given(pairs())
def test_align_keeps_hosts_and_writes_least(case: Case) -> None:
    _, current, target = case
    aligned = align(current, target)
    assert holds(aligned) == holds(target)
    assert np.count_nonzero(aligned.slots != current.slots) == fresh_slots(current, target)
    assert align(current, aligned) == aligned


def test_align_of_a_permutation_changes_nothing() -> None:
    current = Placement.linear(2, 6, 2, 4)
    assert align(current, Placement(current.slots[:, :, ::-1], 6)) == current


def test_align_keeps_one_of_two_duplicates() -> None:
    current = Placement(np.array([[[5, 5, 1]]], np.int32), 6)
    target = Placement(np.array([[[1, 2, 5]]], np.int32), 6)
    assert align(current, target).slots.tolist() == [[[5, 2, 1]]]


def test_align_refuses_other_shapes() -> None:
    with pytest.raises(
        PlacementError, match=r"target has .* \(1, 2, 2, 4\), expected \(1, 2, 3, 4"
    ):
        align(Placement.linear(1, 4, 2, 3), Placement.linear(1, 4, 2, 2))


# --- epochs -------------------------------------------------------------------------------------


@given(
    pairs(), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 6)), st.integers(0, 2**32 - 1)
)
def test_epochs_carried_out_reach_the_target(
    case: Case, experts_per_rank: int, max_moves: int | None, seed: int
) -> None:
    group, current, target = case
    heat = np.random.default_rng(seed).random(group.layers)
    plan = Plan(current, target, group.topology, heat)
    assert plan.moves == fresh_slots(current, target)
    memory = Memory(current, buffers=experts_per_rank)
    allowed = most_duplicates(current, target)
    moves = 0
    while (epoch := plan.next_epoch(experts_per_rank, max_moves)) is not None:
        before = memory.placement()
        assert epoch.base_digest == before.digest
        memory.run(epoch)
        after = memory.placement()
        assert after == epoch.target
        validate(
            after.slots,
            experts=group.experts,
            topology=group.topology,
            layers=group.layers,
            allow_duplicates=True,
        )
        assert most_duplicates(after) <= allowed
        changed = (before.slots != after.slots).any(axis=(1, 2))
        assert epoch.layers.tolist() == np.flatnonzero(changed).tolist()
        moves += epoch.moves
        at_least = plan.least_rounds
        plan.settled()
        assert at_least - plan.least_rounds <= experts_per_rank
        assert plan.base == after
        assert plan.remaining == plan.moves - moves
        if max_moves is not None and epoch.moves > max_moves:
            assert_is_ring(epoch)
    assert moves == plan.moves
    assert plan.least_rounds == 0
    assert holds(memory.placement()) == holds(target)


def assert_is_ring(epoch: EpochPlan) -> None:
    """One layer, every rank at most once, and each expert comes from a slot that is overwritten."""
    rows = epoch.transfers
    assert len(epoch.layers) == 1
    assert len(set(rows[:, Col.DST].tolist())) == len(rows)
    assert sorted(rows[:, Col.SRC].tolist()) == sorted(rows[:, Col.DST].tolist())


@given(pairs())
def test_nothing_to_do_is_no_epoch(case: Case) -> None:
    group, current, _ = case
    plan = Plan(current, Placement(current.slots[:, :, ::-1], group.experts), group.topology)
    assert plan.moves == 0
    assert plan.next_epoch() is None


@given(pairs(), st.data())
def test_an_aborted_epoch_is_offered_again(case: Case, data: st.DataObject) -> None:
    group, current, target = case
    steady = Plan(current, target, group.topology)
    shaky = Plan(current, target, group.topology)
    while True:
        size, most = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
        wanted = steady.next_epoch(size, most)
        for _ in range(data.draw(st.integers(0, 2))):
            shaky.next_epoch(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)))
        assert same_epoch(shaky.next_epoch(size, most), wanted)
        if wanted is None:
            return
        steady.settled()
        shaky.settled()


@given(pairs(), st.integers(1, 2), st.integers(1, 3))
def test_no_round_is_over_a_nodes_budget(case: Case, experts_per_rank: int, crossings: int) -> None:
    group, current, target = case
    node_of = group.topology.node_of
    plan = Plan(current, target, group.topology)
    memory = Memory(current, buffers=experts_per_rank)
    while (epoch := plan.next_epoch(experts_per_rank, crossings=crossings)) is not None:
        rows = epoch.transfers.tolist()
        far = [row for row in rows if node_of[row[Col.SRC]] != node_of[row[Col.DST]]]
        for end in (Col.SRC, Col.DST):
            busy = Counter((row[Col.ROUND], node_of[row[end]]) for row in far)
            assert max(busy.values(), default=0) <= crossings
        memory.run(epoch)
        plan.settled()
    assert holds(memory.placement()) == holds(target)


def test_settled_needs_an_epoch() -> None:
    plan = Plan(Placement.linear(1, 2, 2, 1), swapped(), Topology.single_node(2, 1))
    with pytest.raises(LocalProtocolError, match="without an epoch"):
        plan.settled()
    plan.next_epoch()
    plan.settled()
    with pytest.raises(LocalProtocolError, match="without an epoch"):
        plan.settled()


def swapped() -> Placement:
    return Placement(np.array([[[1], [0]]], np.int32), 2)


def test_a_swap_moves_together() -> None:
    plan = Plan(Placement.linear(1, 2, 2, 1), swapped(), Topology.single_node(2, 1))
    epoch = plan.next_epoch(1, max_moves=1)
    assert epoch is not None
    assert epoch.transfers.tolist() == [
        [0, 0, 0, 0, 0, -1, 1, 0, 0],
        [0, 0, 1, 1, 0, -1, 0, 0, 0],
    ]
    assert (epoch.moves, epoch.rounds, epoch.bytes(10)) == (2, 1, 20)
    assert plan.least_rounds == 1


def test_a_ring_through_a_rank_twice_is_cut() -> None:
    # Left as it is, 0 -> 2 -> 1 -> 3 -> 0 passes both ranks twice; paired anew, two swaps remain.
    current = Placement(np.array([[[0, 1], [2, 3]]], np.int32), 4)
    target = Placement(np.array([[[2, 3], [1, 0]]], np.int32), 4)
    plan = Plan(current, target, Topology.single_node(2, 2))
    epoch = plan.next_epoch(experts_per_rank=1)
    assert epoch is not None
    assert epoch.moves == 2
    plan.settled()
    epoch = plan.next_epoch(experts_per_rank=1)
    assert epoch is not None
    assert epoch.moves == 2
    plan.settled()
    assert plan.next_epoch() is None


def test_a_surplus_replica_opens_a_ring() -> None:
    # Rank 2 gives a replica of 0 away, so each of the three moves may settle by itself.
    current = Placement(np.array([[[0], [1], [0]]], np.int32), 2)
    target = Placement(np.array([[[1], [0], [1]]], np.int32), 2)
    plan = Plan(current, target, Topology.single_node(3, 1))
    sizes = []
    while (epoch := plan.next_epoch(1, max_moves=1)) is not None:
        sizes.append(epoch.moves)
        plan.settled()
    assert sizes == [1, 1, 1]


def test_hottest_layer_first() -> None:
    current = Placement.linear(3, 4, 4, 1)
    target = Placement(current.slots[:, ::-1], 4)
    plan = Plan(current, target, Topology.single_node(4, 1), np.array([1.0, 9.0, 5.0]))
    order = []
    while (epoch := plan.next_epoch(1)) is not None:
        order.append(epoch.layers.tolist())
        plan.settled()
    assert order == [[1], [2], [0]]


def test_an_epoch_fills_up_from_cooler_layers() -> None:
    current = Placement.linear(2, 4, 4, 1)
    target = Placement(np.array([[[1], [0], [2], [3]], [[0], [1], [3], [2]]], np.int32), 4)
    plan = Plan(current, target, Topology.single_node(4, 1), np.array([1, 2]))
    epoch = plan.next_epoch(1)
    assert epoch is not None
    assert epoch.layers.tolist() == [0, 1]
    assert (epoch.moves, epoch.rounds) == (4, 1)


def test_an_epoch_does_not_wear_one_sender_out() -> None:
    # Rank 0 alone holds what ranks 1, 2 and 3 want; together that would be three rounds.
    current = Placement(np.array([[[0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5]]], np.int32), 6)
    target = Placement(np.array([[[0, 1, 2], [0, 4, 5], [3, 1, 5], [3, 4, 2]]], np.int32), 6)
    plan = Plan(current, target, Topology.single_node(4, 3))
    rounds = []
    while (epoch := plan.next_epoch(1)) is not None:
        rounds.append(epoch.rounds)
        plan.settled()
    assert rounds == [1, 1, 1]


def test_for_rank_gives_each_rank_its_own_rows_in_order() -> None:
    plan = Plan(Placement.linear(1, 2, 2, 1), swapped(), Topology.single_node(2, 1))
    epoch = plan.next_epoch()
    assert epoch is not None
    assert epoch.for_rank(0).tolist() == epoch.transfers.tolist()
    assert epoch.for_rank(7).shape == (0, len(Col))
    for array in (epoch.transfers, epoch.layers, epoch.for_rank(1)):
        assert not array.flags.writeable
        assert array.dtype == np.int32


@pytest.mark.parametrize("arguments", [(0, None), (-1, None), (2, 0), (2, None, 0)])
def test_refuses_epochs_without_room(arguments: tuple[int, int | None, int | None]) -> None:
    plan = Plan(Placement.linear(1, 2, 2, 1), swapped(), Topology.single_node(2, 1))
    with pytest.raises(LocalProtocolError, match="makes no progress"):
        plan.next_epoch(*arguments)


def test_refuses_placements_that_cannot_be_served() -> None:
    topology = Topology.single_node(2, 1)
    lost = Placement(np.array([[[1], [1]]], np.int32), 2)
    for pair in [(lost, swapped()), (swapped(), lost)]:
        with pytest.raises(PlacementError, match="expert 0 in no slot"):
            Plan(*pair, topology)
    with pytest.raises(PlacementError, match="shape"):
        Plan(swapped(), swapped(), Topology.single_node(1, 2))
    with pytest.raises(PlacementError, match="target has"):
        Plan(swapped(), Placement(swapped().slots, 1), topology)


def test_refuses_heat_of_other_layers() -> None:
    with pytest.raises(LocalProtocolError, match=r"shape \(2,\), expected \(1,\)"):
        Plan(swapped(), swapped(), Topology.single_node(2, 1), np.zeros(2))


# --- shares -------------------------------------------------------------------------------------


def layers_of(placement: Placement) -> list[bytes]:
    """Slots and parts of each layer."""
    parts = placement.parts()
    return [
        slots.tobytes() + own.tobytes() for slots, own in zip(placement.slots, parts, strict=True)
    ]


@given(pairs(), st.integers(1, 3), st.data())
def test_shares_come_with_the_last_epoch_of_their_layer(
    case: Case, experts_per_rank: int, data: st.DataObject
) -> None:
    group, bare, bare_target = case
    current, target = data.draw(splits(bare)), data.draw(splits(bare_target))
    plan = Plan(current, target, group.topology)
    assert plan.is_empty == is_reached(current, target)
    here = current
    while (epoch := plan.next_epoch(experts_per_rank)) is not None:
        there = epoch.target
        pairs_of_layers = enumerate(zip(layers_of(here), layers_of(there), strict=True))
        assert epoch.layers.tolist() == [layer for layer, (a, b) in pairs_of_layers if a != b]
        for layer in epoch.layers.tolist():
            expected = parts_on_the_way(current, target, there, layer)
            assert np.array_equal(there.parts()[layer], expected)
        if not epoch.moves:
            assert epoch.rounds == 0
            assert here == current, "new shares alone come first"
        plan.settled()
        here = there
    assert is_reached(here, target)
    assert plan.is_empty


def is_reached(here: Placement, target: Placement) -> bool:
    """Whether all is as wanted, up to the order of slots within a rank."""
    return layers_of(align(here, target)) == layers_of(here)


def parts_on_the_way(
    current: Placement, target: Placement, now: Placement, layer: int
) -> NDArray[np.int32]:
    """Said again, expert by expert."""
    goal = align(now, target)
    if np.array_equal(now.slots[layer], goal.slots[layer]):
        done: NDArray[np.int32] = goal.parts()[layer]
        return done
    parts: NDArray[np.int32] = even_parts(now.slots[[layer]], now.experts)[0].copy()
    for expert in range(now.experts):
        before, here = current.slots[layer] == expert, now.slots[layer] == expert
        if np.array_equal(before, here):
            parts[here] = current.parts()[layer][here]
    return parts


def test_new_shares_alone_are_an_epoch_without_transfers() -> None:
    current = Placement.linear(3, 4, 2, 3)
    parts = current.parts().copy()
    parts[1, 0, 0], parts[1, 1, 1] = 60_000, WHOLE - 60_000
    target = Placement.split(current.slots, 4, parts)
    plan = Plan(current, target, Topology.single_node(2, 3))
    assert (plan.moves, plan.remaining, plan.is_empty) == (0, 0, False)
    epoch = plan.next_epoch()
    assert epoch is not None
    assert (epoch.moves, epoch.rounds, epoch.bytes(100)) == (0, 0, 0)
    assert epoch.layers.tolist() == [1]
    assert epoch.for_rank(0).shape == (0, len(Col))
    assert epoch.target == target
    plan.settled()
    assert plan.next_epoch() is None
    back = Plan(target, current, Topology.single_node(2, 3)).next_epoch()
    assert back is not None
    assert back.target == current
    assert back.target.shares is None

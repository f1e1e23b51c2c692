"""Greedy: every shape, the published figures, the faults of its model, and when it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, PolicyError, Topology, par, rank_load
from eplbd.core.placement import validate
from eplbd_policies.greedy import Greedy, pack, place, replicate

FREE = Budget(None, None, 5.0, 1000)


def window(counts: NDArray[np.integer]) -> Heat:
    """`[layers, experts]` counts as a window of one step."""
    steps = counts.astype(np.int32)[None]
    steps.setflags(write=False)
    return Heat(steps, "all")


def skewed(layers: int, experts: int, seed: int = 0, sigma: float = 1.0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return rng.poisson(1000 * rng.lognormal(0, sigma, (layers, experts)))


def peak(placement: Placement, counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """PAR of each layer."""
    return par(rank_load(placement, counts))


def greedy(**options: object) -> Greedy:
    return Greedy(Greedy.Options(**options))  # type: ignore[arg-type]


@given(
    ranks=st.integers(1, 9),
    per_rank=st.integers(1, 8),
    spare=st.floats(0, 1),
    nodes=st.integers(1, 4),
    sigma=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape_is_served_and_none_gets_worse(
    ranks: int, per_rank: int, spare: float, nodes: int, sigma: float, seed: int
) -> None:
    experts = per_rank + round((ranks - 1) * per_rank * spare)
    node_of = tuple(np.random.default_rng(seed).integers(0, nodes, ranks).tolist())
    topology = Topology(ranks, per_rank, node_of)
    counts = skewed(3, experts, seed, sigma)
    current = Placement.linear(3, experts, ranks, per_rank)
    for hierarchical in (True, False):
        policy = greedy(hierarchical=hierarchical, min_gain=0.0)
        answer = policy.propose(window(counts), topology, current, FREE)
        validate(answer.slots, experts=experts, topology=topology, layers=3)
        assert (peak(answer, counts) <= peak(current, counts) + 1e-9).all()


def test_the_toy_of_flashlb_has_the_published_peak() -> None:
    counts = np.array([[600, 560, 120, 120, 20, 10, 10, 10]])
    current = Placement.linear(1, 8, 8, 2)
    answer = greedy().propose(window(counts), Topology.single_node(8, 2), current, FREE)
    assert rank_load(answer, counts).max() == 232


@pytest.mark.parametrize("hierarchical", [True, False])
def test_a_large_model_comes_near_the_mean(*, hierarchical: bool) -> None:
    counts = skewed(58, 256)
    current = Placement.linear(58, 256, 32, 9)
    topology = Topology(32, 9, tuple(rank // 8 for rank in range(32)))
    answer = greedy(hierarchical=hierarchical).propose(window(counts), topology, current, FREE)
    assert peak(current, counts).mean() > 2.0
    assert peak(answer, counts).mean() < 1.01


def test_no_heat_is_replicated_evenly() -> None:
    count = replicate(np.ones((2, 8)), 20, 4)
    assert count.sum(1).tolist() == [20, 20]
    assert count.max() - count.min() == 1


def test_what_is_cold_is_replicated_evenly_too() -> None:
    counts = np.zeros((1, 8), np.int64)
    counts[0, 3] = 1000
    current = Placement.linear(1, 8, 4, 4)
    answer = greedy().propose(window(counts), Topology.single_node(4, 4), current, FREE)
    assert answer.replicas()[0, 3] == 4
    assert sorted(answer.replicas()[0].tolist()) == [1, 1, 2, 2, 2, 2, 2, 4]


def test_an_expert_has_no_more_replicas_than_there_are_ranks() -> None:
    count = replicate(np.array([[1e6, 1.0, 1.0, 1.0]]), 12, 4)
    assert count[0, 0] == 4
    assert count.sum() == 12


def test_the_hottest_replica_is_the_least_possible() -> None:
    """Against every way to deal three spare slots to four experts."""
    load = np.array([[50.0, 30.0, 20.0, 9.0]])
    share = (load / replicate(load, 7, 4)).max()
    ways = [
        (load[0] / (1 + np.array([a, b, c, 3 - a - b - c]))).max()
        for a in range(4)
        for b in range(4 - a)
        for c in range(4 - a - b)
    ]
    assert share == min(ways)


def test_packing_fills_every_bin_exactly_and_heeds_its_speed() -> None:
    load = skewed(4, 12).astype(np.float64)
    bins = pack(load, np.array([8, 4]), np.array([2.0, 1.0]))
    assert [np.bincount(row).tolist() for row in bins] == [[8, 4]] * 4
    slow = np.take_along_axis(load, np.argsort(bins, axis=1, kind="stable")[:, 8:], axis=1)
    assert (np.abs(slow.sum(1) / load.sum(1) - 1 / 3) < 0.05).all()


@given(st.integers(0, 500))
def test_a_replica_without_a_free_rank_changes_places(seed: int) -> None:
    """Few roomy ranks are left towards the end, and all of them may hold the expert already."""
    rng = np.random.default_rng(seed)
    ranks, per_rank = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    experts = int(rng.integers(per_rank, ranks * per_rank + 1))
    load = np.ones((1, experts))
    count = np.ones((1, experts), np.int64)
    while count.sum() < ranks * per_rank:  # at random: a load would deal the copies too well
        count[0, rng.choice(np.flatnonzero(count[0] < ranks))] += 1
    load[0] = rng.permutation(experts) + 1
    slots = place(load, count, ranks)
    assert (np.bincount(slots.ravel(), minlength=experts) == count[0]).all()
    ordered = np.sort(slots, axis=2)
    assert (ordered[..., 1:] != ordered[..., :-1]).all()


def test_a_balanced_placement_is_left_alone() -> None:
    counts = skewed(4, 32)
    topology = Topology.single_node(8, 5)
    first = greedy().propose(window(counts), topology, Placement.linear(4, 32, 8, 5), FREE)
    assert greedy().propose(window(counts), topology, first, FREE) == first
    noisy = (counts * (1 + 0.005 * np.sin(np.arange(32)))).astype(np.int64)
    assert greedy().propose(window(noisy), topology, first, FREE) == first


def test_ranks_that_changed_names_do_not_change_places() -> None:
    counts = skewed(1, 32)
    topology = Topology.single_node(8, 5)
    first = greedy().propose(window(counts), topology, Placement.linear(1, 32, 8, 5), FREE)
    turned = np.roll(first.slots, 3, axis=1)
    worse = turned.copy()
    hot, cold = worse[0, 0], worse[0, 1]
    hot[0], cold[0] = cold[0], hot[0]
    current = Placement(worse, 32)
    assert peak(current, counts) > peak(first, counts)
    answer = greedy(min_gain=0.0).propose(window(counts), topology, current, FREE)
    assert (np.sort(answer.slots) == np.sort(turned)).all()
    assert answer.moves_from(current).sum() == 2


def test_under_a_budget_the_layers_that_pay_most_move() -> None:
    counts = skewed(6, 32)
    counts[2] *= 100
    current = Placement.linear(6, 32, 8, 5)
    topology = Topology.single_node(8, 5)
    free = greedy().propose(window(counts), topology, current, FREE)
    moves = free.moves_from(current)
    budget = Budget(int(moves[2]), None, 5.0, 1000)
    answer = greedy().propose(window(counts), topology, current, budget)
    changed = (answer.slots != current.slots).any((1, 2))
    assert np.flatnonzero(changed).tolist() == [2]
    half = Budget(None, int(moves.sum()) // 2 * 1000, 5.0, 1000)
    answer = greedy().propose(window(counts), topology, current, half)
    assert 0 < answer.moves_from(current).sum() <= moves.sum() // 2


def test_replicas_stay_on_one_node_when_hierarchical() -> None:
    counts = skewed(3, 32)
    topology = Topology(8, 5, (0, 1, 0, 1, 2, 2, 3, 3))
    current = Placement.linear(3, 32, 8, 5)
    answer = greedy(min_gain=0.0).propose(window(counts), topology, current, FREE)
    nodes = np.asarray(topology.node_of)
    on_node = np.stack([answer.hosts()[:, nodes == node].any(1) for node in range(4)])
    assert (on_node.sum(0) == 1).all()


def test_more_slots_than_experts_is_nobodys_to_mend() -> None:
    current = Placement.linear(1, 4, 2, 6)
    heat = window(np.array([[9, 1, 1, 1]]))
    assert greedy().propose(heat, Topology.single_node(2, 6), current, FREE) == current


def test_a_recorded_window_is_balanced(shared_traces: Path) -> None:
    with np.load(shared_traces / "deepseek_r1_prefill.npz") as trace:
        counts = next(trace[name] for name in trace.files if trace[name].ndim == 3)
    steps = np.ascontiguousarray(counts[:1], np.int32)
    layers, experts = steps.shape[1:]
    current = Placement.linear(layers, experts, 32, 9)
    heat = Heat(steps, "prefill")
    answer = greedy().propose(heat, Topology.single_node(32, 9), current, FREE)
    assert peak(current, heat.total).mean() > 1.8
    assert peak(answer, heat.total).mean() < 1.02


def test_groups_are_dealt_to_nodes_whole() -> None:
    counts = skewed(3, 32)
    topology = Topology(8, 5, (0, 1, 0, 1, 2, 2, 3, 3))
    current = Placement.linear(3, 32, 8, 5)
    policy = greedy(min_gain=0.0, groups=8)
    answer = policy.propose(window(counts), topology, current, FREE)
    assert answer != current
    nodes = np.asarray(topology.node_of)
    on_node = np.stack([answer.hosts()[:, nodes == node].any(1) for node in range(4)], axis=1)
    groups = on_node.reshape(3, 4, 8, 4)
    assert (groups.all(3) | ~groups.any(3)).all()
    assert (groups.any(3).sum(2) == 2).all()


@pytest.mark.parametrize(
    "node_of",
    [(0, 0, 1, 1, 2, 2), (0, 0, 1, 1, 2, 3)],
    ids=["3 nodes, 8 groups", "6 devices in 4 nodes"],
)
def test_groups_that_do_not_come_out_even_fall_back_to_experts(node_of: tuple[int, ...]) -> None:
    counts = skewed(4, 32)
    topology = Topology(6, 6, node_of)
    current = Placement.linear(4, 32, 6, 6)
    answer = greedy(groups=8).propose(window(counts), topology, current, FREE)
    assert answer == greedy().propose(window(counts), topology, current, FREE)
    assert (peak(answer, counts) < peak(current, counts)).all()


def test_groups_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hierarchical = true, or groups = 1"):
        greedy(groups=8, hierarchical=False)
    current = Placement.linear(1, 30, 8, 5)
    topology = Topology(8, 5, (0, 0, 0, 0, 1, 1, 1, 1))
    with pytest.raises(PolicyError, match="30 experts are not 8 equal groups"):
        greedy(groups=8).propose(window(skewed(1, 30)), topology, current, FREE)

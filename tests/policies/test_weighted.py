"""`incremental` where the engine takes shares: fitted, proven on held-out steps, and few moves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Topology, rank_load
from eplbd_policies.chain import chain
from eplbd_policies.incremental import Incremental
from eplbd_policies.weigh import SHARPNESS, carried, fit, split_evenly
from tests.policies.asked import counts, start
from tests.policies.optimum import optimum
from tests.policies.test_incremental import fresh_layer, is_placement, searched, shapes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOY = (600, 560, 120, 120, 20, 10, 10, 10)
STEPS = 64


def ask(steps: NDArray[np.int32], current: Placement, *, weighted: bool = True) -> Placement:
    """What the policy proposes where moves cost nothing."""
    policy = Incremental(Incremental.Options(move_cost=0.0))
    topology = Topology.single_node(current.ranks, current.slots_per_rank)
    steps.setflags(write=False)
    budget = Budget(None, None, 10.0, 1, weighted=weighted)
    return policy.propose(Heat(steps, "all"), topology, current, budget)


def constant(loads: tuple[int, ...]) -> NDArray[np.int32]:
    return np.repeat(np.array(loads, np.int32)[None, None], STEPS, axis=0)


def even(slots: Ints, experts: int) -> Floats:
    share = np.empty(slots.shape)
    split_evenly(slots, experts, share)
    return share


def totals(slots: Ints, share: Floats, experts: int) -> Floats:
    return np.bincount(slots.ravel(), share.ravel(), experts).astype(np.float64)


def test_the_toy_is_balanced_to_the_mean() -> None:
    """No even split leaves less than 196.67 on a rank."""
    steps, current = constant(TOY), start(1, len(TOY), 8, 2)
    mean = sum(TOY) / 8
    assert mean == 181.25
    answer = ask(steps, current)
    assert rank_load(answer, steps[0]).max() == pytest.approx(mean, rel=1e-3)
    assert rank_load(ask(steps, current, weighted=False), steps[0]).max() >= optimum(TOY, 8, 2)


def test_small_problems_reach_the_mean() -> None:
    rng = np.random.default_rng(3)
    for experts, ranks, slots in ((8, 4, 3), (10, 5, 3), (12, 4, 4), (12, 6, 3)):
        loads = tuple(int(load) for load in 1 + 1000 * rng.lognormal(0, 1.0, experts))
        hottest = rank_load(
            ask(constant(loads), start(1, experts, ranks, slots)), np.array([loads])
        )
        assert hottest.max() <= 1.01 * max(sum(loads) / ranks, max(loads) / ranks)


def test_a_shift_of_heat_costs_shares_and_no_moves() -> None:
    steps, current = constant(TOY), start(1, len(TOY), 8, 2)
    settled = ask(steps, current)
    later = constant((560, 600, 120, 120, 20, 10, 10, 10))
    budget = Budget(None, None, 10.0, 1, weighted=True)
    topology = Topology.single_node(8, 2)
    later.setflags(write=False)
    policy = Incremental(Incremental.Options())
    answer = policy.propose(Heat(later, "all"), topology, settled, budget)
    assert answer.moves_from(settled).sum() == 0
    assert rank_load(answer, later[0]).max() < rank_load(settled, later[0]).max() - 5
    again = policy.propose(Heat(later, "all"), topology, answer, budget)
    assert again == answer


def test_what_does_not_last_is_split_evenly() -> None:
    """Which of two experts is hot is drawn anew in each sample: no share fits the next one."""
    rng = np.random.default_rng(0)
    steps = np.repeat(rng.integers(1, 1000, (16, 4, 32)), 4, axis=0).astype(np.int32)
    answer = ask(steps, start(4, 32, 8, 5))
    assert answer.shares is None or np.allclose(
        answer.shares, Placement(answer.slots, 32).parts() / 65536, atol=1e-4
    )


def test_an_engine_that_takes_none_gets_none() -> None:
    steps = counts(3, 16, STEPS)
    assert ask(steps, start(3, 16, 4, 5), weighted=False).shares is None


@searched
@given(shapes(), st.sampled_from([0.0, 0.3]))
def test_a_fit_is_a_split_and_never_worse(shape: tuple[int, int, int, int], risk: float) -> None:
    ranks, per_rank, experts, seed = shape
    rng = np.random.default_rng(seed)
    heat = rng.lognormal(0, 1, (4, experts))
    heat *= ranks / heat.sum(1, keepdims=True)
    slots = fresh_layer(ranks, per_rank, rng.lognormal(0, 1, experts))
    weight, share = np.full(4, 0.25), even(slots, experts)
    head = rng.choice([0.0, 0.0, 0.5], ranks)
    before = carried(heat, weight, risk, head, slots, share)
    after = fit(heat, weight, risk, head, slots, share)
    assert after <= before
    assert after == pytest.approx(carried(heat, weight, risk, head, slots, share), rel=1e-9)
    assert (share >= 0).all()
    assert np.allclose(totals(slots, share, experts), 1.0)
    load = (heat[:, slots] * share + risk * (heat[:, slots] * share) ** 2).sum(2)
    assert after == pytest.approx((load + head).max(1) @ weight, rel=1e-9)


def test_a_fit_finds_the_least_maximum() -> None:
    """Two ranks share the hot expert; what each has beside it differs."""
    slots = np.array([[0, 1], [0, 2]])
    heat = np.array([[1.0, 0.2, 0.8]])
    share = even(slots, 3)
    assert fit(heat, np.ones(1), 0.0, np.zeros(2), slots, share) == pytest.approx(1.0, abs=1e-3)
    assert share[:, 0] == pytest.approx([0.8, 0.2], abs=1e-3)
    assert SHARPNESS[-1] > 1


@searched
@given(shapes(), st.integers(1, 6))
def test_a_chain_is_a_placement_or_says_that_it_is_none(
    shape: tuple[int, int, int, int], heavy: int
) -> None:
    ranks, per_rank, experts, seed = shape
    heat = np.random.default_rng(seed).lognormal(0, 1, experts)
    slots = np.zeros((ranks, per_rank), np.int64)
    if chain(heat * ranks / heat.sum(), min(heavy, experts), slots):
        assert is_placement(slots, experts)


def test_a_chain_reaches_the_mean_where_slots_allow_it() -> None:
    heat = np.array(TOY) * 8 / sum(TOY)
    slots = np.zeros((8, 2), np.int64)
    assert chain(heat, 2, slots)
    share = even(slots, len(TOY))
    assert fit(heat[None], np.ones(1), 0.0, np.zeros(8), slots, share) == pytest.approx(
        1.0, abs=1e-3
    )

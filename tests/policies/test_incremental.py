"""The parts of `incremental`: forecasters, the board under search, fresh layers, shaken ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Topology
from eplbd_policies.board import (
    Board,
    copy,
    copy_gain,
    lay,
    measure,
    swap,
    swap_gain,
)
from eplbd_policies.forecast import (
    FORECASTERS,
    MEAN,
    NEWEST,
    SAMPLES,
    TREND,
    forecast,
    level,
    sample,
)
from eplbd_policies.fresh import construct, rename
from eplbd_policies.incremental import Incremental
from eplbd_policies.search import Terms, effort, moved, peak, repair
from eplbd_policies.shake import LARGEST, shake
from tests.policies.asked import counts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

searched = settings(deadline=None, max_examples=30)  # no deadline: the first call compiles


def levels(heat: Floats) -> list[Floats]:
    """What each forecaster expects after `heat` `[K, E]`."""
    found = [np.empty(heat.shape[1]) for _ in range(FORECASTERS)]
    for forecaster, out in enumerate(found):
        level(heat, forecaster, out)
    return found


def chosen(heat: Floats) -> int:
    """The forecaster whose level `forecast` returns."""
    out = np.empty(heat.shape[1])
    forecast(heat, out)
    matching = [i for i, expected in enumerate(levels(heat)) if np.array_equal(out, expected)]
    assert len(matching) == 1
    return matching[0]


def test_a_trend_is_carried_on() -> None:
    start, end = np.random.default_rng(0).uniform(50, 150, (2, 32))
    way = np.linspace(0, 1, 16)[:, None]
    assert chosen(start + (end - start) * way) == TREND


def test_after_a_step_change_in_its_past_the_newest_counts() -> None:
    """The back-test sees the change in its first half; what came after it foretells the second."""
    before, after = np.random.default_rng(0).uniform(50, 150, (2, 32))
    heat = np.repeat([before, after], [6, 10], axis=0)
    assert chosen(heat) == NEWEST
    out = np.empty(32)
    forecast(heat, out)
    assert (np.abs(out - after) <= np.abs(heat.mean(0) - after)).all()


def test_noise_is_averaged_out() -> None:
    heat = np.random.default_rng(0).normal(100, 10, (16, 32))
    assert chosen(heat) == MEAN


def test_a_window_too_short_for_a_back_test_is_averaged() -> None:
    heat = np.random.default_rng(0).uniform(50, 150, (3, 32))
    out = np.empty(32)
    forecast(heat, out)
    assert np.array_equal(out, levels(heat)[MEAN])


def test_a_forecast_is_never_below_nothing() -> None:
    falling = np.linspace(100, 0, 16)[:, None] * np.ones((1, 4))
    assert all((expected >= 0).all() for expected in levels(falling))


@pytest.mark.parametrize("count", [1, 5, SAMPLES, 3 * SAMPLES + 1])
def test_samples_are_means_of_neighbouring_steps(count: int) -> None:
    steps = counts(2, 8, count)
    kept = min(SAMPLES, count)
    heat, noise = np.empty((2, kept, 8)), np.empty((2, 8))
    sample(steps, 0.0, heat, noise)
    edges = np.arange(kept + 1) * count // kept
    for k in range(kept):
        assert np.allclose(heat[:, k], steps[edges[k] : edges[k + 1]].mean(0))


def test_drift_is_no_noise() -> None:
    """The variance around the neighbours, where the window's own is ten times as large."""
    rng = np.random.default_rng(0)
    steps = rng.poisson(np.linspace(500, 1500, 4000)[:, None, None], (4000, 1, 4)).astype(np.int32)
    heat, noise = np.empty((1, SAMPLES, 4)), np.empty((1, 4))
    sample(steps, 0.0, heat, noise)
    assert noise == pytest.approx(steps.mean(0), rel=0.1)  # as Poisson counts vary
    assert (steps.var(0) > 10 * noise).all()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Ranks, slots per rank, experts: any that leave a placement; and a seed."""
    ranks = draw(st.integers(2, 9))
    per_rank = draw(st.integers(1, 6))
    experts = draw(st.integers(per_rank, ranks * per_rank))
    return ranks, per_rank, experts, draw(st.integers(0, 1 << 20))


def is_placement(slots: Ints, experts: int) -> bool:
    """Whether every expert is somewhere, and none twice on a rank."""
    twice = (np.diff(np.sort(slots, axis=1), axis=1) == 0).any()
    return set(slots.ravel()) == set(range(experts)) and not twice


def fresh_layer(ranks: int, per_rank: int, heat: Floats) -> Ints:
    slots = np.empty((ranks, per_rank), np.int64)
    construct(heat, np.zeros(ranks), slots)
    return slots


def layer(shape: tuple[int, int, int, int], risk: float = 0.1) -> Board:
    """A layer in a placement that was made for other heat."""
    ranks, per_rank, experts, seed = shape
    rng = np.random.default_rng(seed)
    heat = rng.lognormal(0, 1, (4, experts))
    heat *= ranks / heat.sum(1, keepdims=True)
    slots = fresh_layer(ranks, per_rank, rng.lognormal(0, 1, experts))
    price = np.ones((ranks, experts))
    np.put_along_axis(price, slots, 0.0, axis=1)
    head = rng.choice([0.0, 0.0, 0.5], ranks)
    return lay(heat, np.full(4, 0.25), risk, slots, price, head)


def allowed(board: Board, most: int) -> Ints:
    """Work for so many steps."""
    return np.array([most * effort(board.slots, board.weight.size)])


def again(board: Board) -> Board:
    """The same layer, everything counted anew."""
    return lay(board.heat, board.weight, board.risk, board.slots, board.price, board.head)


def same(board: Board) -> bool:
    """Whether what was kept up to date equals what is counted anew."""
    new = again(board)
    held = all(
        set(board.holders[expert, :count]) == set(new.holders[expert, :count])
        for expert, count in enumerate(new.copies)
    )
    exact = np.array_equal(board.copies, new.copies) and np.array_equal(board.hosts, new.hosts)
    close = np.allclose(board.load, new.load) and np.allclose(board.share, new.share)
    return held and exact and close


def norm(board: Board) -> float:
    """Weighted 32-norm of the ranks' loads, counted anew and without the board's arithmetic."""
    share = board.heat / board.copies
    load = (share + board.risk * share**2)[:, board.slots].sum(2) + board.head
    return float((((load**32).sum(1)) ** (1 / 32)) @ board.weight)


def any_step(board: Board, rng: np.random.Generator) -> float:
    """Take one random step that leaves a placement; the gain that it was said to have."""
    (ranks, per_rank), experts = board.slots.shape, board.copies.size
    measure(board, np.empty(ranks))
    total = np.empty(board.weight.size)
    for _ in range(50):
        rank, other = (int(r) for r in rng.choice(ranks, 2, replace=False))
        own, slot = (int(s) for s in rng.integers(0, per_rank, 2))
        here, there = int(board.slots[rank, own]), int(board.slots[other, slot])
        expert = int(rng.integers(experts))
        if rng.integers(2) and board.copies[here] > 1 and not board.hosts[rank, expert]:
            gain = copy_gain(board, rank, expert, here, total)
            copy(board, rank, expert, own)
            return gain
        if not board.hosts[other, here] and not board.hosts[rank, there]:
            gain = swap_gain(board, rank, other, here, there, total)
            swap(board, rank, other, own, slot)
            return gain
    return 0.0


@searched
@given(shapes())
def test_steps_leave_a_placement_and_loads_that_add_up(shape: tuple[int, int, int, int]) -> None:
    board, rng = layer(shape), np.random.default_rng(shape[3])
    for _ in range(40):
        any_step(board, rng)
        assert is_placement(board.slots, shape[2])
    assert same(board)


@searched
@given(shapes())
def test_a_gain_is_what_the_norm_falls_by(shape: tuple[int, int, int, int]) -> None:
    board, rng = layer(shape), np.random.default_rng(shape[3])
    for _ in range(10):
        before = norm(board)
        gain = any_step(board, rng)
        assert before - norm(board) == pytest.approx(gain, rel=1e-6, abs=1e-9)


@searched
@given(shapes())
def test_repair_at_no_cost_never_raises_the_norm(shape: tuple[int, int, int, int]) -> None:
    board = layer(shape, risk=0.0)
    before = norm(board)
    repair(board, Terms(0.0, 1e-6), board.slots.size, allowed(board, 100))
    assert norm(board) <= before + 1e-9
    assert is_placement(board.slots, shape[2])
    assert same(board)


@searched
@given(shapes(), st.integers(0, 12), st.sampled_from([0.0, 0.001, 0.05]))
def test_repair_keeps_to_its_room(shape: tuple[int, int, int, int], room: int, cost: float) -> None:
    board = layer(shape)
    assert repair(board, Terms(cost, 1e-4), room, allowed(board, 100)) == moved(board) <= room


@searched
@given(shapes(), st.integers(0, 5))
def test_repair_takes_no_more_steps_than_allowed(
    shape: tuple[int, int, int, int], most: int
) -> None:
    """A step changes two ranks at most, and two slots."""
    board = layer(shape)
    before, left = board.slots.copy(), allowed(board, most)
    repair(board, Terms(0.0, 1e-9), board.slots.size, left)
    assert (before != board.slots).sum() <= 2 * most
    assert 0 <= left[0] <= most * effort(board.slots, board.weight.size)


@searched
@given(shapes(), st.sampled_from([0.0, 1.0, 4.0]))
def test_a_fresh_layer_is_a_placement(shape: tuple[int, int, int, int], sigma: float) -> None:
    ranks, per_rank, experts, seed = shape
    heat = np.random.default_rng(seed).lognormal(0, sigma, experts)
    assert is_placement(fresh_layer(ranks, per_rank, heat), experts)


@searched
@given(shapes())
def test_renaming_keeps_the_sets_and_costs_no_more(shape: tuple[int, int, int, int]) -> None:
    ranks, per_rank, experts, seed = shape
    rng = np.random.default_rng(seed)
    slots = fresh_layer(ranks, per_rank, rng.lognormal(0, 1, experts))
    mixed = slots[rng.permutation(ranks)]
    price = np.ones((ranks, experts))
    np.put_along_axis(price, slots, 0.0, axis=1)
    rename(mixed, price, np.zeros(ranks))
    assert sorted(map(sorted, mixed.tolist())) == sorted(map(sorted, slots.tolist()))
    assert np.take_along_axis(price, mixed, axis=1).sum() == 0  # every set finds its rank again


@searched
@given(shapes(), st.integers(0, 40), st.sampled_from([0.0, 0.001]))
def test_shaking_never_worsens(shape: tuple[int, int, int, int], room: int, cost: float) -> None:
    board = layer(shape)
    before = peak(board, board.risk)
    slots = board.slots.copy()
    terms = Terms(cost, 1e-4)
    shake(board, terms, room, slots)
    after = lay(board.heat, board.weight, board.risk, slots, board.price, board.head)
    assert is_placement(slots, shape[2])
    assert moved(after) <= room
    assert peak(after, board.risk) + cost * moved(after) <= before + 1e-9


def test_large_layers_are_not_shaken() -> None:
    board = layer((LARGEST // 4 + 1, 4, LARGEST, 0))
    slots = board.slots.copy()
    shake(board, Terms(0.0, 1e-4), 99, slots)
    assert np.array_equal(slots, board.slots)


@pytest.mark.parametrize("neighbour", [1, 2, 3])
def test_of_two_moves_that_gain_alike_the_near_one_is_taken(neighbour: int) -> None:
    """Ranks 1 to 3 hold the same; a copy of what is hot on rank 0 would do as well on any."""
    current = Placement(np.array([[[0, 1], [2, 3], [2, 3], [2, 3]]], np.int32), 4)
    node_of = tuple(int(rank not in {0, neighbour}) for rank in range(4))
    steps = np.repeat(np.array([[[100, 60, 60, 60]]], np.int32), 16, axis=0)
    steps.setflags(write=False)
    answer = Incremental(Incremental.Options()).propose(
        Heat(steps, "all"), Topology(4, 2, node_of), current, Budget(1, None, 10.0, 1)
    )
    assert np.flatnonzero(answer.hosts()[0, :, 0]).tolist() == [0, neighbour]

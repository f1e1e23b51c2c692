"""The portfolio: each layer goes to who proves better on held-out steps, and nobody pays for it."""

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Topology, rank_load
from eplbd_policies.auto import BATCHES, HELD_OUT, SHORTEST, Auto, noise
from tests.policies.asked import FREE, ask, counts, fresh, moved, start

STEPS, EXPERTS, RANKS, SLOTS, TOKENS = 256, 32, 8, 5, 20_000
LAYERS = 8
MOVE_COST = 0.005 * RANKS
"""Of one on every rank: five thousandths each."""
FEW_MOVES, STEP_BY_STEP = EITHER = ("swift", "flashlb")

Counts = NDArray[np.int32]
Floats = NDArray[np.float64]


def drawn(popularity: Floats, rng: np.random.Generator) -> Counts:
    """Counts around `popularity` `[T, E]`."""
    tokens = TOKENS * popularity / popularity.sum(1, keepdims=True)
    return np.asarray(rng.poisson(tokens), np.int32)


def alternating(seed: int) -> Counts:
    """Two groups of experts are hot by turns; in the sum they look alike."""
    rng = np.random.default_rng(seed)
    factor = np.ones((2 * STEPS, EXPERTS))
    first = np.arange(2 * STEPS) // 32 % 2 == 0
    factor[first, :8] = 6
    factor[~first, 8:16] = 6
    return drawn(rng.lognormal(0, 0.3, EXPERTS) * factor, rng)


def steady(seed: int) -> Counts:
    """Skewed, and the same in every step: what takes few moves is best."""
    rng = np.random.default_rng(seed)
    return drawn(np.repeat(rng.lognormal(0, 0.8, (1, EXPERTS)), 2 * STEPS, axis=0), rng)


def windows() -> tuple[Counts, Counts]:
    """A window and the next one; layers of both kinds in turn."""
    kinds = (alternating, steady)
    steps = np.stack([kinds[layer % 2](layer) for layer in range(LAYERS)], 1)
    return steps[:STEPS], steps[STEPS:]


def auto(candidates: tuple[str, ...] = EITHER, *, move_cost: float = MOVE_COST) -> Auto:
    return Auto(Auto.Options(candidates=candidates, move_cost=move_cost))


def paid(placement: Placement, steps: Counts) -> Floats:
    """`[L]` PAR as synchronous steps pay it."""
    load = rank_load(placement, steps)
    return np.asarray(load.max(-1).sum(0) / load.mean(-1).sum(0))


def bill(current: Placement, answer: Placement, following: Counts) -> Floats:
    """`[L]` what the next window pays, and the moves on the way."""
    moves = answer.moves_from(current)
    return np.asarray(paid(answer, following) + MOVE_COST / RANKS * moves)


def test_each_layer_goes_to_the_better_one() -> None:
    window, following = windows()
    current = start(LAYERS, EXPERTS, RANKS, SLOTS)
    few, best = (bill(current, ask(fresh(name), window, current), following) for name in EITHER)
    assert (best < few - 0.05)[0::2].all(), "the heat is no test"
    assert few[1::2].mean() < best[1::2].mean(), "the heat is no test"
    both = bill(current, ask(auto(), window, current), following)
    assert (both < np.minimum(few, best) + 0.01).all()
    assert both.mean() < min(few.mean(), best.mean()) - 0.01


@pytest.mark.parametrize("candidates", [("incremental", "flashlb"), ("flashlb", "incremental")])
def test_it_costs_little_more_than_the_better_one(candidates: tuple[str, ...]) -> None:
    window, following = windows()
    current = start(LAYERS, EXPERTS, RANKS, SLOTS)
    alone = [bill(current, ask(fresh(name), window, current), following) for name in candidates]
    both = bill(current, ask(auto(candidates), window, current), following)
    assert both.mean() < min(costs.mean() for costs in alone) + 0.02


def test_where_nobody_wins_it_is_the_first_one() -> None:
    steps, current = counts(LAYERS, EXPERTS, STEPS), start(LAYERS, EXPERTS, RANKS, SLOTS)
    assert ask(auto(("flashlb", "greedy")), steps, current) == ask(fresh("flashlb"), steps, current)


def test_what_saves_less_than_its_moves_cost_does_not_win() -> None:
    window, _ = windows()
    current = start(LAYERS, EXPERTS, RANKS, SLOTS)
    few = ask(fresh(FEW_MOVES), window, current)
    assert ask(auto(move_cost=1.0), window, current) == few
    assert moved(current, ask(auto(move_cost=0.0), window, current)) > moved(current, few)


def test_a_short_window_is_left_to_the_first_one() -> None:
    window, current = windows()[0], start(LAYERS, EXPERTS, RANKS, SLOTS)
    for steps, alike in ((window[-SHORTEST + 1 :], True), (window, False)):
        first = ask(fresh(FEW_MOVES), steps, current)
        assert (ask(auto(), steps, current) == first) is alike


def test_the_newest_steps_judge_and_are_not_asked_about() -> None:
    """What the newest quarter repeats is taken; what it contradicts is not."""
    window, current = windows()[0][:, :1], start(1, EXPERTS, RANKS, SLOTS)
    calm = np.random.default_rng(0).permuted(window, axis=0)  # the same sum, nobody hot together
    contradicted = np.concatenate([window[: -STEPS // HELD_OUT], calm[-STEPS // HELD_OUT :]])
    assert ask(auto(), window, current) == ask(fresh(STEP_BY_STEP), window, current)
    assert ask(auto(), contradicted, current) == ask(fresh(FEW_MOVES), contradicted, current)


@pytest.mark.parametrize("moves", [0, 1, 40, 80, 120])
def test_the_winners_share_one_budget(moves: int) -> None:
    window, current = windows()[0], start(LAYERS, EXPERTS, RANKS, SLOTS)
    heat = Heat(window.copy(), "all")
    heat.steps.setflags(write=False)
    topology = Topology.single_node(RANKS, SLOTS)
    wanted = moved(current, auto().propose(heat, topology, current, FREE)) * LAYERS
    assert wanted > moves
    for budget in (Budget(moves, None, 10.0, 1000), Budget(None, 1000 * moves + 999, 10.0, 1000)):
        answer = auto().propose(heat, topology, current, budget)
        assert budget.allows(current, answer)
        if moves >= 40:  # a layer takes some 25
            assert (paid(answer, window) < paid(current, window) - 0.05).any()


def test_shares_of_layers_that_stay_are_kept() -> None:
    """A layer whose ranks are as good as they can be keeps what was set by hand."""
    window, current = windows()[0], start(LAYERS, EXPERTS, RANKS, SLOTS)
    window = window.copy()
    window[:, 2] = 0
    shares = np.array([[[1.0] * SLOTS] * RANKS] * LAYERS, np.float32)
    for layer, expert in np.argwhere(current.replicas() > 1):
        own = np.flatnonzero(current.slots[layer] == expert)
        shares[layer].flat[own] = np.eye(len(own), dtype=np.float32)[0]
    uneven = Placement(current.slots, EXPERTS, shares)
    answer = ask(auto(), window, uneven)
    assert answer.shares is not None
    assert np.array_equal(answer.parts()[2], uneven.parts()[2])
    assert (answer.parts()[0].sum() == uneven.parts()[0].sum()).all()


def test_noise_of_independent_steps_is_the_standard_error() -> None:
    saved = np.random.default_rng(0).normal(0, 1, (64 * BATCHES, 400))
    assert noise(saved).mean() == pytest.approx(1 / np.sqrt(len(saved)), rel=0.1)


def test_steps_that_resemble_their_neighbours_are_noisier() -> None:
    saved = np.random.default_rng(0).normal(0, 1, (8 * BATCHES, 400))
    slow = np.repeat(saved[::8], 8, axis=0)
    assert noise(slow).mean() > 2 * noise(saved).mean()


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        (["incremental", "magic"], "there is no 'magic'; there are incremental, flashlb"),
        ([], "candidates is empty"),
        (["swift", "swift"], "named twice"),
    ],
)
def test_candidates_are_checked(candidates: list[str], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert({"candidates": candidates}, Auto.Options)

"""What a proposal may cost: counted in evaluations, so that every machine answers the same.

The groups are larger than what a step looks at, and the work allowed is so little that it runs out.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from eplbd import Placement, par, rank_load
from eplbd_policies import incremental
from eplbd_policies.incremental import RANKS_PER_STEP, Incremental
from eplbd_policies.search import ABREAST
from tests.policies.asked import ask, counts, fresh, start

LAYERS, EXPERTS, RANKS, SLOTS, STEPS = 3, 96, ABREAST + 64, 3, 16
EFFORT = RANKS * (SLOTS * SLOTS + STEPS // 4)
"""Evaluations of one step of the search."""

Counts = NDArray[np.int32]


def drifted(steps: Counts, seed: int) -> Counts:
    """The same after every expert's heat has changed by a tenth."""
    rng = np.random.default_rng(seed)
    expected = steps.mean(0) * rng.lognormal(0, 0.1, steps.shape[1:])
    return rng.poisson(expected, steps.shape).astype(np.int32)


def policy() -> Incremental:
    return Incremental(Incremental.Options(caution=0.0))


def peaks(placement: Placement, steps: Counts) -> NDArray[np.float64]:
    """`[L]` PAR of the window's sum."""
    return par(rank_load(placement, steps.sum(0)))


@pytest.fixture(scope="module")
def settled() -> tuple[Counts, Placement]:
    """A window and the placement that suits it."""
    steps = 50 * counts(LAYERS, EXPERTS, STEPS)
    return steps, ask(policy(), steps, start(LAYERS, EXPERTS, RANKS, SLOTS))


@pytest.mark.slow
def test_layers_share_the_work_and_the_first_steps_gain_most(
    settled: tuple[Counts, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step moves two experts at most."""
    steps, current = drifted(settled[0], 1), settled[1]
    whole = ask(policy(), steps, current)
    taken = RANKS // RANKS_PER_STEP + 4
    monkeypatch.setattr(incremental, "WORK", LAYERS * taken * EFFORT)
    answer = ask(policy(), steps, current)
    moves = answer.moves_from(current)
    assert (moves > 0).all()
    assert (moves <= 2 * (taken + 1)).all()
    assert moves.sum() < whole.moves_from(current).sum()
    before, now, end = (peaks(one, steps).mean() for one in (current, answer, whole))
    assert now - end < 0.5 * (before - end)


@pytest.mark.slow
def test_the_hottest_layer_comes_first_and_every_layer_in_its_turn(
    settled: tuple[Counts, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, placement = settled[0], start(LAYERS, EXPERTS, RANKS, SLOTS)
    monkeypatch.setattr(incremental, "WORK", 1)
    for _ in range(LAYERS):
        hottest = int(peaks(placement, steps).argmax())
        answer = ask(policy(), steps, placement)
        assert np.flatnonzero(answer.moves_from(placement)).tolist() == [hottest]
        placement = answer
    assert peaks(placement, steps).max() < 1.05 * peaks(settled[1], steps).max()


@pytest.mark.slow
def test_a_step_that_looks_at_some_ranks_only_serves_a_crowd(
    settled: tuple[Counts, Placement],
) -> None:
    """As good as to pack everything anew, for a fraction of the moves."""
    steps, current = drifted(settled[0], 2), settled[1]
    answer, packed = (ask(one, steps, current) for one in (policy(), fresh("greedy")))
    assert peaks(current, steps).mean() > 1.1
    assert peaks(answer, steps).mean() < peaks(packed, steps).mean() + 0.03
    assert answer.moves_from(current).sum() < 0.4 * packed.moves_from(current).sum()

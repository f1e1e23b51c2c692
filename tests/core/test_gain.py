"""Promises: what was gained is measured against the map before on the same steps."""

from __future__ import annotations

import numpy as np
import pytest

from eplbd.core.assembly import Step
from eplbd.core.gain import Gains
from eplbd.core.placement import Placement, par, rank_load

BEFORE = Placement.linear(1, 4, 2, 3)
"""Slots 0 1 2 | 3 0 1."""

AFTER = Placement(np.array([[[0, 1, 2], [3, 0, 2]]], dtype=np.int32), 4)

HOT = (10, 10, 100, 10)
"""Expert 2 is hot: one replica before, two after."""

COLD = (100, 10, 10, 10)


def served(
    placement: Placement, heat: tuple[int, ...], n: int = 80, skew: float = 1.0
) -> list[Step]:
    """Steps under `placement`; the hottest rank is `skew` times as busy as an even split says."""
    steps = np.array([heat], dtype=np.int32)
    load = rank_load(placement, steps).T * 100
    load[load.argmax()] *= skew
    return [
        Step(
            forward=i,
            epoch=1,
            phase=3,
            dummy=False,
            torn=False,
            tokens=1,
            heat=steps * 100,
            load=load.astype(np.int32),
            routed=np.zeros(2, dtype=np.int64),
        )
        for i in range(n)
    ]


PROMISED = 1 - 65 / 110
"""From 110 tokens on the first rank to 65: expert 0 is halved under both."""


def test_a_promise_that_comes_true() -> None:
    gains = Gains(share=0.5, tolerance=0.0)
    gains.promise(PROMISED, BEFORE, served(BEFORE, HOT))
    assert gains.measure(served(AFTER, HOT), AFTER) == pytest.approx(PROMISED, rel=0.01)
    assert gains.broken == 0
    assert gains.predicted == PROMISED


def test_one_that_does_not() -> None:
    gains = Gains(share=0.5, tolerance=0.0)
    for n in (1, 2, 3):
        gains.promise(0.5, BEFORE, served(BEFORE, HOT))
        assert gains.measure(served(BEFORE, HOT), BEFORE) == pytest.approx(0)
        assert gains.broken == n
    gains.promise(PROMISED, BEFORE, served(BEFORE, HOT))
    gains.measure(served(AFTER, HOT), AFTER)
    assert gains.broken == 0, "not in a row any more"


def test_traffic_that_becomes_hotter_is_nobodys_fault() -> None:
    """PAR rises after the moves, and would have risen more without them."""
    gains = Gains(share=0.5, tolerance=0.0)
    gains.promise(PROMISED, BEFORE, served(BEFORE, HOT))
    hotter = (10, 10, 1000, 10)
    assert gains.measure(served(AFTER, hotter), AFTER) > PROMISED
    assert gains.broken == 0


@pytest.mark.parametrize("heat", [COLD, (10, 10, 10, 100)])
def test_traffic_that_turns_away_is_no_evidence(heat: tuple[int, ...]) -> None:
    """Neither against the policy nor for it: one that broke its promises before still did."""
    gains = Gains(share=0.5, tolerance=0.0)
    gains.promise(0.5, BEFORE, served(BEFORE, HOT))
    gains.measure(served(BEFORE, HOT), BEFORE)
    gains.promise(PROMISED, BEFORE, served(BEFORE, HOT))
    assert gains.measure(served(AFTER, heat), AFTER) < PROMISED / 2
    assert gains.broken == 1


def test_a_plan_that_does_harm_is_evidence_all_the_same() -> None:
    """What is hot now had its second replica taken: twice the load that it would have been."""
    gains = Gains(share=0.5, tolerance=0.0)
    gains.promise(PROMISED, BEFORE, served(BEFORE, HOT))
    assert gains.measure(served(AFTER, (10, 100, 10, 10)), AFTER) < -PROMISED
    assert gains.broken == 1


def test_what_the_traffic_changed_by_excuses_no_more_than_that() -> None:
    """The hot expert cools down a little; what was promised falls short by all of it."""
    gains = Gains(share=0.5, tolerance=0.0)
    gains.promise(PROMISED, BEFORE, served(BEFORE, HOT))
    cooler = (10, 10, 80, 10)
    assert gains.measure(served(BEFORE, cooler), BEFORE) == pytest.approx(0)
    assert gains.broken == 1


def test_a_shift_that_leaves_the_imbalance_what_it_was_is_seen() -> None:
    """As hot, on the other rank: PAR under the map before says nothing of it."""
    apart = Placement(np.array([[[0, 1, 2], [3, 0, 1]]], dtype=np.int32), 4)
    gains = Gains(share=0.5, tolerance=0.0)
    there, here = (10, 10, 100, 10), (10, 10, 10, 100)
    assert par(rank_load(apart, np.array([there]))) == par(rank_load(apart, np.array([here])))
    gains.promise(PROMISED, apart, served(apart, there))
    assert gains.measure(served(AFTER, here), AFTER) < PROMISED / 2
    assert gains.broken == 0


def test_an_engine_that_splits_unevenly_is_nobodys_fault() -> None:
    """Loads lie a fifth above the modelled ones, before the moves as after them."""
    gains = Gains(share=0.9, tolerance=0.0)
    gains.promise(PROMISED, BEFORE, served(BEFORE, HOT, skew=1.2))
    assert gains.measure(served(AFTER, HOT, skew=1.2), AFTER) == pytest.approx(PROMISED, rel=0.02)
    assert gains.broken == 0


def test_little_is_no_more_than_noise() -> None:
    gains = Gains(share=0.5, tolerance=0.02)
    gains.promise(0.015, BEFORE, served(BEFORE, HOT))
    gains.measure(served(BEFORE, HOT), BEFORE)
    assert gains.broken == 0


def test_without_steps_there_is_no_verdict() -> None:
    gains = Gains(share=0.5, tolerance=0.0)
    gains.promise(0.5, BEFORE, served(BEFORE, HOT))
    assert gains.measure([], AFTER) == 0.0
    assert gains.measure(served(BEFORE, HOT), BEFORE) == 0.0, "and the promise is gone"
    assert gains.broken == 0


def test_even_chance_breaks_few_promises_in_a_row() -> None:
    """Random traffic of one law, honest promises: never three short ones in a row."""
    rng = np.random.default_rng(7)
    gains = Gains(share=0.5, tolerance=0.01)
    worst = 0
    for _ in range(200):
        before, after = (
            [step for _ in range(64) for step in served(p, tuple(rng.poisson(HOT)), n=1)]
            for p in (BEFORE, AFTER)
        )
        gains.promise(PROMISED, BEFORE, before)
        gains.measure(after, AFTER)
        worst = max(worst, gains.broken)
    assert worst < 3


def test_forgiven_is_forgotten() -> None:
    gains = Gains(share=0.5, tolerance=0.0)
    gains.promise(0.5, BEFORE, served(BEFORE, HOT))
    gains.measure(served(BEFORE, HOT), BEFORE)
    gains.forgive()
    assert gains.broken == 0

"""Tokens per expert, step by step: a few experts are hot, and which they are changes slowly.

Popularity of a layer's experts is lognormal and wanders between two random layouts, back and forth;
every step is Poisson around it. Owns the numbers. Must not know placements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PERIOD_STEPS = 6000
"""From one layout to the other and back: two minutes at 50 forwards a second."""

SIGMA = 1.0
"""Of log popularity: the hottest of 256 experts takes ten to fifteen times the mean."""


class Traffic:
    """Heat of all ranks together; `assignments`: (token, expert) pairs of a layer and step."""

    def __init__(self, layers: int, experts: int, assignments: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._assignments = assignments
        self._ends = self._random.normal(0.0, SIGMA, (2, layers, experts))

    def step(self, number: int) -> NDArray[np.int32]:
        """`[layers, experts]` tokens of step `number`; steps are to be taken in order."""
        turn = 2 * np.pi * number / PERIOD_STEPS
        popular = np.exp(np.cos(turn) * self._ends[0] + np.sin(turn) * self._ends[1])
        mean = self._assignments * popular / popular.sum(axis=1, keepdims=True)
        drawn: NDArray[np.int32] = self._random.poisson(mean).astype(np.int32)
        return drawn

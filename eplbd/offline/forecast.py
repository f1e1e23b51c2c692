"""How much of the heat will be there again in the next window, and how much is chance.

Owns the statistics. Must not know placements or policies: what is said here is true of any.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Means over layers and pairs of windows that follow one another.

    correlation: Pearson's, of experts' shares in one window with those in the next. ceiling: what
    it would be if nothing but sampling differed. change: half the L1 distance of the shares, the
    part of the load that is elsewhere. noise: what sampling alone would make of it.
    """

    correlation: float
    ceiling: float
    change: float
    noise: float

    @property
    def is_noise(self) -> bool:
        """Whether the skew of a window says nothing about the next."""
        return self.correlation < 0.2


def forecast(windows: Sequence[NDArray[np.integer]], topk: int) -> Forecast:
    """Compare each window `[steps, layers, experts]` with the next.

    topk: experts that a token takes, 0 where unknown; a token takes an expert once at most, which
    makes counts less noisy than independent draws.
    """
    totals = [window.sum(axis=0, dtype=np.int64).astype(np.float64) for window in windows]
    pairs = [_pair(a, b, topk) for a, b in itertools.pairwise(totals)]
    correlation, ceiling, change, noise = np.nanmean(np.array(pairs), axis=(0, 2)).tolist()
    return Forecast(correlation, ceiling, change, noise)


def _pair(a: Floats, b: Floats, topk: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Four figures of each layer; nan where one of the windows has no load."""
    n, m = a.sum(1, keepdims=True), b.sum(1, keepdims=True)
    both = (n > 0) & (m > 0)
    n, m = np.where(both, n, np.nan), np.where(both, m, np.nan)
    p, q = a / n, b / m
    pooled = (a + b) / (n + m)
    chance = pooled * np.clip(1 - max(topk, 1) * pooled, 0, None)
    dp, dq = p - p.mean(1, keepdims=True), q - q.mean(1, keepdims=True)
    spread = np.sqrt((dp**2).mean(1) * (dq**2).mean(1))
    flat = spread <= 0  # even heat: there is nothing to correlate, and nothing that changes
    correlation = np.where(flat, 1.0, (dp * dq).mean(1) / np.where(flat, 1, spread))
    variance = ((dp**2).mean(1) + (dq**2).mean(1)) / 2
    sampling = (chance / n + chance / m).mean(1) / 2
    ceiling = np.where(flat, 1.0, np.clip(1 - sampling / np.where(flat, 1, variance), 0, 1))
    change = np.abs(p - q).sum(1) / 2
    noise = np.sqrt(2 / np.pi * (chance / n + chance / m)).sum(1) / 2
    return correlation, ceiling, change, noise


def alike(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """Mean over layers of the correlation of experts' shares in two sets of steps."""
    p, q = (one.sum(axis=0, dtype=np.int64).astype(np.float64) for one in (a, b))
    return float(np.nanmean(_pair(p, q, 1)[0]))

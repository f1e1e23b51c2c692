"""What a placement was worth on steps that followed: PAR, step by step.

Owns the definitions of every PAR that the offline tools print. Must not know policies or files.

For each step and layer, PAR is the hottest rank's load over the mean rank's. Where nothing was
routed nothing waited: such pairs are left out of every mean and percentile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement, rank_load

Floats = NDArray[np.float64]

_BLOCK = 64
"""Steps whose loads are in memory at once: 64 of 58 layers x 288 slots take 9 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Loads:
    """Loads of steps under a placement. hottest, mean: `[steps, layers]`, tokens per rank."""

    hottest: Floats
    mean: Floats

    @property
    def par(self) -> Floats:
        """`[pairs]`: PAR of every step and layer with load, in no particular shape."""
        busy = self.mean > 0
        return self.hottest[busy] / self.mean[busy]

    @property
    def paid(self) -> Floats:
        """`[layers]`: sum over steps of the hottest load / of the mean one, 1 where nothing ran.

        What a synchronous engine pays: a step with more tokens weighs more.
        """
        mean = self.mean.sum(0)
        return np.where(mean > 0, self.hottest.sum(0) / np.where(mean > 0, mean, 1), 1.0)

    @property
    def total(self) -> float:
        """The same over all layers at once, which is what the time of a forward follows."""
        mean = float(self.mean.sum())
        return float(self.hottest.sum()) / mean if mean else 1.0


def loads(placement: Placement, steps: NDArray[np.integer]) -> Loads:
    """Loads of `steps` `[steps, layers, experts]` under `placement`."""
    hottest = np.empty(steps.shape[:2])
    mean = np.empty(steps.shape[:2])
    for start in range(0, len(steps), _BLOCK):
        load = rank_load(placement, steps[start : start + _BLOCK])
        hottest[start : start + _BLOCK] = load.max(-1)
        mean[start : start + _BLOCK] = load.mean(-1)
    return Loads(hottest, mean)


def joined(parts: list[Loads]) -> Loads:
    """Loads of several windows as of one."""
    return Loads(
        np.concatenate([part.hottest for part in parts]),
        np.concatenate([part.mean for part in parts]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """What one way of serving takes off the hottest ranks' load, against no balancer.

    par: sum of hottest loads over sum of mean loads, all judged steps and layers. shares: `[judged
    windows]`, by how much the sum of hottest loads is less, as a fraction; negative if it is more.
    """

    par: float
    shares: Floats

    @property
    def mean(self) -> float:
        """Mean over windows."""
        return float(self.shares.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite where one window has to speak for all."""
        count = len(self.shares)
        return float(self.shares.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")

    def beyond_chance(self, errors: float = 2.0) -> bool:
        """Whether the gain is positive by that many standard errors."""
        if len(self.shares) == 1:
            return self.mean > 0
        return self.mean > errors * self.error and self.mean > 0


def gained(before: list[Loads], after: list[Loads]) -> Gain:
    """Gain over windows, each under what served before and under what is to serve."""
    shares = [
        1 - b.hottest.sum() / a.hottest.sum() if a.hottest.sum() else 0.0
        for a, b in zip(before, after, strict=True)
    ]
    return Gain(joined(after).total, np.array(shares, dtype=np.float64))


def moved(before: Placement, after: Placement) -> int:
    """Moves between two placements: experts newly hosted by a rank, over all layers."""
    return int(after.moves_from(before).sum())

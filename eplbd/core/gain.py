"""Whether rebalances keep what they promised: the gain that was predicted, held against its like.

Owns the measurement and the count of promises broken in a row. A gain is the share by which the
hottest ranks' load falls, as in the benefit test. Both sides of the measurement are of the same
steps, those after the flip: what the ranks processed, and what they would have had under the map
before. How far real loads lie above the modelled ones (an engine does not split an expert's tokens
quite evenly) is taken from the steps before the flip.

A plan that falls short because its traffic is gone says little of who made it. Either map tells
that if steps from before and after the flip are held against it: where the loads of its ranks have
changed by as much as the gain falls short, the plan counts neither way. Unless it did harm: then it
was made for too narrow a view of the traffic.

Must not know who is suspended for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.cycle import Speed, slowest_load
from eplbd.core.placement import rank_load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from eplbd.core.assembly import Step
    from eplbd.core.placement import Placement

LOOKED_AT = 32
"""Steps that are compared, evenly spaced: it is the sum over them that counts, as in the benefit
test, and it is made on the leader's loop."""


@dataclass(frozen=True, slots=True)
class _Promise:
    """before: the map that serves on without the moves. skew: real load over modelled, under it.

    heat: `[layers, experts]` tokens, on which the gain was promised.
    """

    gain: float
    before: Placement
    skew: float
    heat: NDArray[np.int64]


class Gains:
    """The promises of one group.

    share: of a promised gain, what must come true at least, and a loss of as much is harm.
    tolerance: a gain that falls short by less than this, absolutely, breaks no promise: it is no
    more than noise.
    """

    def __init__(self, share: float, tolerance: float) -> None:
        self.demand(share, tolerance)
        self.broken = 0
        """Promises broken in a row."""
        self.predicted = self.realised = 0.0
        """Of the newest promise that was measured."""
        self.speed: Speed = np.ones(1)
        """Of the ranks, for all of them where one is given; as in the benefit test."""
        self._open: _Promise | None = None

    def demand(self, share: float, tolerance: float) -> None:
        """Hold the next promises to these figures."""
        self._share, self._tolerance = share, max(0.0, tolerance)

    def promise(self, gain: float, before: Placement, steps: Sequence[Step]) -> None:
        """Moves are about to be made for `gain`; `steps` were served by `before`."""
        steps = _thinned(steps)
        self._open = _Promise(gain, before, self._skew(steps, before), _heat(steps, before))

    def measure(self, steps: Sequence[Step], after: Placement) -> float:
        """The gain on `steps`, all served by the map `after`; 0.0 where nothing was promised.

        Without steps there is no verdict: nothing came of the moves, or too few steps did.
        """
        promise, self._open = self._open, None
        if promise is None or not steps:
            return 0.0
        steps = _thinned(steps)
        otherwise = promise.skew * self._modelled(steps, promise.before)
        gain = 1.0 - self._measured(steps) / otherwise if otherwise else 0.0
        self.predicted, self.realised = promise.gain, gain
        short = promise.gain - gain - self._tolerance
        if gain >= self._share * promise.gain or short <= 0:
            self.broken = 0
        elif gain <= -self._share * promise.gain or short > self._change(promise, steps, after):
            self.broken += 1
        return gain

    @staticmethod
    def _change(promise: _Promise, steps: Sequence[Step], after: Placement) -> float:
        """How much of a gain the traffic alone may have made or undone since it was promised."""
        now = _heat(steps, after)
        return sum(_shifted(on, promise.heat, now) for on in (promise.before, after))

    def _measured(self, steps: Sequence[Step]) -> float:
        """What a synchronous engine waited for: the hottest rank's load, over layers and steps."""
        speed = self.speed[:, None]
        return float(sum((step.load / speed).max(axis=0).sum() for step in steps))

    def _modelled(self, steps: Sequence[Step], placement: Placement) -> float:
        """The same, if `placement` had served them and every expert were split as that says."""
        if not steps:
            return 0.0
        return slowest_load(placement, np.stack([step.heat for step in steps]), self.speed)

    def _skew(self, steps: Sequence[Step], placement: Placement) -> float:
        modelled = self._modelled(steps, placement)
        return self._measured(steps) / modelled if modelled else 1.0

    def forget(self) -> None:
        """Nobody will be held to the newest promise."""
        self._open = None

    def forgive(self) -> None:
        """Begin anew: another policy, or the operator wants this one asked again."""
        self.broken = 0


def _thinned(steps: Sequence[Step]) -> list[Step]:
    stride = -(-len(steps) // LOOKED_AT)
    return list(steps[:: max(1, stride)])


def _heat(steps: Sequence[Step], placement: Placement) -> NDArray[np.int64]:
    """Tokens of all steps, `[layers, experts]`."""
    none = np.zeros((placement.layers, placement.experts), dtype=np.int64)
    return sum((step.heat.astype(np.int64) for step in steps), start=none)


def _shifted(placement: Placement, then: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    """How much more or less some rank of each layer carries, relative to the hottest ones' load."""
    before, after = (_relative(rank_load(placement, heat)) for heat in (then, now))
    return float(np.abs(after - before).max(axis=1).sum() / before.max(axis=1).sum())


def _relative(load: NDArray[np.float64]) -> NDArray[np.float64]:
    """Loads `[layers, ranks]`; 1.0 is the mean of a layer, as it is where there is no load."""
    mean = load.mean(axis=1, keepdims=True)
    return np.where(mean > 0, load / np.where(mean > 0, mean, 1.0), 1.0)

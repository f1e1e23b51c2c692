"""Whether rebalances keep what they promised: the gain that was predicted, held against its like.

Owns the measurement and the count of promises broken in a row. A gain is the share by which the
hottest ranks' load falls, as in the benefit test. Both sides of the measurement are of the same
steps, those after the flip: what the ranks processed, and what they would have had under the map
before. So traffic that shifts is nobody's fault. How far real loads lie above the modelled ones (an
engine does not split an expert's tokens quite evenly) is taken from the steps before the flip. Must
not know who is suspended for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.cycle import slowest_load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplbd.core.assembly import Step
    from eplbd.core.placement import Placement

LOOKED_AT = 32
"""Steps that are compared, evenly spaced: it is the sum over them that counts, as in the benefit
test, and it is made on the leader's loop."""


@dataclass(frozen=True, slots=True)
class _Promise:
    """before: the map that serves on without the moves. skew: real load over modelled, under it."""

    gain: float
    before: Placement
    skew: float


class Gains:
    """The promises of one group.

    share: of a promised gain, what must come true at least. tolerance: a gain that falls short by
    less than this, absolutely, breaks no promise: it is no more than noise.
    """

    def __init__(self, share: float, tolerance: float) -> None:
        self.demand(share, tolerance)
        self.broken = 0
        """Promises broken in a row."""
        self.predicted = self.realised = 0.0
        """Of the newest promise that was measured."""
        self._open: _Promise | None = None

    def demand(self, share: float, tolerance: float) -> None:
        """Hold the next promises to these figures."""
        self._share, self._tolerance = share, max(0.0, tolerance)

    def promise(self, gain: float, before: Placement, steps: Sequence[Step]) -> None:
        """Moves are about to be made for `gain`; `steps` were served by `before`."""
        self._open = _Promise(gain, before, _skew(_thinned(steps), before))

    def measure(self, steps: Sequence[Step]) -> float:
        """The gain on `steps`, all served by the new map; 0.0 where nothing was promised.

        Without steps there is no verdict: nothing came of the moves, or too few steps did.
        """
        promise, self._open = self._open, None
        if promise is None or not steps:
            return 0.0
        steps = _thinned(steps)
        otherwise = promise.skew * _modelled(steps, promise.before)
        gain = 1.0 - _measured(steps) / otherwise if otherwise else 0.0
        short = promise.gain - gain
        kept = gain >= self._share * promise.gain or short <= self._tolerance
        self.broken = 0 if kept else self.broken + 1
        self.predicted, self.realised = promise.gain, gain
        return gain

    def forgive(self) -> None:
        """Begin anew: another policy, or the operator wants this one asked again."""
        self.broken = 0


def _thinned(steps: Sequence[Step]) -> list[Step]:
    stride = -(-len(steps) // LOOKED_AT)
    return list(steps[:: max(1, stride)])


def _measured(steps: Sequence[Step]) -> float:
    """What a synchronous engine waited for: the hottest rank's tokens, over layers and steps."""
    return float(sum(int(step.load.max(axis=0).sum(dtype=np.int64)) for step in steps))


def _modelled(steps: Sequence[Step], placement: Placement) -> float:
    """The same, if `placement` had served them and every expert were split as that says."""
    return slowest_load(placement, np.stack([step.heat for step in steps])) if steps else 0.0


def _skew(steps: Sequence[Step], placement: Placement) -> float:
    modelled = _modelled(steps, placement)
    return _measured(steps) / modelled if modelled else 1.0

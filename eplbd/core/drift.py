"""Whether load has changed: the shares of a window, and how far they sway within the window itself.

Owns the comparison of two windows. A window's own halves say how far apart windows of the same load
lie by chance: whole windows have twice as many steps, and are closer by the root of two. Load has
changed where two windows are more than twice as far apart as that, measured by the calmer of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BEYOND_CHANCE = 2 / 2**0.5
"""Times the distance between halves: twice what whole windows differ by without any reason."""

LEAST_CHANGE = 1e-3
"""Share of a layer's tokens that has to go elsewhere at least; less cannot matter to any rank."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """How a window's load is spread.

    shares: `[layers, experts]` float64, of the layer's tokens; all 0 where it had none. sway:
    `[layers]` float64, distance between the older and the newer half of the window.
    """

    shares: NDArray[np.float64]
    sway: NDArray[np.float64]

    @classmethod
    def of(cls, steps: NDArray[np.int32]) -> Self:
        """The profile of `[steps, layers, experts]`, at least two steps."""
        middle = len(steps) // 2
        older = steps[:middle].sum(axis=0, dtype=np.int64)
        newer = steps[middle:].sum(axis=0, dtype=np.int64)
        return cls(_shares(older + newer), _distance(_shares(older), _shares(newer)))

    def differs(self, earlier: Profile) -> bool:
        """Whether some layer's load has changed since `earlier`, of the same shape."""
        chance = _BEYOND_CHANCE * np.minimum(self.sway, earlier.sway)
        distance = _distance(self.shares, earlier.shares)
        return bool((distance > np.maximum(chance, LEAST_CHANGE)).any())


def _shares(total: NDArray[np.int64]) -> NDArray[np.float64]:
    whole = np.maximum(total.sum(axis=1, keepdims=True), 1)
    shares: NDArray[np.float64] = total / whole
    return shares


def _distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[layers]`: the share of tokens that went to other experts (total variation)."""
    distance: NDArray[np.float64] = np.abs(one - other).sum(axis=1) / 2
    return distance

"""Tokens per expert and step: the values that policies read.

Owns `Heat`, `Budget` and the names of the phases. It must not know policies, transfers or where a
report came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from eplbd.core.placement import Placement

PHASES = ("all", "prefill", "decode")
"""What a window may hold; `all` also holds the steps that mixed both."""


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """Heat of one window, step by step, summed over all ranks.

    steps: `[steps, layers, experts]` int32 tokens that each logical expert processed, oldest step
    first, read-only; only steps that every rank reported, without dummies. phase: one of `PHASES`.
    """

    steps: NDArray[np.int32]
    phase: str

    @property
    def total(self) -> NDArray[np.int64]:
        """`[layers, experts]` int64 tokens over the whole window, read-only."""
        total: NDArray[np.int64] = self.steps.sum(axis=0, dtype=np.int64)
        total.setflags(write=False)
        return total


@dataclass(frozen=True, slots=True)
class Budget:
    """What a proposal may cost.

    moves: experts newly hosted by a rank, over all layers; None for any number. bytes: of weights
    and scales to transfer; None for any number. deadline_s: seconds the policy has to answer.
    expert_bytes: weights and scales of one expert of one layer. weighted: whether the engine takes
    shares per replica (`Placement.shares`); where it does not, a proposal with shares is refused.
    """

    moves: int | None
    bytes: int | None
    deadline_s: float
    expert_bytes: int
    weighted: bool = False

    def allows(self, current: Placement, proposal: Placement) -> bool:
        """Whether the way from `current` to `proposal` needs no more moves and bytes than these."""
        moves = int(proposal.moves_from(current).sum())
        few = self.moves is None or moves <= self.moves
        return few and (self.bytes is None or moves * self.expert_bytes <= self.bytes)

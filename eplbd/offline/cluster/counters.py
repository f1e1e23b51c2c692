"""What the ranks' devices count: tokens of every expert, split over its replicas, step by step.

Owns the split, exact to the token, and the cut of a block where the placement changes. Must not
know who reads the reports.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplbd.core.messages import HeatReport
from eplbd.core.placement import Placement

BLOCK_STEPS = 16
"""As the workers' rings have it."""


class Counters:
    """Of all ranks at once. tokens: of one rank in one forward."""

    def __init__(self, placement: Placement, tokens: int) -> None:
        self._tokens = tokens
        self._first = 1
        self._steps: list[NDArray[np.int32]] = []
        self._epoch = 0
        self._place(placement)

    def _place(self, placement: Placement) -> None:
        layers, ranks, per_rank = placement.slots.shape
        self._shape = layers, ranks, per_rank
        flat = placement.slots.reshape(layers, -1)
        keys = flat + np.arange(layers)[:, None] * placement.experts
        order = np.argsort(keys, axis=None, kind="stable")
        ordered = keys.ravel()[order]
        first = np.searchsorted(ordered, ordered)
        turn = np.empty(keys.size, dtype=np.int32)
        turn[order] = np.arange(keys.size) - first
        self._keys = keys.ravel()
        """Of every slot, among `layers x experts`."""
        self._turn = turn
        """Of every slot, among the replicas of its expert."""
        self._replicas = np.bincount(self._keys, minlength=layers * placement.experts)

    def record(self, heat: NDArray[np.int32]) -> bool:
        """Count a forward, `[layers, experts]`; whether the block is full."""
        self._steps.append(heat)
        return len(self._steps) == BLOCK_STEPS

    def flip(self, placement: Placement, epoch: int) -> list[HeatReport]:
        """Go on under another placement; the reports of what was counted before."""
        reports = self.drain()
        self._place(placement)
        self._epoch = epoch
        return reports

    def drain(self) -> list[HeatReport]:
        """One report per rank of the steps so far; none where there are none."""
        if not self._steps:
            return []
        layers, ranks, per_rank = self._shape
        heat = np.stack(self._steps).reshape(len(self._steps), -1)
        each, over = heat // self._replicas, heat % self._replicas
        counts = each[:, self._keys] + (self._turn < over[:, self._keys])
        counts = counts.astype(np.int32).reshape(-1, layers, ranks, per_rank)
        by_rank = np.ascontiguousarray(counts.transpose(2, 0, 1, 3))
        reports = self._reports(by_rank, heat.sum(axis=1, dtype=np.int64))
        self._first += len(self._steps)
        self._steps = []
        return reports

    def _reports(self, counts: NDArray[np.int32], total: NDArray[np.int64]) -> list[HeatReport]:
        """counts: `[ranks, steps, layers, slots]`; total: `[steps]` assignments of all ranks."""
        ranks, steps = counts.shape[:2]
        routed = np.broadcast_to(total // ranks, (ranks, steps)).copy()
        routed[0] += total % ranks
        tokens, dummy = np.full(steps, self._tokens, np.int32), np.zeros(steps, np.bool_)
        for array in (counts, routed, tokens, dummy):
            array.setflags(write=False)
        about = self._epoch, self._first, "decode"
        return [
            HeatReport(*about, counts[rank], routed[rank], tokens, dummy) for rank in range(ranks)
        ]

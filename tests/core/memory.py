"""A model of what the ranks' memories really contain: live slots and staging buffers, by value.

An epoch is carried out as the ranks would, each from its own rows alone, so that a wrong slot,
buffer or round shows as a wrong value, not as a table that looks plausible.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from eplbd.core.placement import Placement
from eplbd.core.plan import EpochPlan
from eplbd.core.rounds import Col, Transfers

Weights = tuple[int, int]
"""Stands for the weights of (layer, expert)."""


class Memory:
    """Contents of all slots; `run` stages and commits an epoch."""

    def __init__(self, placement: Placement, buffers: int) -> None:
        self.experts = placement.experts
        self.buffers = buffers
        self.live: dict[tuple[int, int, int], Weights] = {
            (layer, rank, slot): (layer, int(placement.slots[layer, rank, slot]))
            for layer, rank, slot in np.ndindex(placement.slots.shape)
        }
        self.ranks = placement.ranks
        self.shape = placement.slots.shape

    def run(self, epoch: EpochPlan, *, limit: int = 1) -> None:
        own = [epoch.for_rank(rank) for rank in range(self.ranks)]
        staged: dict[tuple[int, int], Weights] = {}
        for round_index in range(epoch.rounds):
            busy = [rows[rows[:, Col.ROUND] == round_index] for rows in own]
            assert sum(len(rows) for rows in busy), f"round {round_index} is empty"
            self._round(busy, staged, limit)
        assert all(len(rows) == 0 or rows[:, Col.ROUND].max() < epoch.rounds for rows in own)
        for rank, rows in enumerate(own):
            for row in rows[rows[:, Col.DST] == rank].tolist():
                place = (row[Col.LAYER], rank, row[Col.DST_SLOT])
                self.live[place] = staged.pop((rank, row[Col.DST_BUFFER]))
        assert not staged, "a buffer was filled and never committed"

    def _round(
        self, busy: list[Transfers], staged: dict[tuple[int, int], Weights], limit: int
    ) -> None:
        wire: dict[tuple[int, int], list[Weights]] = {}
        sends = Counter[int]()
        for rank, rows in enumerate(busy):
            for row in rows[rows[:, Col.SRC] == rank].tolist():
                if row[Col.SRC_BUFFER] >= 0:
                    assert row[Col.SRC_SLOT] == -1
                    value = staged[rank, row[Col.SRC_BUFFER]]
                else:
                    value = self.live[row[Col.LAYER], rank, row[Col.SRC_SLOT]]
                wire.setdefault((rank, row[Col.DST]), []).append(value)
                sends[rank] += row[Col.DST] != rank
        receives = Counter[int]()
        arrived: dict[tuple[int, int], Weights] = {}
        for rank, rows in enumerate(busy):
            for row in rows[rows[:, Col.DST] == rank].tolist():
                value = wire[row[Col.SRC], rank].pop(0)
                assert value == (row[Col.LAYER], row[Col.EXPERT]), "these are other weights"
                key = (rank, row[Col.DST_BUFFER])
                assert 0 <= row[Col.DST_BUFFER] < self.buffers
                assert key not in staged, "buffer is in use"
                assert key not in arrived, "buffer is in use"
                arrived[key] = value
                receives[rank] += row[Col.SRC] != rank
        assert not any(wire.values()), "sent to a rank that does not expect it"
        assert max(sends.values(), default=0) <= limit
        assert max(receives.values(), default=0) <= limit
        staged.update(arrived)

    def placement(self) -> Placement:
        slots = np.empty(self.shape, dtype=np.int32)
        for place, (layer, expert) in self.live.items():
            assert layer == place[0], "weights of another layer"
            slots[place] = expert
        return Placement(slots, self.experts)

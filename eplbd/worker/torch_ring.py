"""Counters of the heat ring on a torch device.

Owns the memory of the counts and their way to the host. It must not know blocks' meaning, epochs
or threads (`ring` does).

Everything is written by in-place operations into memory that keeps its address, so that a captured
graph may add into `pass_counts` while Python records between replays. The copy to the host is
issued on the stream the forward runs on, hence after everything it counts, and read once its event
has completed. There is no side stream: counting beside the forward has corrupted outputs elsewhere
(vllm-ascend issue 4214).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from eplbd.worker.ring import BLOCK_STEPS, check_shape
from eplbd.worker.torch_streams import Mark, mark_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_ROUTED = 2
"""int32 words of the int64 that counts routed assignments, at the end of each row."""


class TorchCounters:
    """Counts of `layers` x `columns` on `device`, for `blocks` blocks of 16 steps.

    pass_counts: `[layers, columns]` int32, this pass's tokens; the engine's layers add into it.
    pass_routed: `[1]` int64, assignments this rank routed in this pass; likewise. Both are views of
    one row, so that keeping a step is one copy and one fill. Each block has a place of its own on
    the device, so a block on its way to the host is never written to.
    """

    def __init__(
        self,
        layers: int,
        columns: int,
        *,
        device: torch.device,
        blocks: int = 4,
        make_mark: Callable[[torch.device], Mark] = mark_on,
    ) -> None:
        check_shape(layers, columns, blocks)
        cells = layers * columns
        even = cells + cells % 2
        self._shape = (layers, columns)
        self._pass = torch.zeros(even + _ROUTED, dtype=torch.int32, device=device)
        self.pass_counts: Tensor = self._pass[:cells].view(layers, columns)
        self.pass_routed: Tensor = self._pass[even:].view(torch.int64)
        ring = torch.zeros((blocks, BLOCK_STEPS, even + _ROUTED), dtype=torch.int32, device=device)
        host = torch.zeros(ring.shape, dtype=torch.int32, pin_memory=device.type != "cpu")
        self._rows = [[ring[block, step] for step in range(BLOCK_STEPS)] for block in range(blocks)]
        self._blocks = list(ring)
        self._host = list(host)
        self._host_view: NDArray[np.int32] = host.numpy()
        self._marks = [make_mark(device) for _ in range(blocks)]
        self._bytes = ring.nbytes

    @property
    def blocks(self) -> int:
        """Blocks there is room for."""
        return len(self._blocks)

    @property
    def device_bytes(self) -> int:
        """Memory on the device; as much again is pinned on the host."""
        return self._bytes

    def keep(self, block: int, step: int) -> None:
        """See `Counters`."""
        self._rows[block][step].copy_(self._pass)
        self._pass.zero_()

    def drop(self) -> None:
        """See `Counters`."""
        self._pass.zero_()

    def ship(self, block: int) -> None:
        """See `Counters`."""
        self._host[block].copy_(self._blocks[block], non_blocking=True)
        self._marks[block].record()

    def shipped(self, block: int) -> bool:
        """See `Counters`."""
        return self._marks[block].reached()

    def read(self, block: int, steps: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """See `Counters`."""
        layers, columns = self._shape
        rows = self._host_view[block, :steps]
        counts = rows[:, : layers * columns].reshape(steps, layers, columns).copy()
        routed = rows[:, -_ROUTED:].copy().view(np.int64)[:, 0]
        return counts, routed

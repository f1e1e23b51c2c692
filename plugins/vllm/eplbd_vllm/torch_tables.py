"""The engine's routing tables, rewritten in place while it serves.

Owns the way of an epoch's maps into the tensors that the routers read: laid out on the host,
brought to the device beside the forward, put in force by copies in the forward's own order.
Addresses never change: a captured graph goes on reading them. It must not know why a map changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from eplbd.core.maps import derive_maps
from eplbd.core.messages import Prepare
from eplbd.core.placement import Placement
from eplbd_vllm.schedule import rows_of_turns
from eplbd_vllm.torch_delivery import Delivery
from eplbd_vllm.upstream import ModelState

_TURNS = 256
"""Entries of a row that are written: shares are met within 1 / 256, and an epoch's maps stay small
beside the 1,024 entries of the engine's table."""


class Tables:
    """The maps of all layers. Buffers for one epoch are made once, as large as all layers need."""

    def __init__(self, state: ModelState) -> None:
        self._physical = state.logical_to_physical_map
        self._count = state.logical_replica_count
        self._held = state.physical_to_logical_map
        layers, experts, width = self._physical.shape
        self.width = min(width, max(_TURNS, self._held.shape[1]))
        self._rows = self._physical[:, :, : self.width]
        device = self._physical.device
        self._delivery = Delivery(device, "maps")
        self._new_layers = torch.zeros(layers, dtype=torch.int64, device=device)
        self._new_rows = torch.zeros(layers, experts, self.width, dtype=torch.int64, device=device)
        self._new_count = torch.zeros(layers, experts, dtype=torch.int64, device=device)
        self._new_held = torch.zeros_like(self._held)

    def placement(self, ranks: int) -> Placement:
        """Return what is in force, read from the device."""
        slots = self._held.cpu().numpy().astype(np.int32)
        return Placement(slots.reshape(len(slots), ranks, -1), self._count.shape[1])

    def reset(self, placement: Placement) -> None:
        """Put the maps of `placement` in force, all layers; between forwards, on their thread."""
        maps = derive_maps(placement)
        layers = np.arange(placement.layers)
        rows, length = rows_of_turns(maps.physical, maps.replica_count, None, self.width)
        self._stage(layers, placement.slots, rows, length)()

    def stage_maps(self, prepare: Prepare) -> Callable[[], None]:
        """See `Engine`."""
        rows, length = rows_of_turns(
            prepare.physical, prepare.replica_count, prepare.parts, self.width
        )
        return self._stage(prepare.layers, prepare.slots, rows, length)

    def _stage(
        self,
        layers: NDArray[np.integer],
        slots: NDArray[np.int32],
        rows: NDArray[np.int32],
        length: NDArray[np.int32],
    ) -> Callable[[], None]:
        """Bring maps to the device; see `rows_of_turns` for rows and length."""
        n = len(layers)
        parts = (
            (self._new_layers[:n], layers.astype(np.int64)),
            (self._new_rows[:n], rows.astype(np.int64)),
            (self._new_count[:n], length.astype(np.int64)),
            (self._new_held[:n], slots.reshape(n, -1).astype(np.int64)),
        )
        self._delivery.bring(parts)

        def write() -> None:
            index, rows, count, held = (there for there, _ in parts)
            # Tensors that an engine made under inference mode may only be written to under it.
            with torch.inference_mode():
                self._rows.index_copy_(0, index, rows)
                self._count.index_copy_(0, index, count)
                self._held.index_copy_(0, index, held)
                self._delivery.read()

        return write

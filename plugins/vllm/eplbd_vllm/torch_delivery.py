"""Maps on their way from the host to the device, beside the forward.

Owns the side stream, and the mark that keeps a buffer from being overwritten while what it brought
last is still read. It must not know what a map says, nor where it goes from the buffer.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplbd.errors import TransferError
from eplbd.worker.torch_streams import mark_on, reached_within, side_stream

PATIENCE_S = 10.0
"""For a few megabytes, the maps of one epoch; longer is a fault of that device."""


class Delivery:
    """Brings arrays into buffers on `device`. what: they are, for the error that names them."""

    def __init__(self, device: torch.device, what: str) -> None:
        self._device, self._what = device, what
        self._side, self._read = side_stream(device), mark_on(device)

    def bring(self, pairs: Iterable[tuple[Tensor, NDArray[np.integer]]]) -> None:
        """Copy each array into its buffer and wait for all; on the stager's thread.

        Raises TransferError after PATIENCE_S.
        """
        arrived = mark_on(self._device)
        with self._side:
            self._read.hold_back()
            for buffer, array in pairs:
                buffer.copy_(torch.from_numpy(array), non_blocking=True)
            arrived.record()
        if not reached_within(arrived, monotonic() + PATIENCE_S):
            raise TransferError(f"{self._what}: not on the device within {PATIENCE_S} s")

    def read(self) -> None:
        """Tell that all who read the buffers were issued; on the forward's thread, after them."""
        self._read.record()

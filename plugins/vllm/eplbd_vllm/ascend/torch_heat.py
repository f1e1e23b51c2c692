"""Heat of a rank's layers in vllm-ascend V1: what each forward added, step by step.

Owns the memory that the layers' `moe_load` lie in: one tensor for all layers, so that a step is two
copies and a fill, all in the forward's own order. The dtype stays the engine's, so the addition
that a captured graph replays is the one it was written with. It must not know what a step means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eplbd.worker.torch_ring import TorchCounters
from eplbd_vllm.ascend.engine import Layer


class Heat:
    """Counts of all layers. Made before any graph is captured: from then on addresses stay."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        slots = layers[0].local_num_experts
        device = layers[0].moe_load.device
        self._loads = torch.zeros((len(layers), slots), dtype=torch.int64, device=device)
        self._flat = self._loads.view(-1)
        self.counters = TorchCounters(len(layers), slots, device=device)

    def take(self, layers: Sequence[Layer]) -> None:
        """Let these layers count here."""
        for layer, loads in zip(layers, self._loads.unbind(), strict=True):
            # One row per step is kept here, and not on the device for a whole interval.
            layer.multi_stage = False
            layer.moe_load = loads

    def collect(self) -> None:
        """Take the forward's counts as this pass's, and start the next from zero. No sync.

        What the rank routed is not counted by the engine; what it processed stands for it, so the
        sums over all ranks agree by construction and a rank that missed a forward is told by its
        number alone.
        """
        self.counters.pass_counts.copy_(self._loads, non_blocking=True)
        torch.sum(self._flat, dim=0, keepdim=True, out=self.counters.pass_routed)
        self._loads.zero_()

    def drop(self) -> None:
        """Forget what was counted since the last step."""
        self._loads.zero_()

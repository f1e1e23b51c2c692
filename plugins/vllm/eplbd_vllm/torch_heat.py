"""Heat of a rank of upstream vLLM: what its routers sent in each forward, step by step.

Owns the memory that the routers add into. It must not know what a step means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eplbd.worker.torch_ring import TorchCounters
from eplbd_vllm.upstream import MoeLayer


class Heat:
    """Counts of `layers` x `slots`. Kept from one attachment to the next: graphs add into them.

    forwards: int64 of no dimensions on the device, those counted so far: as many on every rank.
    """

    def __init__(self, layers: int, slots: int, device: torch.device) -> None:
        self.counters = TorchCounters(layers, slots, device=device)
        self.forwards = torch.zeros((), dtype=torch.int64, device=device)
        self._routed = self.counters.pass_routed[0]

    def take(self, layers: Sequence[MoeLayer]) -> None:
        """Let the routers of these layers count here."""
        for layer, row in zip(layers, self.counters.pass_counts, strict=True):
            state = layer.eplb_state
            assert state is not None  # noqa: S101 - of_layers
            state.expert_load_view = row

    def collect(self) -> None:
        """See `eplbd_vllm.torch_guest.Heat`: what was routed is the sum of what was sent."""
        torch.sum(self.counters.pass_counts, dim=(0, 1), out=self._routed)
        self.forwards.add_(1)

    def drop(self) -> None:
        """See `eplbd_vllm.torch_guest.Heat`."""
        self.counters.drop()
        self.forwards.add_(1)

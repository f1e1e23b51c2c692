"""The processes behind `ranks.ProcessStage`: real torch tensors, a real store, a real transport."""

import os
from datetime import timedelta
from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from eplbd.worker.executor import Executor
from eplbd.worker.torch_experts import ExpertTensors, SlotTensors
from eplbd.worker.torch_p2p import Route, TorchP2PExecutor
from tests.worker import weights
from tests.worker.ranks import DEADLINE_S, Setting, answer

TIMEOUT = timedelta(seconds=DEADLINE_S)


class FaultyExperts(ExpertTensors):
    """Experts of which one slot of layer 0 cannot be read, as if its memory were gone."""

    faulty_slot = -1

    def parts(self, layer: int, slot: int) -> list[Tensor]:
        if layer == 0 and slot == self.faulty_slot:
            raise RuntimeError("this slot cannot be read")
        return super().parts(layer, slot)


class ProcessRank:
    """A rank with torch weights."""

    def __init__(self, setting: Setting, rank: int, ranks: int, store: Store) -> None:
        self.rank, self.ranks = rank, ranks
        self.store = store
        self._barriers = 0
        device = torch.device("cpu")
        if "cuda" in setting.kind:
            device = torch.device("cuda", rank % torch.cuda.device_count())
        layers = weights.LAYERS - (rank == setting.odd_rank)
        self.experts = FaultyExperts([tensors_of(rank, layer, device) for layer in range(layers)])
        if rank == 0:
            self.experts.faulty_slot = setting.faulty_slot
        self._torch = TorchP2PExecutor(
            self.experts,
            store,
            rank,
            ranks,
            experts_per_rank=setting.experts_per_rank,
            route=Route.HOST if "host" in setting.kind else Route.DEVICE,
            timeout_s=setting.timeout_s,
        )
        self.executor: Executor = self._torch

    def contents(self, layer: int, slot: int) -> dict[str, bytes]:
        parts = ExpertTensors.parts(self.experts, layer, slot)
        pairs = zip(self.experts.names(layer), parts, strict=True)
        return {name: part.cpu().numpy().tobytes() for name, part in pairs}

    def staging(self, buffer: int) -> NDArray[np.uint8]:
        """The buffer's first tensor: a view, where the device is the CPU."""
        first = weights.specs_of(0)[0]
        size = len(weights.slot_bytes(0, 0, 0, first))
        view: NDArray[np.uint8] = self._torch.staging(buffer)[256 : 256 + size].numpy()
        return view

    def barrier(self) -> None:
        self._barriers += 1
        key = f"barrier{self._barriers}"
        if self.store.add(key, 1) == self.ranks:
            self.store.set(f"{key}/open", "1")
        self.store.wait([f"{key}/open"], TIMEOUT)


def tensors_of(rank: int, layer: int, device: torch.device) -> dict[str, SlotTensors]:
    """The tensors that `weights` describes."""
    named: dict[str, SlotTensors] = {}
    for spec in weights.specs_of(layer):
        bits = torch.from_numpy(weights.stacked(rank, layer, spec).view(np.uint8).reshape(-1))
        tensor = bits.view(getattr(torch, spec.dtype)).view(weights.SLOTS, *spec.shape).to(device)
        named[spec.name] = tensor if spec.stacked else [each.clone() for each in tensor]
    return named


def serve_store() -> tuple[Store, int]:
    """Start the store that all plays share, below different prefixes."""
    store = TCPStore("127.0.0.1", 0, None, True, TIMEOUT, wait_for_workers=False)
    return store, store.port


def serve(pipe: Connection, port: int) -> None:
    """Play scenarios until the pipe closes."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    base = TCPStore("127.0.0.1", port, None, False, TIMEOUT)
    while True:
        try:
            play, setting, rank, ranks, scenario, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        store = PrefixStore(f"play{play}", base)

        def perform() -> object:
            return scenario(ProcessRank(setting, rank, ranks, store), *arguments)  # noqa: B023

        answer(pipe, perform)

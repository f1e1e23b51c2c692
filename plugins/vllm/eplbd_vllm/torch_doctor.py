"""The checks of `eplbd-vllm doctor` that need torch: devices, staging, private formats, transport.

Owns one function per check, each of which returns what it found or raises what is wrong. With
devices, ranks are processes, as an engine's are: not every device's library serves two in one.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from eplbd.core.rounds import Col
from eplbd.worker.executor import RankWork
from eplbd.worker.torch_experts import ExpertTensors, Images
from eplbd.worker.torch_p2p import Route, TorchP2PExecutor
from eplbd_vllm.ascend.torch_formats import NpuImages

_PATIENCE_S = 60.0
_PATIENCE = timedelta(seconds=_PATIENCE_S)
_SHAPE = (128, 256)
_NZ = 29


def devices() -> str:
    """Every accelerator that torch has."""
    found = device_count()
    if not found:
        return f"torch {torch.__version__}: no accelerator, this is a CPU"
    kind = accelerator()
    return f"torch {torch.__version__}: {found} {kind}"


def accelerator() -> str:
    """Type of the accelerator; `cpu` where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def device_count() -> int:
    """How many there are."""
    return 0 if accelerator() == "cpu" else torch.accelerator.device_count()


def staging() -> str:
    """An expert goes from one slot to another through staging memory, sealed and verified."""
    device = torch.device(accelerator())
    weights = _weights(device, 0)
    executor = TorchP2PExecutor(
        ExpertTensors([weights]), _store(), 0, 1, timeout_s=_PATIENCE_S, route=Route.DEVICE
    )
    _move(executor, 0, [(0, 0, 0, 0, 0, -1, 0, 1, 0)])
    for name, tensor in weights.items():
        if not torch.equal(_flat(tensor[0]), _flat(tensor[1])):
            raise RuntimeError(f"{name} differs after its copy")
    return f"{executor.statistics().bytes_copied} B copied on {device.type}, checksums agree"


def transport(name: str) -> str:
    """Two ranks, one expert each way, bytes compared. name: of a `Route`."""
    route = Route(name)
    count = device_count()
    if accelerator() != "cpu" and count < 2:
        raise RuntimeError(f"{count} device: two are needed, or two ranks on two machines")
    store = _tcp(0, is_host=True)
    with _pool() as pool:
        playing = [pool.submit(_exchange, store.port, rank, route) for rank in range(2)]
        moved = sum(each.result(2 * _PATIENCE_S) for each in playing)
    return f"{moved} B between 2 ranks, checksums agree"


def private_formats() -> str:
    """A weight in FRACTAL_NZ is read as its contents, and written in place."""
    npu = importlib.import_module("torch_npu")
    images: Images = NpuImages(npu)
    source, target = (
        npu.npu_format_cast(torch.randint(-8, 8, _SHAPE, dtype=torch.int8, device="npu"), _NZ)
        for _ in range(2)
    )
    if npu.get_npu_format(source) != _NZ:
        raise RuntimeError("npu_format_cast does not make FRACTAL_NZ: is internal format allowed?")
    address = target.data_ptr()
    there, here = images.write(target, images.read(source))
    there.copy_(here)
    if not torch.equal(images.read(source), images.read(target)):
        raise RuntimeError("contents differ: experts of W8A8 and W4A8 cannot be moved here")
    if (target.data_ptr(), npu.get_npu_format(target)) != (address, _NZ):
        raise RuntimeError(
            "the weight has moved, or lost its format: captured graphs would miss it"
        )
    return "FRACTAL_NZ is read and written in place"


def _pool() -> Executor:
    if accelerator() == "cpu":
        return ThreadPoolExecutor(2)
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))


def _exchange(port: int, rank: int, route: Route) -> int:
    store = _tcp(port, is_host=False)
    device = torch.device(accelerator())
    if device.type != "cpu":
        device = torch.device(device.type, rank)
    weights = _weights(device, rank)
    executor = TorchP2PExecutor(
        ExpertTensors([weights]), store, rank, 2, timeout_s=_PATIENCE_S, route=route
    )
    rows = [(0, 0, src, src, 0, -1, 1 - src, 1, 0) for src in range(2)]
    _move(executor, rank, rows)
    for name, tensor in _weights(torch.device("cpu"), 1 - rank).items():
        if not torch.equal(_flat(tensor[0]), _flat(weights[name][1].cpu())):
            raise RuntimeError(f"{name} differs after its journey")
    return executor.statistics().bytes_received


def _move(executor: TorchP2PExecutor, rank: int, rows: Sequence[tuple[int, ...]]) -> None:
    table = np.array(rows, dtype=np.int32).reshape(-1, len(Col))
    executor.renew(0)
    executor.reserve(RankWork(rank, 1, table))
    executor.stage(0)
    executor.verify()
    executor.commit()
    if accelerator() != "cpu":
        torch.accelerator.synchronize()


def _weights(device: torch.device, rank: int) -> dict[str, torch.Tensor]:
    """Weights and scales of two slots, the same on every machine."""
    source = torch.Generator().manual_seed(rank)
    weight = torch.randint(-8, 8, (2, *_SHAPE), dtype=torch.int8, generator=source)
    scale = torch.rand((2, _SHAPE[0]), generator=source)
    return {"weight": weight.to(device), "scale": scale.to(device)}


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _tcp(port: int, *, is_host: bool) -> TCPStore:
    return TCPStore("127.0.0.1", port, None, is_host, _PATIENCE, wait_for_workers=False)


def _store() -> Store:
    store = HashStore()
    store.set_timeout(_PATIENCE)
    return PrefixStore("doctor", store)

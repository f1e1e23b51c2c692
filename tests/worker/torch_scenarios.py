"""What ranks do in tests of the torch executor alone, of lanes and of the decision register."""

import time
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch._C._distributed_c10d import PrefixStore, ProcessGroup, ProcessGroupGloo

from eplbd.core.messages import Verdict
from eplbd.errors import TransferError
from eplbd.worker.torch_experts import ExpertTensors
from eplbd.worker.torch_p2p import TorchP2PExecutor
from eplbd.worker.torch_register import TorchRegister
from tests.worker.ranks import Row, work_of
from tests.worker.scenarios import Outcome, close, finish, run_rounds
from tests.worker.torch_ranks import ProcessRank


def failing_alone(rank: ProcessRank, bad: Sequence[Row], good: Sequence[Row]) -> Outcome:
    """An epoch that one rank cannot read its part of, between two in the same lane that work."""
    outcome = Outcome()
    rank.executor.renew(0)
    for rows in (good, bad, good):
        run_rounds(rank, rows, outcome)
        finish(rank, outcome, "commit")
        outcome.errors.append(f"broken: {rank.executor.lane_broken}")
        rank.barrier()
    return close(rank, outcome)


def lonely(rank: ProcessRank, missing: int) -> tuple[str, float, str]:
    """Renew without one rank, then with it: complaint, its seconds, complaint of the second."""
    start, first, second = time.monotonic(), "", ""
    if rank.rank != missing:
        try:
            rank.executor.renew(1)
        except TransferError as error:
            first = str(error)
    seconds = time.monotonic() - start
    rank.barrier()
    try:
        rank.executor.renew(2)
    except TransferError as error:
        second = str(error)
    rank.barrier()
    return first, seconds, second


def inference(rank: ProcessRank) -> list[float]:
    """Move one expert between weights that were made under inference mode."""
    with torch.inference_mode():
        weight = torch.full((2, 16), float(rank.rank))
    executor = TorchP2PExecutor(
        ExpertTensors([{"w": weight}]), rank.store, rank.rank, rank.ranks, timeout_s=5.0
    )
    executor.renew(7)
    executor.reserve(work_of(rank.rank, [(0, 0, 0, 0, 0, -1, 1, 1, 0)]))
    executor.stage(0)
    executor.verify()
    address = weight.data_ptr()
    executor.commit()
    assert weight.data_ptr() == address
    rank.barrier()
    rows: list[float] = weight[:, 0].tolist()
    return rows


def contend(rank: ProcessRank, keys: int) -> list[str]:
    """Ask for the same keys as all others, at the same time, wanting different verdicts."""
    wanted = (Verdict.COMMIT, Verdict.ABORT)
    with TorchRegister(rank.store) as register:
        rank.barrier()
        return [
            register.decide(f"epoch{key}", wanted[(key + rank.rank) % 2], deadline_s=20.0).value
            for key in range(keys)
        ]


def exchange_time(
    rank: ProcessRank, sizes: Sequence[int], repeats: int
) -> list[tuple[float, float]]:
    """Move an expert from rank 0 to 1: seconds to stage and verify, seconds of bare messages."""
    layer = {
        f"{index}": torch.zeros(2, size, dtype=torch.uint8) for index, size in enumerate(sizes)
    }
    executor = TorchP2PExecutor(ExpertTensors([layer]), rank.store, rank.rank, rank.ranks)
    executor.renew(0)
    store = PrefixStore("bare", rank.store)
    group = ProcessGroupGloo(store, rank.rank, rank.ranks, timedelta(seconds=20))
    lane = ProcessGroup(store, rank.rank, rank.ranks)
    lane._set_default_backend(ProcessGroup.BackendType.GLOO)  # noqa: SLF001 (as the lane does)
    lane._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, group)  # noqa: SLF001
    found = []
    for _ in range(repeats):
        rank.barrier()
        start = time.perf_counter()
        executor.reserve(work_of(rank.rank, [(0, 0, 0, 0, 0, -1, 1, 1, 0)]))
        executor.stage(0)
        executor.verify()
        staged = time.perf_counter() - start
        executor.commit()
        rank.barrier()
        start = time.perf_counter()
        issue = lane.recv if rank.rank else lane.send
        parts = [tensor[rank.rank] for tensor in layer.values()]
        works = [issue([part], 1 - rank.rank, tag) for tag, part in enumerate(parts)]
        for work in works:
            work.wait()
        found.append((staged, time.perf_counter() - start))
    return found

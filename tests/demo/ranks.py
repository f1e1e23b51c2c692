"""Runs a function on real ranks: one process each, process groups over gloo, results returned."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from eplbd.demo.twin import Groups

Finding = TypeVar("Finding")

DEADLINE_S = 90.0


def on_ranks(ranks: int, observe: Callable[[Groups], Finding]) -> list[Finding]:
    """Call `observe` on every rank at once; what rank r found is at index r.

    `observe` has to be importable: a function of a module, not a lambda.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool,
    ):
        meeting = Path(folder) / "meeting"
        calls = [pool.submit(_join, meeting, rank, ranks, observe) for rank in range(ranks)]
        return [call.result(DEADLINE_S) for call in calls]


def _join(meeting: Path, rank: int, ranks: int, observe: Callable[[Groups], Finding]) -> Finding:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    try:
        live, twin = (dist.new_group(backend="gloo") for _ in range(2))
        assert isinstance(live, dist.ProcessGroup)
        assert isinstance(twin, dist.ProcessGroup)
        return observe(Groups(live, twin))
    finally:
        dist.destroy_process_group()

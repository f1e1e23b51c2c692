"""The demo's model on several nodes: one rank, as `torchrun` starts it, beside its node's daemon.

    torchrun --nnodes 3 --nproc-per-node 2 ... -m eplbd.demo.spread --socket ipc:///PATH

Serves for some time and compares every output with the twin's; rank 0 writes what came of it, and
every rank's status is 0 if outputs were identical and an epoch settled. The daemons are started by
whoever starts this. Owns the meeting of the ranks and the verdict; must not know daemons.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import click
import torch
import torch.distributed as dist

# `torch.distributed` passes it on without telling type checkers.
from torch._C._distributed_c10d import TCPStore

from eplbd.core.messages import Dispatch
from eplbd.demo import reports as r
from eplbd.demo.settings import EXPERTS_PER_RANK, Options, plan_of
from eplbd.demo.twin import Groups
from eplbd.demo.worker import (
    BLOCK_STEPS,
    MEETING,
    Block,
    Rank,
    agreed_to_stop,
    grouped,
    load,
    take_step,
)

STORE_PORTS_ON = 1
"""The group's store is served beside torchrun's own, at the port behind it."""

SAY_EVERY = 50
"""Steps."""


@contextmanager
def met(rank: int, ranks: int) -> Iterator[tuple[Groups, TCPStore]]:
    """Meet the other ranks where torchrun says that the first one is."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + STORE_PORTS_ON
    store = TCPStore(host, port, ranks, rank == 0, MEETING, wait_for_workers=False)
    with grouped(store, rank, ranks) as groups:
        yield groups, store


def serve(rank: Rank, seconds: float) -> tuple[int, int]:
    """Take steps for so long; how many that were, and how many outputs were not the twin's."""
    first_rank, until, wrong = rank.assignment.rank == 0, time.monotonic() + seconds, 0
    for first in count(0, BLOCK_STEPS):
        if agreed_to_stop(rank, stop=time.monotonic() > until):
            return first, wrong
        block = Block(rank.assignment.rank, first)
        for step in range(first, first + BLOCK_STEPS):
            take_step(rank, step, block)
        wrong += sum(not taken.identical for taken in block.taken)
        if first_rank and first % SAY_EVERY == 0:
            machine = rank.agent.machine
            follows = "follows its daemon" if machine.connected else "serves alone"
            click.echo(f"step {first}: epoch {machine.epoch}, {follows}")
    raise AssertionError


def verdict(rank: Rank, steps: int, wrong: int) -> bool:
    """Agree with all ranks on what came of it, and let the first one say it."""
    wrong_anywhere = torch.tensor([wrong])
    dist.all_reduce(wrong_anywhere, group=rank.groups.twin)
    epoch = torch.tensor([rank.agent.machine.epoch])
    dist.all_reduce(epoch, op=dist.ReduceOp.MIN, group=rank.groups.twin)
    identical = not wrong_anywhere.item()
    if rank.assignment.rank == 0:
        click.echo(
            f"{steps} steps on {rank.assignment.shape.ranks} ranks: outputs "
            f"{'identical to' if identical else 'DIFFER FROM'} the twin's, "
            f"{int(epoch.item())} epochs settled on all"
        )
    return identical and epoch.item() > 0


@click.command()
@click.option("--socket", required=True, help="Endpoint of this node's daemon: ipc:///PATH")
@click.option("--seconds", default=60.0, show_default=True, help="How long to serve.")
@click.option("--seed", default=0, show_default=True)
def main(socket: str, seconds: float, seed: int) -> None:
    """Serve one rank of the demo's model."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    plan = plan_of(Options(ranks=ranks, seed=seed))
    assignment = r.Assignment(
        rank=rank,
        shape=plan.shape,
        dispatch=Dispatch.ALL_TO_ALL,
        socket=socket,
        seed=seed,
        topic_steps=plan.topic_steps,
        trace="",
        experts_per_rank=EXPERTS_PER_RANK,
    )
    torch.set_num_threads(1)
    with met(rank, ranks) as (groups, store), ExitStack() as stack:
        loaded = load(assignment, groups, store, stack)
        fine = verdict(loaded, *serve(loaded, seconds))
        stack.close()
        # Rank 0 serves the store, and an agent that leaves may still have to ask it.
        dist.barrier(group=groups.twin)
    sys.exit(not fine)


if __name__ == "__main__":
    main()

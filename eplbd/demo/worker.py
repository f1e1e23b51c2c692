"""One rank of the demo: a process that serves its part of the model, with eplbd's agent beside it.

    python -m eplbd.demo.worker

Orders come as lines on stdin, reports leave as lines on stdout (`reports`); what libraries print
goes to stderr. Owns the process group, the agreement on when to stop and the loop of steps. It must
not know the daemon, the other ranks' figures or what anybody makes of them.

A worker does not outlive the run: it ends when stdin does, and is killed should the run be killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from io import RawIOBase
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist

# `torch.distributed` passes it on without telling type checkers.
from torch._C._distributed_c10d import TCPStore

from eplbd.core.placement import Placement
from eplbd.demo import reports as r
from eplbd.demo.leash import hold
from eplbd.demo.maps import BrokenEntry
from eplbd.demo.model import Counters
from eplbd.demo.trace import load_routing
from eplbd.demo.traffic import Schedule, Traffic
from eplbd.demo.twin import Groups, Pair, StepTaken
from eplbd.errors import EplbdError
from eplbd.worker.agent import AgentThread
from eplbd.worker.torch_attach import Membership, attach
from eplbd.worker.torch_experts import ExpertTensors
from eplbd.worker.torch_p2p import TorchP2PExecutor
from eplbd.worker.torch_ring import TorchCounters

BLOCK_STEPS = 5
"""Steps between two agreements on whether to go on, and between two reports. Odd: live and twin
take turns at being first, and so at being the one that such a pause favours."""

MEETING = timedelta(seconds=60)
"""Four imports of torch on two busy cores take ten seconds; longer than this is a fault."""


class Orders:
    """What the run has asked for so far; read on a thread of its own."""

    def __init__(self, source: RawIOBase) -> None:
        self._source = source
        self.stop = self.broken = False
        self.assignment = self._expect(r.Assignment)

    def meet(self) -> int:
        """The port of the store; from then on orders are read as they come."""
        port = self._expect(r.Meet).port
        threading.Thread(target=self._read, name="orders", daemon=True).start()
        return port

    def _expect(self, kind: type[r.AnyOrder]) -> r.AnyOrder:
        order = r.ORDERS.decode(self._source.readline())
        if not isinstance(order, kind):
            raise TypeError(f"expected {kind.__name__}, got {order}")
        return order

    def _read(self) -> None:
        for line in self._source:
            match r.ORDERS.decode(line):
                case r.Stop():
                    self.stop = True
                case r.Break():
                    self.broken = True
        # The run is gone: nobody is left to serve for, and the peers hear of it from the kernel.
        os._exit(1)


class Reporter:
    """Where reports go: what was stdout when the process began."""

    def __init__(self) -> None:
        self._file = os.dup(1)
        os.dup2(2, 1)

    def say(self, report: r.Report) -> None:
        """Write a report."""
        rest = memoryview(r.line(report))
        while rest:
            rest = rest[os.write(self._file, rest) :]


@dataclass(slots=True)
class Block:
    """Steps that wait to be reported."""

    rank: int
    first: int
    topics: list[str] = field(default_factory=list)
    staging: list[bool] = field(default_factory=list)
    committed: list[bool] = field(default_factory=list)
    taken: list[StepTaken] = field(default_factory=list)

    def report(self) -> r.Steps:
        """As it travels."""
        taken = self.taken
        return r.Steps(
            rank=self.rank,
            first=self.first,
            topics=self.topics,
            identical=[step.identical for step in taken],
            staging=self.staging,
            committed=self.committed,
            live_s=[step.live_s for step in taken],
            twin_s=[step.twin_s for step in taken],
            hook_s=[step.hook_s for step in taken],
            live_load=[step.live_load for step in taken],
            twin_load=[step.twin_load for step in taken],
        )


@dataclass(frozen=True, slots=True)
class Rank:
    """Everything of one rank that serves."""

    assignment: r.Assignment
    groups: Groups
    pair: Pair
    traffic: Traffic
    executor: TorchP2PExecutor
    agent: AgentThread


def serve(orders: Orders, reporter: Reporter) -> None:
    """Join the group, take steps until told to stop, leave in order."""
    assignment = orders.assignment
    with joined(orders, reporter) as (groups, store), ExitStack() as stack:
        rank = load(assignment, groups, store, stack)
        reporter.say(r.Attached(assignment.rank))
        steps = take_steps(rank, orders, reporter)
        stack.close()
        sent = rank.agent.statistics()
        # Rank 0 serves the store, and an agent that leaves may still have to ask it.
        dist.barrier(group=groups.twin)
        reporter.say(r.Left(assignment.rank, steps, sent.dropped))


@contextmanager
def joined(orders: Orders, reporter: Reporter) -> Iterator[tuple[Groups, TCPStore]]:
    """Meet the other ranks on this machine."""
    rank, ranks = orders.assignment.rank, orders.assignment.shape.ranks
    here = "127.0.0.1"
    if rank == 0:
        store = TCPStore(here, 0, ranks, is_master=True, timeout=MEETING, wait_for_workers=False)
        reporter.say(r.Serving(store.port))
        orders.meet()
    else:
        store = TCPStore(here, orders.meet(), ranks, is_master=False, timeout=MEETING)
    with grouped(store, rank, ranks) as groups:
        yield groups, store


@contextmanager
def grouped(store: TCPStore, rank: int, ranks: int) -> Iterator[Groups]:
    """Be a member of the world that meets in `store`, and of the groups in it."""
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=MEETING)
    try:
        live, twin = (dist.new_group(backend="gloo") for _ in range(2))
        if not isinstance(live, dist.ProcessGroup) or not isinstance(twin, dist.ProcessGroup):
            raise TypeError("a rank of the world is a member of its groups")
        yield Groups(live, twin)
    finally:
        dist.destroy_process_group()


def load(assignment: r.Assignment, groups: Groups, store: TCPStore, stack: ExitStack) -> Rank:
    """Make the model and its twin, and put eplbd beside it: the part that any engine has."""
    shape, dispatch, rank = assignment.shape, assignment.dispatch, assignment.rank
    placement = Placement.linear(shape.layers, shape.experts, shape.ranks, shape.slots_per_rank)
    trace = load_routing(Path(assignment.trace)).thinned(shape.layers) if assignment.trace else None
    schedule = Schedule(steps=assignment.topic_steps, seed=assignment.seed)
    traffic = Traffic(shape, dispatch, rank, schedule, trace)

    counters = TorchCounters(shape.layers, shape.slots_per_rank, device=torch.device("cpu"))
    counts = Counters(counters.pass_counts, counters.pass_routed)
    pair = Pair(shape, dispatch, groups, placement, seed=assignment.seed, counters=counts)
    experts = ExpertTensors([layer.named() for layer in pair.live.experts.layers])
    executor = TorchP2PExecutor(
        experts, store, rank, shape.ranks, experts_per_rank=assignment.experts_per_rank
    )
    membership = Membership("demo", rank, shape.ranks, store, dispatch, weighted=True)
    agent = attach(stack, assignment.socket, membership, placement, executor, pair.live, counters)
    return Rank(assignment, groups, pair, traffic, executor, agent)


def take_steps(rank: Rank, orders: Orders, reporter: Reporter) -> int:
    """Serve until all ranks have agreed to stop; return how many steps that took."""
    vandal = Vandal(rank, reporter)
    for first in count(0, BLOCK_STEPS):
        if agreed_to_stop(rank, stop=orders.stop):
            return first
        block = Block(rank.assignment.rank, first)
        for step in range(first, first + BLOCK_STEPS):
            if orders.broken:
                vandal.strike(step)
            take_step(rank, step, block)
            vandal.look(block.taken[-1])
        reporter.say(block.report())
    raise AssertionError


class Vandal:
    """Makes one entry of this rank's maps wrong, and again until the outputs show it.

    The first time may not do: an epoch that flips at the very next forward writes its layers' maps
    anew.
    """

    def __init__(self, rank: Rank, reporter: Reporter) -> None:
        self._rank, self._reporter = rank, reporter
        self._layer = rank.assignment.shape.layers // 2
        self._entry: BrokenEntry | None = None
        self._seen = False

    def strike(self, step: int) -> None:
        """Break the entry, unless it is broken or has been seen to be."""
        entry, maps = self._entry, self._rank.pair.live.maps
        if self._seen or (entry and entry.was not in maps.physical[entry.layer, entry.expert]):
            return
        self._entry = entry = self._rank.pair.break_map(self._layer)
        report = r.Broke(self._rank.assignment.rank, step, entry.layer, entry.expert)
        self._reporter.say(report)

    def look(self, taken: StepTaken) -> None:
        """Take notice of what a step gave."""
        self._seen = self._seen or (self._entry is not None and not taken.identical)


def take_step(rank: Rank, step: int, block: Block) -> None:
    """Serve one step."""
    hook, executor = rank.agent.hook, rank.executor
    batch = rank.traffic.batch(step)
    staging, commits = hook.staging, executor.statistics().commits
    block.taken.append(rank.pair.step(batch, hook))
    block.staging.append(staging or hook.staging)
    block.committed.append(executor.statistics().commits > commits)
    block.topics.append(rank.traffic.label(step))


def agreed_to_stop(rank: Rank, *, stop: bool) -> bool:
    """Whether rank 0 has been told to stop. Collective."""
    word = torch.tensor([stop])
    dist.broadcast(word, 0, group=rank.groups.twin)
    return bool(word)


def main() -> int:
    """Run one rank."""
    hold(signal.SIGKILL)
    # The terminal sends Ctrl-C to all its processes; the run decides what that means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    reporter = Reporter()
    # Unbuffered: a buffer's lock that the reading thread holds is fatal when the process ends.
    orders = Orders(open(0, "rb", buffering=0, closefd=False))  # noqa: SIM115
    try:
        serve(orders, reporter)
    except (EplbdError, RuntimeError) as error:
        # RuntimeError: what torch raises when a peer is gone.
        if not isinstance(error, EplbdError):
            traceback.print_exc()
        fault = " ".join(str(error).split())
        reporter.say(r.Failed(orders.assignment.rank, fault, isinstance(error, EplbdError)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One rank of a group under test, a process: `python -m tests.chaos.worker`.

Runs forwards of the live model and its twin without a pause, the agent attached as an engine would
attach it, and obeys `control.Command`s between two of them. What it must prove it measures itself:
every output against the twin's, every gap between forwards, every map that comes into force.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from eplbd.core.messages import Dispatch, Verdict
from eplbd.core.placement import Placement
from eplbd.demo.maps import ReplicaMaps
from eplbd.demo.model import Batch, Counters
from eplbd.demo.shape import Shape
from eplbd.demo.traffic import Schedule, Traffic
from eplbd.demo.twin import Groups, Pair
from eplbd.traces.archive import HeatTrace
from eplbd.worker import torch_attach
from eplbd.worker.hook import ForwardHook
from eplbd.worker.torch_experts import ExpertTensors
from eplbd.worker.torch_p2p import TorchP2PExecutor
from eplbd.worker.torch_ring import TorchCounters
from tests.chaos import control as c
from tests.chaos import faults as f

EXPERTS, SLOTS = 8, 12
BATCHES_PER_WINDOW = 6
MEETING = timedelta(seconds=60)
ANSWER_S = 20.0
WRONG_KEPT = 20
FLIPS_KEPT = 40


def shape_of(ranks: int) -> Shape:
    """A model so small that a forward is over in milliseconds."""
    return Shape(
        layers=2,
        experts=EXPERTS,
        topk=2,
        ranks=ranks,
        slots_per_rank=SLOTS // ranks,
        hidden=32,
        ffn=32,
        tokens=16,
        vocabulary=512,
        context=8,
        tile=8,
    )


def shifting(shape: Shape) -> HeatTrace:
    """One expert of each layer takes nearly half of the heat, another one in each window.

    It wants a replica on every rank, and there is no room to replicate all of them: no placement is
    good for more than a few windows.
    """
    heat = np.full((EXPERTS, shape.layers, EXPERTS), 8, dtype=np.int64)
    for window in range(EXPERTS):
        for layer in range(shape.layers):
            heat[window, layer, (3 * window + layer) % EXPERTS] = 42
    return HeatTrace(heat, shape.topk, ("",) * len(heat), {})


@dataclass
class Watch:
    """What the forward's thread saw; other threads read it."""

    flips: list[c.Flip] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    max_gap_s: float = 0.0
    gap_at: int = 0
    max_hook_s: float = 0.0
    hook_at: int = 0
    max_twin_s: float = 0.0
    began: float = 0.0

    def forget(self) -> None:
        self.max_gap_s = self.max_hook_s = self.max_twin_s = 0.0


class TimedHook:
    """The agent's hook with a watch."""

    def __init__(self, hook: ForwardHook, watch: Watch) -> None:
        self._hook, self._watch = hook, watch

    def before_forward(self) -> None:
        began = time.perf_counter()
        watch = self._watch
        if watch.began and began - watch.began > watch.max_gap_s:
            watch.max_gap_s, watch.gap_at = began - watch.began, self._hook.forward + 1
        watch.began = began
        self._hook.before_forward()
        self._took(time.perf_counter() - began)

    def after_forward(self, tokens: int, *, dummy: bool = False) -> None:
        began = time.perf_counter()
        self._hook.after_forward(tokens, dummy=dummy)
        self._took(time.perf_counter() - began)

    def _took(self, hook_s: float) -> None:
        if hook_s > self._watch.max_hook_s:
            self._watch.max_hook_s, self._watch.hook_at = hook_s, self._hook.forward


class Worker:
    """The parts of one rank."""

    def __init__(self, stack: ExitStack, setting: c.Setting, store: TCPStore) -> None:
        rank, ranks = setting.rank, setting.ranks
        self.setting, self.watch, self.faults = setting, Watch(), f.Faults()
        self.shape = shape = shape_of(ranks)
        dispatch = Dispatch(setting.dispatch)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        live, twin = (dist.new_group(backend="gloo") for _ in range(2))
        assert isinstance(live, dist.ProcessGroup)
        assert isinstance(twin, dist.ProcessGroup)
        start = Placement.linear(shape.layers, shape.experts, ranks, shape.slots_per_rank)
        ring = TorchCounters(shape.layers, shape.slots_per_rank, device=torch.device("cpu"))
        counters = Counters(ring.pass_counts, ring.pass_routed)
        self.pair = Pair(shape, dispatch, Groups(live, twin), start, counters=counters)
        self.batches = self._batches(dispatch)
        experts = ExpertTensors([layer.named() for layer in self.pair.live.experts.layers])
        real = TorchP2PExecutor(experts, store, rank, ranks, timeout_s=setting.transfer_timeout_s)
        self.executor = f.FaultyExecutor(real, rank, self.faults)
        engine = f.FaultyEngine(self.pair.live, self.faults, self._wrote)
        # What `attach` puts together stays as it is, but for two parts that may fail on demand.
        vars(torch_attach).update(
            AgentThread=partial(f.TroubledAgent, self.faults),
            TorchRegister=partial(f.SlowRegister, self.faults),
        )
        membership = torch_attach.Membership(setting.group, rank, ranks, store, dispatch)
        agent = torch_attach.attach(
            stack, setting.socket, membership, start, self.executor, engine, ring
        )
        assert isinstance(agent, f.TroubledAgent)
        self.agent = agent
        self.watch.flips.append(c.Flip(1, 0, start.digest))
        self.register_s = 0.0
        self.leave_at = sys.maxsize
        self._audit: tuple[int, threading.Event, list[c.Report]] | None = None

    # --- the forward's thread -------------------------------------------------------------------

    def serve(self) -> None:
        """Run forwards until it is time to leave."""
        hook = TimedHook(self.agent.hook, self.watch)
        while (forward := self.agent.hook.forward + 1) < self.leave_at:
            began = time.perf_counter()
            self._answer_audit(forward)
            window, turn = divmod(forward, c.WINDOW_FORWARDS)
            batches = self.batches[window % len(self.batches)]
            taken = self.pair.step(batches[turn % len(batches)], hook)
            self.watch.max_twin_s = max(self.watch.max_twin_s, taken.twin_s)
            if not taken.identical and len(self.watch.wrong) < WRONG_KEPT:
                self.watch.wrong.append(forward)
            time.sleep(max(0.0, self.setting.period_s - (time.perf_counter() - began)))

    def _batches(self, dispatch: Dispatch) -> list[list[Batch]]:
        """Made beforehand, so that a step costs its forwards and nothing else."""
        trace = shifting(self.shape)
        schedule = Schedule(steps=BATCHES_PER_WINDOW)
        traffic = Traffic(self.shape, dispatch, self.setting.rank, schedule, trace)
        return [
            [traffic.batch(window * BATCHES_PER_WINDOW + i) for i in range(BATCHES_PER_WINDOW)]
            for window in range(trace.windows)
        ]

    def _wrote(self, epoch: int) -> None:
        forward = self.agent.hook.forward
        self.watch.flips.append(c.Flip(forward, epoch, self._map_in_force().digest))

    def _map_in_force(self) -> Placement:
        slots = self.pair.live.maps.slot_expert.numpy().copy()
        return Placement(slots, self.shape.experts)

    def _tables_right(self) -> bool:
        """Whether the routing tables are those of the slots' contents, as the map has them."""
        maps = self.pair.live.maps
        expected = ReplicaMaps(self.shape, self._map_in_force())
        return maps.physical.equal(expected.physical) and maps.replica_count.equal(
            expected.replica_count
        )

    def _answer_audit(self, forward: int) -> None:
        audit = self._audit
        if audit is not None and forward >= audit[0]:
            self._audit = None
            audit[2].append(self.report(tables_right=self._tables_right()))
            audit[1].set()

    # --- the control thread ---------------------------------------------------------------------

    def obey(self, command: c.Command) -> c.Report:
        match command:
            case c.Tell():
                pass
            case c.Audit(at):
                return self._audited(at)
            case c.Forget():
                self.watch.forget()
            case c.Inject(fault, seconds):
                self.faults.inject(fault, seconds)
            case c.RoundTrip():
                self._ask_register()
            case c.Leave(at):
                self.leave_at = at
        return self.report()

    def _audited(self, at: int) -> c.Report:
        done, found = threading.Event(), list[c.Report]()
        self._audit = at, done, found
        if not done.wait(ANSWER_S):
            raise RuntimeError(f"forward {at} did not come within {ANSWER_S} s")
        return found[0]

    def _ask_register(self) -> None:
        for turn in range(10):
            began = time.perf_counter()
            key = f"chaos/{self.setting.rank}/{turn}"
            self.agent.register.decide(key, Verdict.ABORT, deadline_s=ANSWER_S)
            self.register_s = max(self.register_s, time.perf_counter() - began)

    def report(self, *, tables_right: bool | None = None) -> c.Report:
        machine, watch, figures = self.agent.machine, self.watch, self.executor.statistics()
        return c.Report(
            rank=self.setting.rank,
            forward=self.agent.hook.forward,
            epoch=machine.epoch,
            term=machine.term,
            digest=machine.placement.digest,
            standing=str(machine.standing),
            connected=machine.connected,
            agent_alive=self.agent.alive,
            map_digest=self._map_in_force().digest,
            tables_right=tables_right,
            flips=watch.flips[-FLIPS_KEPT:],
            wrong=list(watch.wrong),
            max_gap_s=watch.max_gap_s,
            gap_at=watch.gap_at,
            max_hook_s=watch.max_hook_s,
            hook_at=watch.hook_at,
            max_twin_s=watch.max_twin_s,
            struck=list(self.faults.struck),
            lane=figures.lane,
            failures=figures.failures,
            rounds=figures.rounds,
            commits=figures.commits,
            garbled=self.agent.statistics().garbled,
            register_s=self.register_s,
        )


def commands() -> Iterator[bytes]:
    """Lines of standard input; their end is the end of the test that started this process."""
    yield from iter(sys.stdin.buffer.readline, b"")
    os._exit(3)


def say(answer: msgspec.Struct | dict[str, int]) -> None:
    """Write one line."""
    os.write(1, msgspec.json.encode(answer) + b"\n")


def listen(worker: Worker) -> None:
    """Obey, one command after the other."""
    decoder = msgspec.json.Decoder(c.Command)
    for line in commands():
        say(worker.obey(decoder.decode(line)))


def main() -> None:
    """Meet the other ranks, attach, serve."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    setting = msgspec.json.decode(sys.stdin.buffer.readline(), type=c.Setting)
    os.environ.update(RANK=str(setting.rank), GLOO_SOCKET_IFNAME=setting.interface)
    store = TCPStore(
        setting.host, setting.port, None, setting.rank == 0, MEETING, wait_for_workers=False
    )
    if setting.rank == 0:
        say({"port": store.port})
    with ExitStack() as stack:
        worker = Worker(stack, setting, store)
        threading.Thread(target=listen, args=(worker,), daemon=True).start()
        worker.serve()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

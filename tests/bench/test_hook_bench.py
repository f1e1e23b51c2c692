"""What the hook costs on the forward thread, and what forwards cost with it.

Real parts: a daemon process, agents with their threads, ranks over gloo. Both sides of each ratio
are measured in one run, in turns, because the machine is shared.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from eplbd.core import messages as m
from eplbd.core.maps import derive_maps
from eplbd.core.placement import Placement
from tests.worker.ranks import row, work_of
from tests.worker.waiting import until

if TYPE_CHECKING:
    from eplbd.demo.maps import MapUpdate, ReplicaMaps

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, SLOTS = 58, 9, 9
FORWARDS, PATIENCE_S = 2000, 30.0
"""At least so many; and so long where the machine is too busy for a quiet moment sooner."""
BLOCK = 50
"""Forwards of one figure: what the code costs is what it costs while nobody else runs."""

STEADY_US, COMMIT_US = 20.0, 100.0

PAIRS = 300


class NoMaps:
    """An engine without tables: what is measured is eplbd's own part."""

    def stage_maps(self, prepare: m.Prepare) -> Callable[[], None]:
        return lambda: None


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of a real daemon that holds."""
    folder = tmp_path_factory.mktemp("bench")
    endpoint = f"ipc://{folder}/w.sock"
    options = (
        f"daemon.socket={endpoint}",
        f"daemon.state_dir={folder}",
        "balance.mode=hold",
        "metrics.enabled=false",
    )
    command = [sys.executable, "-m", "eplbd", "serve", "-o", "policy.name=hold"]
    for option in options:
        command += ["-o", option]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as daemon:
        try:
            until((folder / "w.sock").exists, "the daemon binds its socket")
            yield endpoint
        finally:
            daemon.send_signal(signal.SIGTERM)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1e6, [50, 99])
    return float(p50), float(p99)


def test_steady_hook(socket: str) -> None:
    """Two calls per forward, 58 layers x 9 slots, all threads of a connected agent beside them."""
    torch = pytest.importorskip("torch")
    from torch._C._distributed_c10d import HashStore

    from eplbd.worker.agent import AgentThread, Identity, Parts
    from eplbd.worker.register import MemoryRegister
    from eplbd.worker.ring import HeatRing
    from eplbd.worker.torch_experts import ExpertTensors
    from eplbd.worker.torch_p2p import TorchP2PExecutor
    from eplbd.worker.torch_ring import TorchCounters

    torch.set_num_threads(1)
    counters = TorchCounters(LAYERS, SLOTS, device=torch.device("cpu"))
    weights = ExpertTensors([{"w": torch.zeros(SLOTS, 64)} for _ in range(LAYERS)])
    executor = TorchP2PExecutor(weights, HashStore(), 0, 1)
    placement = Placement.linear(LAYERS, EXPERTS, 1, SLOTS)
    parts = Parts(executor, NoMaps(), HeatRing(counters), MemoryRegister())
    left = torch.ones(384, 384)
    took: list[float] = []
    best = np.inf
    with AgentThread(socket, Identity("bench", "1", 0, "here"), placement, parts) as agent:
        until(lambda: agent.machine.connected, "the daemon welcomes the agent")
        deadline = time.perf_counter() + PATIENCE_S
        while len(took) < FORWARDS or (best > STEADY_US and time.perf_counter() < deadline):
            start = time.perf_counter()
            agent.hook.before_forward()
            middle = time.perf_counter()
            torch.mm(left, left)  # the forward
            resumed = time.perf_counter()
            agent.hook.after_forward(8, phase=2)
            took.append(middle - start + time.perf_counter() - resumed)
            if len(took) % BLOCK == 0:
                best = min(best, percentiles(took[-BLOCK:])[0])
        assert agent.machine.connected
    p50, p99 = percentiles(took)
    print(
        f"\nhook, steady: {best:.1f} us per forward (p50 of the quietest {BLOCK} of {len(took)}; "
        f"of all: p50 {p50:.1f}, p99 {p99:.1f})"
    )
    assert best < STEADY_US


def quietest(seconds: list[float], block: int = 10) -> float:
    """Median of the quietest block, in microseconds."""
    return min(percentiles(seconds[at : at + block])[0] for at in range(0, len(seconds), block))


def staged_maps() -> "tuple[ReplicaMaps, MapUpdate]":
    """Maps of two of 58 layers x 256 experts x 32 ranks, ready to be written."""
    from eplbd.demo.maps import ReplicaMaps
    from eplbd.demo.shape import Shape

    shape = Shape(layers=LAYERS, experts=256, topk=8, ranks=32, slots_per_rank=SLOTS)
    placement, changed = Placement.linear(LAYERS, 256, 32, SLOTS), np.arange(2)
    maps, new = ReplicaMaps(shape, placement), derive_maps(placement, changed)
    update = maps.stage(changed, placement.slots[changed], new.replica_count, new.physical)
    return maps, update


def test_committing_hook() -> None:
    """The forward that flips two experts of eight tensors and their maps, less the bare copies."""
    torch = pytest.importorskip("torch")
    from torch._C._distributed_c10d import HashStore

    from eplbd.worker.hook import Arm, ForwardHook
    from eplbd.worker.ring import HeatRing
    from eplbd.worker.torch_experts import ExpertTensors
    from eplbd.worker.torch_p2p import TorchP2PExecutor
    from eplbd.worker.torch_ring import TorchCounters

    torch.set_num_threads(1)
    layers = [{f"tensor{i}": torch.zeros(SLOTS, 4096) for i in range(8)} for _ in range(LAYERS)]
    executor = TorchP2PExecutor(ExpertTensors(layers), HashStore(), 0, 1)
    executor.renew(0)
    ring = HeatRing(TorchCounters(LAYERS, SLOTS, device=torch.device("cpu")))
    hook = ForwardHook(executor, ring, lambda _: None)
    rows = [row(0, index, 0, (0, 0), (0, 8), index) for index in range(2)]
    maps, update = staged_maps()
    tables = torch.zeros(LAYERS, update.rows.shape[1], dtype=torch.int32)
    views = [(t[8], t[0]) for layer in layers[:2] for t in layer.values()]
    views += zip(tables, update.rows, strict=False)
    flips, copies = [], []
    for epoch in range(1, 600):
        executor.reserve(work_of(0, rows))
        executor.stage(0)
        executor.verify()
        arm = Arm(1, epoch, 1, hook.forward + 2, hook.forward + 1, partial(maps.write, update))
        assert hook.place(arm)
        arm.resolve(m.Verdict.COMMIT)
        hook.before_forward()
        hook.after_forward(8)
        start = time.perf_counter()
        hook.before_forward()
        flips.append(time.perf_counter() - start)
        hook.after_forward(8)
        ring.drain()
        start = time.perf_counter()
        for target, source in views:
            target.copy_(source)
        copies.append(time.perf_counter() - start)
    assert executor.statistics().commits == len(flips)
    flip, copy = quietest(flips), quietest(copies)
    print(
        f"\nhook, committing: {flip:.0f} us, {flip - copy:.0f} us without the copies ({copy:.0f})"
    )
    assert flip - copy < COMMIT_US


def with_and_without(socket: str, groups: object) -> list[tuple[float, float]]:
    """Seconds of forwards with the hook and without, in turns, on one rank."""
    import torch

    from eplbd.core.messages import Dispatch
    from eplbd.demo.model import Counters
    from eplbd.demo.shape import Shape
    from eplbd.demo.traffic import Schedule, Traffic
    from eplbd.demo.twin import Groups, NoHook, Pair
    from eplbd.worker.torch_attach import Membership, attach
    from eplbd.worker.torch_experts import ExpertTensors
    from eplbd.worker.torch_p2p import TorchP2PExecutor
    from eplbd.worker.torch_ring import TorchCounters

    assert isinstance(groups, Groups)
    rank = groups.live.rank()
    shape = Shape(ranks=2, slots_per_rank=20)
    placement = Placement.linear(shape.layers, shape.experts, 2, shape.slots_per_rank)
    counters = TorchCounters(shape.layers, shape.slots_per_rank, device=torch.device("cpu"))
    counts = Counters(counters.pass_counts, counters.pass_routed)
    pair = Pair(shape, Dispatch.ALL_TO_ALL, groups, placement, counters=counts)
    weights = ExpertTensors([layer.named() for layer in pair.live.experts.layers])
    store = torch.distributed.distributed_c10d._get_default_store()  # noqa: SLF001
    executor = TorchP2PExecutor(weights, store, rank, 2)
    batch = Traffic(shape, Dispatch.ALL_TO_ALL, rank, Schedule()).batch(0)
    took = []
    with ExitStack() as stack:
        where = Membership("pairs", rank, 2, store)
        agent = attach(stack, socket, where, placement, executor, pair.live, counters)
        for index in range(PAIRS):
            both = {}
            for hook in (agent.hook, NoHook()) if index % 2 else (NoHook(), agent.hook):
                torch.distributed.barrier(group=groups.twin)
                start = time.perf_counter()
                hook.before_forward()
                pair.live.forward(batch)
                hook.after_forward(batch.tokens)
                both[hook is agent.hook] = time.perf_counter() - start
            took.append((both[True], both[False]))
        torch.distributed.barrier(group=groups.twin)
    return took


def test_forwards_with_the_hook_over_without(socket: str) -> None:
    """Fails where the ratio is above 1.01 beyond doubt: the machine's noise is in the range."""
    pytest.importorskip("torch")
    from tests.demo.ranks import on_ranks

    times = np.array(on_ranks(2, partial(with_and_without, socket))).mean(axis=0)
    ratios = times[:, 0] / times[:, 1]
    chance = np.random.default_rng(0)
    medians = [np.median(chance.choice(ratios, ratios.size)) for _ in range(500)]
    low, high = np.percentile(medians, [2.5, 97.5])
    ratio, forward_ms = float(np.median(ratios)), float(np.median(times[:, 1])) * 1e3
    print(
        f"\nforwards with the hook and no moves over without: {ratio:.4f} "
        f"(95 % within {low:.4f} to {high:.4f}; {PAIRS} pairs of {forward_ms:.1f} ms in turns, "
        "2 ranks, the agents' threads beside both)"
    )
    assert low < 1.01


def test_forwards_while_staging() -> None:
    """As the demo measures it; asserted only where each rank has cores of its own."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "eplbd", "demo", "--json", "-", "--seconds", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    figures = json.loads(done.stdout)
    ratio = figures["forward_ms_p50_staging"] / figures["forward_ms_p50_without_hook"]
    cores, ranks = os.cpu_count() or 1, figures["ranks"]
    note = "" if cores >= 2 * ranks else f"; not asserted: {ranks} ranks share {cores} cores"
    print(f"\nforwards while staging over without the hook: {ratio:.3f}{note}")
    assert figures["outputs_identical"]
    if cores >= 2 * ranks:
        assert ratio < 1.05

"""What the worker's device side costs: per forward, per commit, per decision, per expert moved.

Shape of the figures: 58 layers, 9 slots per rank, two experts staged. Best of several repeats: the
question is what the code costs, not what else the machine does.
"""

import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from eplbd.core.messages import Verdict
from eplbd.worker.executor import RankWork
from eplbd.worker.ring import BLOCK_STEPS, HeatRing
from tests.worker.ranks import ProcessStage, Setting, row, work_of

pytestmark = pytest.mark.slow

LAYERS, SLOTS = 58, 9
EXPERT = (2 * 2048 * 7168, 2048 * 7168, 16_384, 28_672, 16_384, 28_672, 8_192, 8_192)
"""Bytes of the tensors of one expert: DeepSeek-R1's in W8A8, with scales and offsets."""


def best_s(function: Callable[[], object], calls: int, repeats: int = 7) -> float:
    """Seconds per call in the best of several repeats."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - start) / calls)
    return min(times)


def test_recording_heat_is_cheap() -> None:
    torch = pytest.importorskip("torch")
    from eplbd.worker.torch_ring import TorchCounters

    torch.set_num_threads(1)
    counters = TorchCounters(LAYERS, SLOTS, device=torch.device("cpu"))
    ring, forward = HeatRing(counters), iter(range(10**9))

    def block() -> None:
        for _ in range(BLOCK_STEPS):
            ring.record(next(forward), tokens=8, phase=2)
        ring.drain()

    bare = best_s(lambda: counters.keep(0, 0), 2000)
    record = best_s(block, 200) / BLOCK_STEPS
    full_ring = HeatRing(counters)
    for index in range(5 * BLOCK_STEPS):
        full_ring.record(index, tokens=8)
    lost = best_s(lambda: full_ring.record(1, tokens=8), 2000)
    print(
        f"\nring.record: {record * 1e6:.1f} us per forward with its sixteenth of ship and drain, "
        f"{record / bare:.1f} times its two torch operations ({bare * 1e6:.1f} us); "
        f"{lost * 1e6:.1f} us where the reader is too slow"
    )
    assert record < 20e-6


@pytest.mark.parametrize("experts", [2, LAYERS])
def test_committing_is_cheap(experts: int) -> None:
    torch = pytest.importorskip("torch")
    from torch._C._distributed_c10d import HashStore

    from eplbd.worker.torch_experts import ExpertTensors
    from eplbd.worker.torch_p2p import TorchP2PExecutor

    torch.set_num_threads(1)
    names = [f"tensor{index}" for index in range(len(EXPERT))]
    # Of 64 bytes each: what is measured is the host's part, the copies aside.
    layer = {name: torch.zeros(SLOTS, 64, dtype=torch.int8) for name in names}
    layers = [{name: tensor.clone() for name, tensor in layer.items()} for _ in range(LAYERS)]
    weights = ExpertTensors(layers)
    executor = TorchP2PExecutor(weights, HashStore(), 0, 1, experts_per_rank=experts)
    executor.renew(0)
    rows = [row(0, index, 0, (0, 0), (0, 8), index) for index in range(experts)]
    times = []
    for _ in range(20):
        executor.reserve(work_of(0, rows))
        executor.stage(0)
        executor.verify()
        start = time.perf_counter()
        executor.commit()
        times.append(time.perf_counter() - start)
    copies = experts * len(EXPERT)
    source, target = torch.zeros(2, 64, dtype=torch.uint8)
    one = best_s(lambda: target.copy_(source), 2000)
    print(
        f"\ncommit of {experts} experts, {copies} tensors, of {LAYERS} layers x {SLOTS} slots: "
        f"{min(times) * 1e6:.0f} us, {min(times) / one / copies:.1f} times the bare copy_ calls"
    )
    assert experts > 2 or min(times) < 100e-6


def test_deciding_is_quick() -> None:
    pytest.importorskip("torch")
    from torch._C._distributed_c10d import TCPStore

    from eplbd.worker.torch_register import TorchRegister

    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    client = TCPStore("127.0.0.1", store.port, None, False, timedelta(seconds=20))
    keys = iter(range(10**9))
    bare = best_s(lambda: client.compare_set(f"bare{next(keys)}", "", "commit"), 500)
    with TorchRegister(client) as register:
        decide = best_s(
            lambda: register.decide(f"key{next(keys)}", Verdict.COMMIT, deadline_s=5.0), 500
        )
        again = best_s(lambda: register.decide("key", Verdict.ABORT, deadline_s=5.0), 500)
        forget = best_s(lambda: register.forget("key", deadline_s=5.0), 500)
    print(
        f"\nregister: decide {decide * 1e6:.0f} us, asked again {again * 1e6:.0f} us, forget "
        f"{forget * 1e6:.0f} us; {decide / bare:.1f} times compare_set ({bare * 1e6:.0f} us)"
    )
    assert decide < 5e-3


def test_checksums_are_quicker_than_the_textbook_ones() -> None:
    torch = pytest.importorskip("torch")
    from eplbd.worker.torch_checksum import Checksums

    torch.set_num_threads(1)
    size = EXPERT[1]
    checksums = Checksums((size,), torch.device("cpu"))
    part = torch.randint(0, 256, (size,), dtype=torch.uint8)
    words = part.view(torch.int32)
    positions = torch.arange(words.numel())
    ours = best_s(lambda: checksums.compute([part]), 1)
    textbook = best_s(lambda: (words.sum(dtype=torch.int64), (words * positions).sum()), 1, 3)
    print(
        f"\nchecksum: {size / ours / 1e9:.1f} GB/s on one core, {textbook / ours:.1f} times the "
        f"speed of sum(x), sum(i * x) over 32-bit words"
    )
    assert ours < textbook


def test_an_expert_moves_in_milliseconds() -> None:
    pytest.importorskip("torch")
    from tests.worker import torch_scenarios

    stage = ProcessStage()
    try:
        size = sum(EXPERT)
        seconds = stage.play(Setting("gloo"), 2, torch_scenarios.exchange_time, EXPERT, 8)
    finally:
        stage.stop()
    staged, bare = (min(times) for times in zip(*seconds[1], strict=True))
    print(
        f"\none expert of {size / 1e6:.0f} MB over gloo on one machine: {staged * 1e3:.0f} ms to "
        f"stage and verify, {staged / bare:.1f} times the bare messages ({bare * 1e3:.0f} ms)"
    )


def test_reserving_costs_nothing_once_allocated() -> None:
    torch = pytest.importorskip("torch")
    from torch._C._distributed_c10d import HashStore

    from eplbd.worker.torch_experts import ExpertTensors
    from eplbd.worker.torch_p2p import TorchP2PExecutor

    weights = ExpertTensors([{"w": torch.zeros(SLOTS, 1 << 20)} for _ in range(2)])
    executor = TorchP2PExecutor(weights, HashStore(), 0, 1)
    work: RankWork = work_of(0, [row(0, 0, 0, (0, 0), (0, 8)), row(0, 1, 0, (0, 0), (0, 8), 1)])

    def reserve() -> None:
        executor.reserve(work)
        executor.discard()

    start = time.perf_counter()
    reserve()
    first = time.perf_counter() - start
    later = best_s(reserve, 100)
    print(f"\nreserve: first {first * 1e6:.0f} us, then {later * 1e6:.0f} us ({later / first:.3f})")
    assert executor.statistics().staging_bytes < 2.1 * weights.expert_bytes

"""What the core's arithmetic costs on one core, at the size of a large deployment.

The shape is DeepSeek-V3's: 58 MoE layers of 256 experts, 32 ranks of 9 slots; heat comes from 1,024
ranks. Figures are the best of several runs, which is what the code costs when nothing disturbs it.
Run with `-s` to read them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import numpy as np
import pytest

from eplbd.core.ledger import Ledger
from eplbd.core.maps import derive_maps
from eplbd.core.messages import HeatReport
from eplbd.core.placement import Placement, validate
from eplbd.core.plan import EpochPlan, Plan, align
from eplbd.core.topology import Topology

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, RANKS, SLOTS = 58, 256, 32, 9
TOPOLOGY = Topology(RANKS, SLOTS, tuple(rank // 8 for rank in range(RANKS)))

REPORT_STEPS = 16
"""As agents send them."""
STEPS_PER_S = 50


def scattered(seed: int, slots: int = SLOTS) -> Placement:
    """Every expert somewhere, the rest of the slots at random: nothing in common between seeds."""
    rng = np.random.default_rng(seed)
    extra = RANKS * slots - EXPERTS
    rows = [
        rng.permutation(np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, extra)]))
        for _ in range(LAYERS)
    ]
    return Placement(np.array(rows, np.int32).reshape(LAYERS, RANKS, slots), EXPERTS)


def best_ms(work: Callable[[], object], runs: int = 10) -> float:
    """CPU time: of what else this machine does, a wall clock would tell more than of the work."""
    times = []
    for _ in range(runs):
        began = process_time()
        work()
        times.append(process_time() - began)
    return min(times) * 1e3


def first_epoch(current: Placement, target: Placement) -> EpochPlan:
    epoch = Plan(current, target, TOPOLOGY).next_epoch()
    assert epoch is not None
    return epoch


def test_maps_of_all_ranks() -> None:
    placement = scattered(0)
    cost_ms = best_ms(lambda: derive_maps(placement))
    print(f"\nall maps of {RANKS} ranks: {cost_ms:.2f} ms, {10 / cost_ms:.1f} x under 10 ms")
    assert cost_ms < 10


def test_validate() -> None:
    array = scattered(0).slots.copy()
    cost_ms = best_ms(
        lambda: validate(
            array, experts=EXPERTS, topology=TOPOLOGY, layers=LAYERS, allow_duplicates=True
        )
    )
    print(f"\nvalidate: {cost_ms:.2f} ms")
    assert cost_ms < 2


@pytest.mark.parametrize("slots", [9, 8], ids=["redundant", "no-redundancy"])
def test_plan_and_first_epoch(slots: int) -> None:
    topology = Topology(RANKS, slots, TOPOLOGY.node_of)
    current, target = scattered(0, slots), scattered(1, slots)
    align_ms = best_ms(lambda: align(current, target))
    cost_ms = best_ms(lambda: Plan(current, target, topology).next_epoch())
    print(f"\nalign {align_ms:.2f} ms, plan and first epoch {cost_ms:.2f} ms")
    assert cost_ms < 50


@pytest.mark.parametrize("slots", [9, 8], ids=["redundant", "no-redundancy"])
def test_a_whole_plan(slots: int) -> None:
    topology = Topology(RANKS, slots, TOPOLOGY.node_of)
    plan = Plan(scattered(0, slots), scattered(1, slots), topology)
    least = plan.least_rounds
    epochs: list[EpochPlan] = []
    costs_s = []
    while True:
        began = process_time()
        epoch = plan.next_epoch(experts_per_rank=2)
        costs_s.append(process_time() - began)
        if epoch is None:
            break
        epochs.append(epoch)
        plan.settled()
    rounds = sum(epoch.rounds for epoch in epochs)
    print(
        f"\n{plan.moves} moves in {len(epochs)} epochs, {len(epochs) * 2 / least:.2f} x the least, "
        f"{rounds} rounds, {rounds / least:.2f} x the least; {sum(costs_s):.2f} s in all, "
        f"median {np.median(costs_s) * 1e3:.2f} ms an epoch"
    )
    assert len(epochs) * 2 < 1.25 * least
    assert rounds < 1.4 * least
    assert np.median(costs_s) * 1e3 < 20


def test_heat_of_a_thousand_ranks() -> None:
    ranks = 1024
    topology = Topology.single_node(ranks, SLOTS)
    ledger = Ledger(topology, layers=LAYERS, experts=EXPERTS, window_steps=64)
    slots = (np.arange(ranks * SLOTS) % EXPERTS).reshape(ranks, SLOTS).astype(np.int32)
    placement = Placement(np.broadcast_to(slots, (LAYERS, ranks, SLOTS)), EXPERTS)
    ledger.placed(0, placement)
    counts = np.random.default_rng(0).integers(0, 99, (REPORT_STEPS, LAYERS, SLOTS), np.int32)
    routed = counts.sum(axis=(1, 2), dtype=np.int64)
    tokens, dummy = np.ones(REPORT_STEPS, np.int32), np.zeros(REPORT_STEPS, np.bool_)
    shares = []
    for block in range(6):
        first = block * REPORT_STEPS
        report = HeatReport(0, first, "decode", counts, routed, tokens, dummy)
        began = process_time()
        for rank in range(ranks):
            ledger.report(rank, report)
        shares.append((process_time() - began) * STEPS_PER_S / REPORT_STEPS)
    assert ledger.statistics().steps == 6 * REPORT_STEPS
    assert ledger.audit() == []
    heat_ms = best_ms(lambda: ledger.heat("decode"), runs=3)
    print(
        f"\n{ranks} ranks x {LAYERS} layers x {SLOTS} slots x {STEPS_PER_S} steps/s: "
        f"{min(shares):.2f} of a core, {min(shares) * 1e6 / ranks / STEPS_PER_S * 16:.0f} us a "
        f"report; a window of 64 steps in {heat_ms:.1f} ms"
    )
    assert min(shares) < 1
